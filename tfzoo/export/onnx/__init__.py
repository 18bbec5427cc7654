"""ONNX graphs, emitted from the layers; tracing by tf2onnx where a layer has no emitter."""
