"""Training in stages: what moves, how fast, the step, the loop and its checkpoints."""
