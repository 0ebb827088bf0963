"""Run a planned sweep on Ray: harvest, train and evaluate."""
