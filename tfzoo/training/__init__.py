"""Training runs: configuration, inputs, step, optimizers, distribution, checkpoints, the loop, run folders."""
