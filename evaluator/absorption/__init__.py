"""Measure absorption: latents that miss their feature where a more specific latent has taken it over."""
