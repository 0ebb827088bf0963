"""Describe what to train and how: recipes, grids, templates and wiring. Nothing here imports torch."""
