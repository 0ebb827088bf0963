"""Train one SAE on several ranks.

Holds the process group, and the shard of the latents on each rank.
"""
