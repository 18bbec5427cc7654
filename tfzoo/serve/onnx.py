"""ONNX graphs: artifacts of tfzoo.export, and a single model.onnx from anyone. Nothing here imports TensorFlow.

Each graph is a signature with the names, types and shapes of its inputs and outputs: `tokens` is that of an artifact's
model.onnx, and other graphs have the names of their files. If the artifact's manifest says how texts are read and
answered, `serving_default` takes texts; otherwise it is the graph model.onnx.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.errors import UserError, one_line
from tfzoo.export import manifest as manifests
from tfzoo.export import verify
from tfzoo.onnx_decoding.sessions import open_session
from tfzoo.prediction import onnx_graphs
from tfzoo.serve import messages, tensors
from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.onnx_texts import Texts
from tfzoo.serve.servable import DEFAULT_SIGNATURE, PREDICT, Signature, TensorSpec

FILE = "model.onnx"
_TOKENS = "tokens"
# Inputs whose values choose rows of a table -> the field of the configuration that is the table's size. onnxruntime
# takes -1 as the last row.
_BOUNDS = {
    "input_ids": "vocab_size",
    "decoder_input_ids": "vocab_size",
    "token_type_ids": "num_segments",
    "position_ids": "max_positions",
}
_DATA_TYPES = {
    f"tensor({name})": number
    for name, number in (
        *((name, number) for number, (name, _, _) in tensors.TYPES.items()),
        ("float16", 19),
    )
}


class Onnx:
    """The sessions of a folder's graphs.

    Args:
      name, version: of the model.
      folder: an artifact, or a folder with a model.onnx.
      threads: the threads of an operation; 0 lets onnxruntime choose.

    Raises:
      StatusError: the folder is damaged, or its graphs cannot be loaded.
    """

    runtime = "onnxruntime"

    def __init__(self, name: str, version: int, folder: pathlib.Path, threads: int = 0):
        self.name, self.version, self.folder = name, version, folder
        manifest = _manifest(folder)
        stems = ["model"] if manifest is None else list(manifest["signatures"])
        try:
            sessions = {
                # Between requests, spinning takes three times the processor time of a small model.
                stem: open_session(folder / f"{stem}.onnx", threads=threads, spins=False)
                for stem in stems
            }
        except Exception as error:  # onnxruntime's errors have no common class.
            raise invalid(f"{folder}: cannot be loaded ({one_line(error)})") from None
        named = {_TOKENS if stem == "model" and manifest else stem: s for stem, s in sessions.items()}
        if manifest is None:
            named = {DEFAULT_SIGNATURE: sessions["model"]}
        self._config: Mapping[str, Any] = {} if manifest is None else manifest["model"]["config"]
        signatures = {key: _signature(key, session) for key, session in named.items()}
        for stem, stated in manifest["signatures"].items() if manifest else ():
            _check(folder, stem, stated, signatures[_TOKENS if stem == "model" else stem])
        self._texts = None
        if manifest is not None and "model" in sessions:
            self._texts = _texts(folder, manifest, sessions["model"])
            if self._texts is not None:
                signatures |= self._texts.signatures
            else:
                signatures[DEFAULT_SIGNATURE] = _signature(DEFAULT_SIGNATURE, sessions["model"])
                named[DEFAULT_SIGNATURE] = sessions["model"]
        self.sessions: Mapping[str, Any] = named
        self.signatures: Mapping[str, Signature] = signatures

    def signature_def_map(self) -> bytes:
        definitions = messages.SignatureDefMap()
        for key, signature in self.signatures.items():
            definition = definitions.signature_def[key]
            definition.method_name = signature.method_name
            for side, specs in ((definition.inputs, signature.inputs), (definition.outputs, signature.outputs)):
                for name, spec in specs.items():
                    side[name].name, side[name].dtype = spec.name, spec.data_type
                    for size in spec.shape or ():
                        side[name].tensor_shape.dim.add(size=-1 if size is None else size)
        return definitions.SerializeToString()

    def run(
        self,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        deadline: float | None = None,
    ) -> dict[str, np.ndarray]:
        signature = self.signatures[signature_name]
        names = list(signature.outputs if outputs is None else outputs)
        try:
            if self._texts is not None and signature_name in self._texts.signatures:
                values = self._texts.run(signature_name, inputs)
                return {name: values[name] for name in names}
            for name, value in inputs.items():
                self._check(name, value)
            feeds = {name: _decoded(value) for name, value in inputs.items()}
            results = self.sessions[signature_name].run(names, feeds)
        except StatusError:
            raise
        except Exception as error:  # What a graph rejects is in its inputs; onnxruntime's errors have no common class.
            code = "RESOURCE_EXHAUSTED" if "allocate memory" in str(error) else "INVALID_ARGUMENT"
            raise StatusError(code, one_line(error)) from None
        return {name: _encoded(value) for name, value in zip(names, results)}

    def _check(self, name: str, value: np.ndarray) -> None:
        size = self._config.get(_BOUNDS.get(name, ""))
        if size and value.size and not (0 <= value.min() and value.max() < size):
            wrong = value[(value < 0) | (value >= size)][0]
            raise invalid(f"{name} must be at least 0 and below {size}, but is {wrong}")

    def close(self) -> None:
        self.sessions = {}
        self._texts = None


def _manifest(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the manifest of an artifact after checking it and its files; None for other folders."""
    try:
        if not (folder / manifests.NAME).is_file():
            for place in verify.external_data(folder / FILE):
                if not (folder / place).resolve().is_relative_to(folder.resolve()):
                    raise invalid(f"{folder}: the graph reads {place!r}, which is outside of its folder")
            return None
        manifest = manifests.read(folder)
    except UserError as error:
        raise StatusError("DATA_LOSS", str(error)) from None
    except (verify.Failure, ValueError, LookupError, OSError) as error:
        raise StatusError("DATA_LOSS", f"{folder}: is damaged ({one_line(error)})") from None
    if manifest["kind"] != "onnx":
        raise invalid(f"{folder}: is a {manifest['kind']} artifact, which is not served")
    return manifest


