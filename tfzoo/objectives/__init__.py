"""Pre-training objectives, one page each: subclasses of objective.Objective, listed in training/registry.py."""
