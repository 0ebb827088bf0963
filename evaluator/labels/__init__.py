"""Label latents by a language model's endpoint, and score each label on other documents."""