def _check(folder: pathlib.Path, stem: str, stated: Mapping[str, Mapping], signature: Signature) -> None:
    """Raises StatusError if a graph has other inputs or outputs, or other sizes of these, than its manifest states."""
    for side, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        sizes = {
            name: tuple(size if isinstance(size, int) else None for size in tensor["shape"])
            for name, tensor in stated[side].items()
        }
        if sizes != {name: spec.shape for name, spec in specs.items()}:
            raise StatusError("DATA_LOSS", f"{folder}: manifest.json does not state the {side} of {stem}.onnx")


def _texts(folder: pathlib.Path, manifest: Mapping[str, Any], session: Any) -> Texts | None:
    """Returns what answers texts; None if the manifest does not describe it."""
    try:
        return Texts(onnx_graphs.OnnxPredictor(folder, manifest, sessions=[session]), manifest)
    except UserError:
        return None


def _signature(key: str, session: Any) -> Signature:
    inputs = {value.name: _spec(value) for value in session.get_inputs()}
    outputs = {value.name: _spec(value) for value in session.get_outputs()}
    return Signature(key, PREDICT, inputs, outputs)


def _spec(value: Any) -> TensorSpec:
    if value.type not in _DATA_TYPES:
        raise invalid(f"{value.name}: has the type {value.type}, which cannot be part of a request")
    data_type = _DATA_TYPES[value.type]
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorSpec(value.name, tensors.TYPES[data_type][1], shape, data_type)


def _decoded(value: np.ndarray) -> np.ndarray:
    """Returns an array as onnxruntime reads it: strings are str."""
    if value.dtype.kind != "O":
        return value
    try:
        flat = [each.decode() for each in value.ravel()]
    except UnicodeDecodeError as error:
        raise invalid(f"a text is not UTF-8 at byte {error.start}") from None
    return np.array(flat, object).reshape(value.shape)


def _encoded(value: np.ndarray) -> np.ndarray:
    if value.dtype.kind != "O":
        return value
    return np.array([each.encode() for each in value.ravel()], object).reshape(value.shape)
