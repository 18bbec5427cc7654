"""Weight files: formats, the interpreter of weight tables, Hugging Face folders, and other checkpoints."""
