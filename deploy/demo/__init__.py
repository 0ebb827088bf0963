"""Provide the demo: its language model, its corpus and its sweep file."""
