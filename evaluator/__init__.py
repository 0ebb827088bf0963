"""Measure SAEs on the language model and report a sweep's results."""
