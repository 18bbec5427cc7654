"""Fine-tuning tasks, one module each: subclasses of task.Task, listed in training/registry.py."""

GROUP = "Fine-tuning (docs/finetuning.md)"
"""The heading of the options in --help."""
