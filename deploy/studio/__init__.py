"""Serve the mill to a browser: a REST interface, a live stream and a page, all over the bucket."""
