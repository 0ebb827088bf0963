"""Train one SAE: the loop, its optimiser, schedules, history and checkpoints."""
