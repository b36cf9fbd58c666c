"""Learning: the loop, its optimiser, its checkpoints and its log."""
