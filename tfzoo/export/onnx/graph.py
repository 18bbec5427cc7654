"""An ONNX graph under construction, in the operators of its opset.

Emitters use the operators of opset 23. Those that an older opset lacks are replaced here by operators that it has.
https://onnx.ai/onnx/operators/ describes all of them.
"""

import math
import mmap
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tfzoo.errors import UserError
from tfzoo.export import verify

# standard: opset 23, the first with Attention. compat: for runtimes from 2023 on. genai: for onnxruntime-genai, with
# onnxruntime's own GroupQueryAttention, which keeps keys and values in one buffer.
PROFILES = {"standard": 23, "compat": 18, "genai": 23}
MICROSOFT = "com.microsoft"  # The domain of onnxruntime's own operators.
DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
MAX_BYTES = 2**31 - 2**24  # Protocol buffers are limited to 2 GiB; the difference is room for the nodes.
# Field numbers.
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_SMALL = 4096  # Tensors of fewer bytes stay in the graph's file.
_INT64_MAX = np.array(2**63 - 1, np.int64)
# As in nn.mask_bias. Finite, so that a row without keys has equal weights.
_MASKED = {"float32": -1e9, "float16": -3e4}


Emitter = Callable[..., Any]  # (graph, layer, *inputs, **options) -> output, or outputs


def no_emitter(what: str, layer: keras.layers.Layer) -> UserError:
    """Returns the error for a layer, or a feature of it, that has no emitter."""
    return UserError(
        f"{what} ({layer.path}) has no ONNX emitter; add a method onnx_call to its class, or export with "
        f"--formats=savedmodel"
    )


def emitter_of(thing: Any, method: str, known: Mapping[type, Emitter]) -> Emitter | None:
    """Returns the emitter of a method of a layer or model: the method onnx_NAME of one of its classes, or a function in
    `known`.

    Returns None if there is no emitter; a subclass that overrides the method may compute something other than its base
    class, whose emitter is then not used.
    """
    for cls in type(thing).__mro__:
        defined = vars(cls).get(f"onnx_{method}")
        if defined is not None:
            return lambda graph, thing, *inputs, **options: defined(thing, graph, *inputs, **options)
        if cls in known:
            return known[cls]
        if method in vars(cls):
            break
    return None


