"""Text sources, cleaning, packing, batching. Importing this package imports no TensorFlow."""
