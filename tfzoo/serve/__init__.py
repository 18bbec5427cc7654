"""The embedded server: TF Serving's API over gRPC and REST, for SavedModels and ONNX artifacts.

python -m tfzoo.serve --model_name=bert --model_base_path=exports/savedmodel/bert

`core.Core` answers requests; the front ends (gRPC, REST) only translate. See docs/serve.md.
"""
