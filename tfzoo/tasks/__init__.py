"""Fine-tuning tasks, one module each: subclasses of task.Task, listed in training/registry.py."""
