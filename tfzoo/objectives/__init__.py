"""Pre-training objectives, one module each: subclasses of objective.Objective, listed in training/registry.py."""
