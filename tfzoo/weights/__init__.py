"""Weight files and whose tensor is which: formats, the table interpreter, Hugging Face folders, other checkpoints."""