class Graph:
    """A graph under construction, in which tensors are identified by their names.

    Args:
      emitters: {layer class: the emitter of its `call`}.
      profile: one of PROFILES.
      dtype: the dtype of weights and activations, one of DTYPES; outputs are always float32.
      data: a file next to the graph's file to which weights are written as they are added, so that at most one of them
        is in memory and the graph's file stays below the 2 GiB limit of protocol buffers. None keeps weights in the
        graph.
      copy_tied: whether the graph is for quantisers of matrix products: the output matrix is stored separately even if
        it is tied to the embeddings, and more products of profile genai are joined.

    Raises:
      UserError: the profile is not one of PROFILES.
    """

    def __init__(
        self,
        emitters: Mapping[type, Emitter],
        profile: str = "standard",
        dtype: str = "float32",
        data: pathlib.Path | None = None,
        copy_tied: bool = False,
    ):
        if profile not in PROFILES:
            raise UserError(f"--onnx_profile={profile}: must be one of {', '.join(PROFILES)}")
        self.emitters, self.profile, self.opset = emitters, profile, PROFILES[profile]
        self.dtype, self.data = np.dtype(dtype), data
        self.copy_tied = copy_tied
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._names: set[str] = set()
        self._sums: set[str] = set()  # Results of `sum`.

    def add(self, operator: str, *inputs: str | None, at: str, outputs: int = 1, **attributes) -> Any:
        """Appends a node.

        Args:
          operator: the operator.
          *inputs: names of tensors; None omits an optional input.
          at: the path of the layer to which the node belongs.
          outputs: the number of outputs.
          **attributes: the operator's attributes, and its domain.

        Returns:
          The name of the output, or a tuple of names if there are several.
        """
        if self.opset < 23 and operator in _EARLIER:
            return _EARLIER[operator](self, *inputs, at=at, **attributes)
        name = f"{at}/{operator}"
        if name in self._names:
            name = next(f"{name}_{i}" for i in range(2, len(self.nodes) + 3) if f"{name}_{i}" not in self._names)
        self._names.add(name)
        names = [f"{name}:{i}" for i in range(outputs)]
        input_names = ["" if x is None else x for x in inputs]
        while input_names and not input_names[-1]:
            input_names.pop()
        self.nodes.append(helper.make_node(operator, input_names, names, name=name, **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def emit(self, layer: keras.layers.Layer, *inputs, **options) -> Any:
        """Appends the nodes of a layer and returns the name of its output, or the names of its outputs.

        Raises:
          UserError: the layer's class has no emitter.
        """
        emitter = self.emitter(layer)
        if emitter is None:
            raise no_emitter(type(layer).__name__, layer)
        return emitter(self, layer, *inputs, **options)

    def emitter(self, layer: keras.layers.Layer) -> Emitter | None:
        """Returns the emitter of a layer's `call`; None if there is none."""
        return emitter_of(layer, "call", self.emitters)

    @property
    def type(self) -> int:
        """ONNX's number for the dtype of weights and activations."""
        return DTYPES[self.dtype.name]

    @property
    def outside(self) -> int:
        """ONNX's number for the dtype of cached keys and values as inputs and outputs. A buffer that is shared by input
        and output cannot be cast."""
        return self.type if self.profile == "genai" else TensorProto.FLOAT

    def weight(self, variable, shape: tuple[int, ...] | None = None) -> str:
        """Adds a Keras variable as an initializer named after its path; it is stored once however often it is used."""
        if variable.path in self.initializers:
            return variable.path
        value = np.asarray(variable.numpy(), np.float32).astype(self.dtype, copy=False)
        return self.constant(variable.path, value if shape is None else value.reshape(shape))

    def joined(self, name: str, variables: Sequence[Any]) -> str:
        """Adds concatenated Keras variables: [..., O], [..., P], ... as one initializer [..., O + P + ...]."""
        return self.constant(name, np.concatenate([v.numpy() for v in variables], -1).astype(self.dtype, copy=False))

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds an initializer, unless there is one of this name."""
        if name not in self.initializers:
            self.initializers[name] = self._tensor(name, np.asarray(value, order="C"))
        return name

    def number(self, value: float) -> str:
        """Adds a scalar of the graph's dtype."""
        return self.constant(f"constants/{value!r}", np.array(value, self.dtype))

    def ints(self, *values: int) -> str:
        """Adds a constant int64 [number of values]."""
        return self.constant(f"constants/{'_'.join(map(str, values))}", np.array(values, np.int64))

    def whole(self, value: int) -> str:
        """Adds a constant int64 []."""
        return self.constant(f"constants/scalar_{value}", np.array(value, np.int64))

    def input(self, name: str, *axes, dtype: int = TensorProto.INT64) -> str:
        """Adds an input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, axes))
        return name

    def output(self, name: str, source: str, *axes, dtype: int = TensorProto.FLOAT) -> None:
        """Adds an output of the graph: the tensor `source`, cast to `dtype`."""
        at = f"outputs/{name}"
        if dtype != self.type:
            source = self.add("Cast", source, at=at, to=dtype)
        (node,) = (node for node in self.nodes if source in node.output)
        if any(source in other.input for other in self.nodes) or source in {o.name for o in self.outputs}:
            source = self.add("Identity", source, at=at)
            node = self.nodes[-1]
        node.output[list(node.output).index(source)] = name
        self.outputs.append(helper.make_tensor_value_info(name, dtype, axes))

    def model(self, name: str) -> onnx.ModelProto:
        """Returns the finished model and moves the weights into it; the graph has none afterwards.

        Raises:
          UserError: the model is larger than an ONNX file can be, and no `data` was given.
        """
        size = sum(len(tensor.raw_data) for tensor in self.initializers.values())
        if size > MAX_BYTES:
            raise UserError(f"{name} has {size:,} bytes of weights, more than the 2 GiB that a single ONNX file holds")
        # The shapes of intermediate tensors are omitted: see variants._quantise for their effect on onnxruntime.
        # Unused constants are removed, since runtimes warn about them when they load the graph.
        read = {name for node in self.nodes for name in node.input}
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, [])
        opsets = [helper.make_opsetid("", self.opset)]
        # The oldest format that supports the opset, so that older runtimes can read the file.
        version = helper.find_min_ir_version_for(opsets)
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in self.nodes} - {""})]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="tfzoo")
        for key in list(self.initializers):  # One at a time, since each is copied.
            tensor = self.initializers.pop(key)
            if key in read:
                model.graph.initializer.append(tensor)
        return model

    def _tensor(self, name: str, value: np.ndarray) -> onnx.TensorProto:
        if self.data is None or value.nbytes < _SMALL:
            return numpy_helper.from_array(value, name)
        with open(self.data, "ab") as file:
            file.write(bytes(-file.tell() % 4096))  # Aligned to pages, so that a runtime can map them.
            place = dict(location=self.data.name, offset=file.tell(), length=value.nbytes)
            file.write(value.data)
        tensor = TensorProto(name=name, dims=value.shape, data_type=helper.np_dtype_to_tensor_dtype(value.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in place.items():
            tensor.external_data.add(key=key, value=str(text))
        return tensor

    # Helpers that several layers use.

    def sum(self, x: str, y: str, at: str) -> str:
        """Emits the sum of two tensors of the same shape."""
        total = self.add("Add", x, y, at=at)
        self._sums.add(total)
        return total

    def take_sum(self, x: str) -> list[str]:
        """Removes the last node if it is that of `sum` that emitted x, and returns its terms; otherwise []. The caller
        emits x instead."""
        if not self.nodes or list(self.nodes[-1].output) != [x] or x not in self._sums:
            return []
        return list(self.nodes.pop().input)

    def size(self, x: str, axis: int, at: str) -> str:
        """Emits the length of x along an axis, int64 [1]."""
        return self.add("Shape", x, at=at, start=axis, end=axis + 1)

    def scalar(self, x: str, at: str) -> str:
        """Emits x [1] as a scalar []."""
        return self.add("Squeeze", x, self.ints(0), at=at)

    def range(self, start: str, end: str, at: str) -> str:
        """Emits int64 [end - start], the numbers from start [1] to below end [1]."""
        return self.add("Range", self.scalar(start, at), self.scalar(end, at), self.whole(1), at=at)

    def rows(self, table: str, ids: str, at: str) -> str:
        """Emits the rows [B, L, E] of table [N, E] at ids [B, L]. Gather would count negative ids from the end; they
        are made huge, so that it fails."""
        ids = self.add("BitwiseAnd", ids, self.constant("constants/int64_max", _INT64_MAX), at=at)
        return self.add("Gather", table, ids, at=at)

    def gather(self, sequence: str, positions: str, at: str) -> str:
        """Emits sequence [B, L, E] at positions [B, P]: [B, P, E]."""
        indices = self.add("Unsqueeze", positions, self.ints(2), at=at)
        return self.add("GatherND", sequence, indices, at=at, batch_dims=1)

    def narrow(self, x: str, at: str) -> str:
        """Casts a float32 tensor to the graph's dtype."""
        return x if self.dtype == np.float32 else self.add("Cast", x, at=at, to=self.type)

    def masked(self, seen: str, at: str) -> str:
        """Emits the bias to add to scores: 0 where a query may see a key (`seen` bool), a large negative number
        elsewhere."""
        return self.add("Where", seen, self.number(0.0), self.number(_MASKED[self.dtype.name]), at=at)

    def heads(self, x: str, num_heads: int, at: str) -> str:
        """Emits x [B, L, H D] as [B, H, L, D]."""
        x = self.add("Reshape", x, self.ints(0, 0, num_heads, -1), at=at)
        return self.add("Transpose", x, at=at, perm=[0, 2, 1, 3])

    def merge(self, x: str, at: str) -> str:
        """Emits x [B, H, L, D] as [B, L, H D]."""
        x = self.add("Transpose", x, at=at, perm=[0, 2, 1, 3])
        return self.add("Reshape", x, self.ints(0, 0, -1), at=at)


def write_file(model: onnx.ModelProto, path: pathlib.Path, data: pathlib.Path | None = None) -> None:
    """Writes `model`, which loses its weights. They are serialised one at a time, since serialising all at once takes a
    multiple of their size in memory. https://protobuf.dev/programming-guides/encoding/ describes the format.

    Args:
      model: the model.
      path: the file.
      data: the file with the model's external weights, if they are to be inside `path` instead.
    """
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    nodes = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    places = [_moved_inside(tensor) if data else None for tensor in tensors]
    begins = []  # What precedes a tensor, and the tensor up to its weights.
    for tensor, place in zip(tensors, places):
        size, tag = len(tensor.SerializeToString(deterministic=True)), b""
        if place is not None:
            tag = _varint(_RAW_DATA << 3 | 2) + _varint(place[1])
            size += len(tag) + place[1]
        begins.append((_varint(_INITIALIZER << 3 | 2) + _varint(size), tag, size))
    total = len(nodes) + sum(len(begin) + size for begin, _, size in begins)
    with open(path, "wb") as file, open(data or os.devnull, "rb") as source:
        file.write(model.SerializeToString(deterministic=True))
        file.write(_varint(_GRAPH << 3 | 2) + _varint(total) + nodes)
        for (begin, tag, _), tensor, place in zip(begins, tensors, places):
            file.write(begin + tensor.SerializeToString(deterministic=True) + tag)
            if place is not None:
                source.seek(place[0])
                file.write(source.read(place[1]))


def _moved_inside(tensor: onnx.TensorProto) -> tuple[int, int] | None:
    """Removes a tensor's reference to a file of weights, and returns their offset and length; None if there is none."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    place = {entry.key: entry.value for entry in tensor.external_data}
    tensor.ClearField("data_location")
    tensor.ClearField("external_data")
    return int(place["offset"]), int(place["length"])


def _varint(value: int) -> bytes:
    """Encodes a number: seven bits per byte, the lowest first; the eighth bit is set if more bytes follow."""
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def read_header(path: pathlib.Path, described: bool = False) -> onnx.ModelProto:
    """Returns the model in a file without its weights, which are not read; onnx.load would hold the file in memory
    twice.

    Args:
      path: the file.
      described: whether to keep the small tensors, and of the others their names, dtypes and shapes, with `path` as the
        file of their weights.

    Raises:
      ValueError: a tensor does not have as many bytes as its dtype and shape require (only if `described`).
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        model = onnx.ModelProto()
        for number, begin, content, end in verify.fields(data, 0, len(data)):
            if number != _GRAPH:
                model.MergeFromString(data[begin:end])
                continue
            for inner, begin, first, stop in verify.fields(data, content, end):
                if inner != _INITIALIZER:
                    model.graph.MergeFromString(data[begin:stop])
                elif described:
                    model.graph.initializer.append(_described(data, first, stop, path.name))
        return model


def _described(data: mmap.mmap, begin: int, end: int, name: str) -> onnx.TensorProto:
    """Returns the tensor data[begin:end]; if it is not small, its weights stay in the file `name`."""
    if end - begin < _SMALL:
        return TensorProto.FromString(data[begin:end])
    tensor = TensorProto()
    place = None
    for number, field, first, stop in verify.fields(data, begin, end):
        if number == _RAW_DATA and place is None:
            place = dict(location=name, offset=first, length=stop - first)
        else:  # A second field of weights is refused by the checker.
            tensor.MergeFromString(data[field:stop])
    if place is not None:
        size = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if place["length"] != size:
            raise ValueError(f"{tensor.name} has {place['length']:,} bytes, but its shape requires {size:,}")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def describe(model: onnx.ModelProto) -> dict[str, dict[str, tuple[str, list]]]:
    """Returns {"inputs": {name: (dtype, shape)}, "outputs": ...} of a model, as verify.py describes a session."""

    def values(each):
        return {
            value.name: (
                helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim],
            )
            for value in each
        }

    return {"inputs": values(model.graph.input), "outputs": values(model.graph.output)}


def _gelu(graph: Graph, x: str, *, at: str, approximate: str = "none") -> str:
    def add(operator, *inputs):
        return graph.add(operator, *inputs, at=at)

    number = graph.number
    if approximate == "tanh":
        cube = add("Mul", x, add("Mul", x, x))
        inner = add("Mul", add("Add", x, add("Mul", cube, number(0.044715))), number(math.sqrt(2 / math.pi)))
        share = add("Tanh", inner)
    else:
        share = add("Erf", add("Mul", x, number(math.sqrt(0.5))))
    return add("Mul", add("Mul", x, number(0.5)), add("Add", share, number(1.0)))


def _rms_normalization(graph: Graph, x: str, gamma: str, *, at: str, axis: int, epsilon: float) -> str:
    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=at, **attributes)

    wide = add("Cast", x, to=TensorProto.FLOAT) if graph.dtype != np.float32 else x
    mean = add("ReduceMean", add("Mul", wide, wide), graph.ints(axis))
    small = graph.constant(f"constants/epsilon_{epsilon!r}", np.array(epsilon, np.float32))
    y = add("Div", wide, add("Sqrt", add("Add", mean, small)))
    y = add("Cast", y, to=graph.type) if graph.dtype != np.float32 else y
    return add("Mul", y, gamma)


