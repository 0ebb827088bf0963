"""Measure absorption: more specific latents take a feature over from its own."""
