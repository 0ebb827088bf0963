"""Write the latents of SAEs as a static page, from their evidence."""