def _rotary_embedding(graph: Graph, x: str, cos: str, sin: str, *, at: str, num_heads: int) -> str:
    """Emits x [B, L, H D] with the pairs (i, i + D / 2) rotated by cos and sin [B, L, D / 2]."""

    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=at, **attributes)

    cos, sin = (add("Unsqueeze", table, graph.ints(2)) for table in (cos, sin))
    parts = add("Reshape", x, graph.ints(0, 0, num_heads, -1))
    first, second = add("Split", parts, outputs=2, axis=-1, num_outputs=2)
    turned = (
        add("Sub", add("Mul", first, cos), add("Mul", second, sin)),
        add("Add", add("Mul", first, sin), add("Mul", second, cos)),
    )
    return add("Reshape", add("Concat", *turned, axis=-1), graph.ints(0, 0, -1))


def _attention(
    graph: Graph,
    query: str,
    key: str,
    value: str,
    bias: str | None = None,
    past_key: str | None = None,
    past_value: str | None = None,
    *,
    at: str,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    scale: float,
):
    """Emits Attention as defined in opset 23: inputs are [B, L, H D] if the numbers of heads are given, and otherwise
    [B, H, L, D]."""

    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=at, **attributes)

    flat = q_num_heads is not None
    if q_num_heads is not None and kv_num_heads is not None:
        query = graph.heads(query, q_num_heads, at)
        key, value = (graph.heads(x, kv_num_heads, at) for x in (key, value))
    if past_key is not None:
        key, value = add("Concat", past_key, key, axis=2), add("Concat", past_value, value, axis=2)
    present = key, value
    if q_num_heads != kv_num_heads and q_num_heads and kv_num_heads:
        group = q_num_heads // kv_num_heads
        key, value = (_repeat_heads(graph, x, group, q_num_heads, at) for x in present)
    query = add("Mul", query, graph.number(scale))
    scores = add("MatMul", query, add("Transpose", key, perm=[0, 1, 3, 2]))
    scores = scores if bias is None else add("Add", scores, bias)
    y = add("MatMul", add("Softmax", scores, axis=-1), value)
    y = graph.merge(y, at) if flat else y
    return y if past_key is None else (y, *present)


def _repeat_heads(graph: Graph, x: str, group: int, num_heads: int, at: str) -> str:
    """Emits x [B, G, M, D] as [B, H, M, D], with each head repeated `group` times."""
    x = graph.add("Unsqueeze", x, graph.ints(2), at=at)
    x = graph.add("Expand", x, graph.ints(1, 1, group, 1, 1), at=at)
    shape = graph.add("Concat", graph.ints(0, num_heads), graph.size(x, 3, at), graph.ints(-1), at=at, axis=0)
    return graph.add("Reshape", x, shape, at=at)


_EARLIER: dict[str, Callable[..., Any]] = {
    "Attention": _attention,
    "Gelu": _gelu,
    "RMSNormalization": _rms_normalization,
    "RotaryEmbedding": _rotary_embedding,
}
