"""Define SAE architectures: inference, the training objective, and folding."""
