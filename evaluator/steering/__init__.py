"""Steer a language model by an SAE's latents, and measure what steering does."""
