"""The components of a tokenizer.json, each compiled to TensorFlow's stock ops; what has no exact form is refused."""
