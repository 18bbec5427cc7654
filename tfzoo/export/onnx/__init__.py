"""ONNX graphs, emitted from the layers of a model, or traced by tf2onnx if the model has no emitters."""
