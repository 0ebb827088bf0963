"""Prepare a real language model and real text without a hub, for `make real`."""
