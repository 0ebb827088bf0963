"""Compute losses and gradients at the active latents only."""
