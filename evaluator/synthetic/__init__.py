"""Measure SAEs against the truth: a world of planted features, as SynthSAEBench (arXiv 2602.14687) describes it."""
