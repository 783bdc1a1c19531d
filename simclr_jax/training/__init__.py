"""The training step, its state, optimisers, schedules and checkpoints."""
