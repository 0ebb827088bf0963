"""Run Scopemill from the command line."""
