"""Fine-tune finished SAEs with the language model in the loop."""
