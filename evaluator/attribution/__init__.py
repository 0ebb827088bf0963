"""Tell which latents a logit difference rests on."""
