"""Measure SAEs by k-sparse probing: logistic probes on few latents, beside random baselines."""
