"""SavedModels, in the style of TensorFlow 1 or 2, from anyone."""

import importlib
import itertools
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from tfzoo import files, lazy, progress
from tfzoo.errors import UserError, one_line
from tfzoo.serve import messages, tensors, trust
from tfzoo.serve.errors import CODES, StatusError, invalid
from tfzoo.serve.servable import Signature, TensorSpec

tf = lazy.module("tensorflow")
op_def_registry = lazy.module("tensorflow.python.framework.op_def_registry")
config_pb2 = lazy.module("tensorflow.core.protobuf.config_pb2")
loader_impl = lazy.module("tensorflow.python.saved_model.loader_impl")

FILES = ("saved_model.pb", "saved_model.pbtxt")
# Operations that initialize a model, which TensorFlow keeps among the signatures.
_HIDDEN = "__saved_model_"
_MAX_GRAPH = 2**31 - 1  # Bytes of a message.
_MAX_DEFAULT = 2**20  # Maximum elements of the default of an input.
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


class SavedModel:
    """A loaded SavedModel: a Session, and a callable for each signature and set of outputs that was asked for.

    Args:
      name, version: of the model.
      folder: the SavedModel's folder.
      tags: the tags of the graph to load.
      config: a serialized ConfigProto for the session.
      is_trusted: whether the graph may contain operations that read or write files or run Python.

    Raises:
      StatusError: the folder does not contain such a model, or it cannot be loaded.
    """

    runtime = "TF1"  # TF Serving's name of sessions.

    def __init__(
        self, name: str, version: int, folder: pathlib.Path, tags: Sequence[str], config: bytes, is_trusted: bool
    ):
        self.name, self.version, self.folder = name, version, folder
        progress.start_tensorflow()
        meta_graph = _meta_graph(folder, tags)
        if not is_trusted:
            trust.check(meta_graph, folder)
        _register_operations(meta_graph)
        self._signature_defs = messages.SignatureDefMap()
        signatures: dict[str, Signature] = {}
        for key, definition in meta_graph.signature_def.items():
            if not key.startswith(_HIDDEN):
                signatures[key] = _signature(key, definition)
            self._signature_defs.signature_def[key].CopyFrom(definition)
            self._signature_defs.signature_def[key].ClearField("defaults")
        self.signatures: Mapping[str, Signature] = signatures
        self.sessions: Mapping[str, Any] = {}
        self._callables: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._lock = threading.Lock()
        graph = tf.Graph()
        with graph.as_default():
            options = tf.compat.v1.ConfigProto.FromString(config)
            self._session = tf.compat.v1.Session(graph=graph, config=options)
            try:
                _load(self._session, folder, tags)
            except (tf.errors.OpError, ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
                self._session.close()
                raise StatusError("INVALID_ARGUMENT", f"{folder}: cannot be loaded ({one_line(error)})") from None
        graph.finalize()

    def signature_def_map(self) -> bytes:
        return self._signature_defs.SerializeToString()

    def run(
        self,
        signature_name: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        deadline: float | None = None,
    ) -> dict[str, np.ndarray]:
        signature = self.signatures[signature_name]
        names = tuple(signature.outputs if outputs is None else outputs)
        try:
            values = self._callable(signature, names)(*(inputs[name] for name in signature.inputs))
        except tf.errors.OpError as error:
            raise StatusError(CODES[error.error_code], error.message) from None
        # Scalars come as Python or NumPy scalars.
        return {name: np.asarray(value, signature.outputs[name].dtype) for name, value in zip(names, values)}

    def close(self) -> None:
        self._callables.clear()
        self._session.close()

    def _callable(self, signature: Signature, outputs: tuple[str, ...]) -> Any:
        key = (signature.name, outputs)
        if key not in self._callables:
            options = config_pb2.CallableOptions(
                feed=[spec.name for spec in signature.inputs.values()],
                fetch=[signature.outputs[name].name for name in outputs],
            )
            with self._lock:
                self._callables[key] = self._session._make_callable_from_options(options)
        return self._callables[key]


def _meta_graph(folder: pathlib.Path, tags: Sequence[str]) -> Any:
    """Returns the MetaGraphDef with exactly these tags."""
    saved_model = messages.SavedModel()
    binary, text = (folder / name for name in FILES)
    try:
        if binary.exists():
            saved_model.ParseFromString(files.read_bytes(binary, max_bytes=_MAX_GRAPH))
        else:
            text_format.Parse(files.read_text(text), saved_model, descriptor_pool=messages.POOL)
    except UserError as error:
        raise StatusError("DATA_LOSS", str(error)) from None
    except (DecodeError, text_format.ParseError) as error:
        raise StatusError("DATA_LOSS", f"{folder}: contains no SavedModel ({one_line(error)})") from None
    for meta_graph in saved_model.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == set(tags):
            return meta_graph
    raise StatusError("NOT_FOUND", f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }}")


