"""Label latents by a language model behind an endpoint, and score each label on other documents."""
