"""Opens ONNX graphs with onnxruntime."""

import os
import pathlib
from typing import Any


def open_session(path: pathlib.Path, device: int = 0, threads: int = 0, spins: bool = True) -> Any:
    """Returns an onnxruntime.InferenceSession, on the GPU `device` if there is CUDA.

    Args:
      path: the graph.
      device: the number of the GPU.
      threads: the number of threads of an operation; 0 lets onnxruntime choose.
      spins: whether threads compute in vain while they wait for the next call, which then starts sooner.
    """
    import onnxruntime  # Of the extra `export`.

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    providers: list[Any] = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device}))
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)
