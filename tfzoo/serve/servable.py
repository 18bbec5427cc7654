"""The interface of a loaded version of a model, which savedmodel.py and onnx.py implement."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
DEFAULT_SIGNATURE = "serving_default"


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What a request asks for.

    Attributes:
      name: the name of a model.
      version: a version number; None without one.
      label: a version label; None without one. `version` and `label` are not both set.
      signature_name: the name of a signature; "" means DEFAULT_SIGNATURE.
    """

    name: str
    version: int | None = None
    label: str | None = None
    signature_name: str = ""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """An input or output of a signature.

    Attributes:
      name: the name of the tensor in the graph, such as "x:0".
      dtype: a NumPy dtype; `object` for strings, whose values are bytes.
      shape: the sizes, None where a size varies; None if the rank varies, too.
      data_type: the number of the DataType, such as 1 for DT_FLOAT.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...] | None
    data_type: int


@dataclasses.dataclass(frozen=True)
class Signature:
    """A function of a model.

    Attributes:
      name: such as "serving_default".
      method_name: PREDICT, CLASSIFY, REGRESS or something else.
      inputs, outputs: by the names that clients use.
      defaults: the values of inputs that a gRPC client may omit.
    """

    name: str
    method_name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    defaults: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Servable(Protocol):
    """A loaded version of a model. Threads may call `run` at the same time.

    Attributes:
      name: the name of the model.
      version: its version number.
      folder: contains its files.
      runtime: what runs it, in metrics.
      signatures: by name.
    """

    name: str
    version: int
    folder: pathlib.Path
    runtime: str
    signatures: Mapping[str, Signature]

    @property
    def sessions(self) -> Mapping[str, Any]:
        """The onnxruntime.InferenceSessions of an ONNX artifact by signature; for other models empty."""
        ...

    def signature_def_map(self) -> bytes:
        """Returns a serialized SignatureDefMap, for GetModelMetadata."""
        ...

    def run(
        self,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        deadline: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Computes outputs of a signature.

        Args:
          signature_name: a key of `signatures`.
          inputs: a value for each input.
          outputs: the names of the outputs to compute; None means all.
          deadline: the time.monotonic() at which the caller gives up.

        Raises:
          StatusError: the model rejects the inputs or fails.
        """
        ...

    def close(self) -> None:
        """Releases the model's memory."""
        ...
