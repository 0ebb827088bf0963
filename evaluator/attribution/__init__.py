"""Attribute a logit difference to latents."""
