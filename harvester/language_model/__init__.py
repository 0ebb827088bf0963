"""Describe, load and run the language model, read its activations and edit them."""
