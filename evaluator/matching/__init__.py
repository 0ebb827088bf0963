"""Match latents across SAEs: twins, splitting and stability."""
