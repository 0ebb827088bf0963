"""The language model: describe, load and run it, read its activations and edit them."""
