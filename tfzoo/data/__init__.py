"""Text sources, cleaning, packing, batching. Importing this package does not import TensorFlow."""
