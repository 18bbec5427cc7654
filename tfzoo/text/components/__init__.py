"""The components of a tokenizer.json, compiled to TensorFlow's stock ops; inexact ones are rejected."""