def _load(session: Any, folder: pathlib.Path, tags: Sequence[str]) -> None:
    """Does what tf.compat.v1.saved_model.load does, in steps between which other threads can answer requests."""
    loader = loader_impl.SavedModelLoader(str(folder))
    meta_graph = loader.get_meta_graph_def_from_tags(tags)
    _import_functions(meta_graph)
    # TensorFlow would infer the shapes in all functions that a call reaches, once per call. No shape is read here.
    for node in meta_graph.graph_def.node:
        if node.op in _CALLS:
            node.attr["_disable_call_shape_inference"].b = True
    saver, _ = loader.load_graph(session.graph, tags)
    loader.restore_variables(session, saver)
    loader.run_init_ops(session, tags)


def _import_functions(meta_graph: Any) -> None:
    """Moves the functions of a MetaGraphDef into the default graph, one by one: TensorFlow imports a graph in a single
    call during which no other thread of Python runs."""
    library = meta_graph.graph_def.library
    if library.gradient:  # These refer to several functions.
        return
    info = meta_graph.meta_info_def
    operations = info.stripped_op_list if info.HasField("stripped_op_list") else None
    for function in library.function:
        part = tf.compat.v1.GraphDef(versions=meta_graph.graph_def.versions, library={"function": [function]})
        tf.graph_util.import_graph_def(part, name="", producer_op_list=operations)
    library.Clear()


def _register_operations(meta_graph: Any) -> None:
    """Imports TensorFlow Text if the graph has operations that TensorFlow lacks.

    Raises:
      StatusError: the graph has operations that neither has.
    """
    library = meta_graph.graph_def.library.function
    functions = {function.signature.name for function in library}
    nodes = itertools.chain(meta_graph.graph_def.node, *(function.node_def for function in library))
    operations = {node.op for node in nodes} - functions
    if any(op_def_registry.get(name) is None for name in operations):
        importlib.import_module("tensorflow_text")
    if missing := sorted(name for name in operations if op_def_registry.get(name) is None):
        raise StatusError("NOT_FOUND", f"Op type not registered: {', '.join(missing)}")


def _signature(name: str, definition: Any) -> Signature:
    return Signature(
        name,
        definition.method_name,
        {key: _spec(key, definition.inputs[key]) for key in sorted(definition.inputs)},
        {key: _spec(key, definition.outputs[key]) for key in sorted(definition.outputs)},
        {key: tensors.to_array(value, key, _MAX_DEFAULT) for key, value in definition.defaults.items()},
    )


def _spec(name: str, info: Any) -> TensorSpec:
    if info.dtype not in tensors.TYPES or info.WhichOneof("encoding") != "name":
        raise invalid(f"{name}: has a type that cannot be part of a request")
    sizes = None
    if not info.tensor_shape.unknown_rank:
        sizes = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(info.name, tensors.TYPES[info.dtype][1], sizes, info.dtype)
