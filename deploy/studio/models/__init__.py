"""Define what the REST interface takes and gives.

Its OpenAPI page is made from these models: a file for each resource.
"""
