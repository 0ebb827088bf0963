"""Measure SAEs against the truth: a world of planted features."""
