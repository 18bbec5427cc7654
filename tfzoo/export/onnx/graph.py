"""An ONNX graph under construction, for the operators of its opset.

Emitters write in the operators of opset 23. What an older opset lacks is said here in operators that it has.
https://onnx.ai/onnx/operators/ describes them all.
"""

import math
import mmap
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tfzoo.errors import UserError
from tfzoo.export import verify

# standard: opset 23 is the first with Attention. compat: for runtimes of 2023 and later. genai: for onnxruntime-genai,
# with onnxruntime's own GroupQueryAttention, whose keys and values stay in one buffer.
PROFILES = {"standard": 23, "compat": 18, "genai": 23}
MICROSOFT = "com.microsoft"  # The domain of onnxruntime's own operators.
DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
MAX_BYTES = 2**31 - 2**24  # Protocol buffers end at 2 GiB; the rest is room for the nodes.
# Numbers of fields.
_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_SMALL = 4096  # Tensors of fewer bytes stay in the file of the graph.
_INT64_MAX = np.array(2**63 - 1, np.int64)
_MASKED = {"float32": -1e9, "float16": -3e4}  # What nn.mask_bias adds. Finite: a row without keys gives equal weights.


Emitter = Callable[..., Any]  # (graph, layer, *inputs, **options) -> output, or outputs


def no_emitter(what: str, layer: keras.layers.Layer) -> UserError:
    return UserError(
        f"{what} ({layer.path}) has no ONNX emitter; give its class a method onnx_call, or export with "
        f"--formats=savedmodel"
    )


def emitter_of(thing: Any, method: str, known: Mapping[type, Emitter]) -> Emitter | None:
    """What says in operators what a method of a layer or model says in keras.ops, found along the classes it is of: a
    method onnx_NAME of theirs, or a function in `known`. None where there is none: a subclass that has the method
    itself may compute something else than its base."""
    for cls in type(thing).__mro__:
        own = vars(cls).get(f"onnx_{method}")
        if own is not None:
            return lambda graph, thing, *inputs, **options: own(thing, graph, *inputs, **options)
        if cls in known:
            return known[cls]
        if method in vars(cls):
            break
    return None


class Graph:
    """Tensors are known by their names.

    Args:
      emitters: layer class -> what its `call` is in operators.
      profile: one of PROFILES.
      dtype: one of DTYPES, of weights and activations; outputs are float32 in any case.
      data: where weights are written as they come, beside the graph's file, so that no more than one of them is held
        in memory, and the graph's file does not reach the 2 GiB where protocol buffers end. None keeps them in it.
      copy_tied: the output's matrix is stored once more, where it is that of the embeddings, for what quantises the
        weights of matrix products.
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

    def add(self, operator: str, *inputs: str | None, at: str, outputs: int = 1, **attributes) -> Any:
        """Appends a node; `at` is the path of the layer that it stands for. Returns its output's name, or a tuple of
        names where there are several. None stands for an input left out."""
        if self.opset < 23 and operator in _EARLIER:
            return _EARLIER[operator](self, *inputs, at=at, **attributes)
        name = f"{at}/{operator}"
        if name in self._names:
            name = next(f"{name}_{i}" for i in range(2, len(self.nodes) + 3) if f"{name}_{i}" not in self._names)
        self._names.add(name)
        names = [f"{name}:{i}" for i in range(outputs)]
        given = ["" if x is None else x for x in inputs]
        while given and not given[-1]:
            given.pop()
        self.nodes.append(helper.make_node(operator, given, names, name=name, **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def emit(self, layer: keras.layers.Layer, *inputs, **options) -> Any:
        """Appends what `layer` does to `inputs`.

        Raises:
          UserError: the layer's class has no emitter.
        """
        emitter = self.emitter(layer)
        if emitter is None:
            raise no_emitter(type(layer).__name__, layer)
        return emitter(self, layer, *inputs, **options)

    def emitter(self, layer: keras.layers.Layer) -> Emitter | None:
        return emitter_of(layer, "call", self.emitters)

    @property
    def type(self) -> int:
        """Of weights and activations, ONNX's number."""
        return DTYPES[self.dtype.name]

    @property
    def outside(self) -> int:
        """The type of keys and values outside. One buffer for what comes in and goes on leaves no room for a Cast."""
        return self.type if self.profile == "genai" else TensorProto.FLOAT

    def weight(self, variable, shape: tuple[int, ...] | None = None) -> str:
        """A Keras variable as an initializer of its path's name; once, however often it is used."""
        if variable.path in self.initializers:
            return variable.path
        value = np.asarray(variable.numpy(), np.float32).astype(self.dtype, copy=False)
        return self.constant(variable.path, value if shape is None else value.reshape(shape))

    def joined(self, name: str, variables: Sequence[Any]) -> str:
        """Keras variables side by side: [..., O], [..., P], ... as one initializer [..., O + P + ...]."""
        return self.constant(name, np.concatenate([v.numpy() for v in variables], -1).astype(self.dtype, copy=False))

    def constant(self, name: str, value: np.ndarray) -> str:
        if name not in self.initializers:
            self.initializers[name] = self._tensor(name, np.asarray(value, order="C"))
        return name

    def number(self, value: float) -> str:
        """A scalar of the graph's dtype."""
        return self.constant(f"constants/{value!r}", np.array(value, self.dtype))

    def ints(self, *values: int) -> str:
        """int64 [number of values]."""
        return self.constant(f"constants/{'_'.join(map(str, values))}", np.array(values, np.int64))

    def whole(self, value: int) -> str:
        """int64 []."""
        return self.constant(f"constants/scalar_{value}", np.array(value, np.int64))

    def input(self, name: str, *axes, dtype: int = TensorProto.INT64) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, axes))
        return name

    def output(self, name: str, source: str, *axes, dtype: int = TensorProto.FLOAT) -> None:
        """Gives the tensor `source` a name outside, where it is of `dtype`."""
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
        """The finished model, into which the weights go: the graph has none afterwards.

        Raises:
          UserError: it is larger than its file can be, and no `data` was given.
        """
        size = sum(len(tensor.raw_data) for tensor in self.initializers.values())
        if size > MAX_BYTES:
            raise UserError(f"{name} has {size:,} bytes of weights, and an ONNX file of its own holds 2 GiB")
        # No shapes are stated on the way: see variants._quantise for what onnxruntime makes of them.
        # A constant that nothing reads would be a warning to whoever loads the graph.
        read = {name for node in self.nodes for name in node.input}
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, [])
        opsets = [helper.make_opsetid("", self.opset)]
        # The oldest format that has the opset, so that runtimes of its time read the file.
        version = helper.find_min_ir_version_for(opsets)
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in self.nodes} - {""})]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="tfzoo")
        for key in list(self.initializers):  # One by one, for each is copied.
            tensor = self.initializers.pop(key)
            if key in read:
                model.graph.initializer.append(tensor)
        return model

    def _tensor(self, name: str, value: np.ndarray) -> onnx.TensorProto:
        if self.data is None or value.nbytes < _SMALL:
            return numpy_helper.from_array(value, name)
        with open(self.data, "ab") as file:
            file.write(bytes(-file.tell() % 4096))  # Whole pages, so that a runtime can map them.
            place = dict(location=self.data.name, offset=file.tell(), length=value.nbytes)
            file.write(value.data)
        tensor = TensorProto(name=name, dims=value.shape, data_type=helper.np_dtype_to_tensor_dtype(value.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in place.items():
            tensor.external_data.add(key=key, value=str(text))
        return tensor

    # What layers share.

    def size(self, x: str, axis: int, at: str) -> str:
        """int64 [1]: x's length along an axis."""
        return self.add("Shape", x, at=at, start=axis, end=axis + 1)

    def scalar(self, x: str, at: str) -> str:
        """[1] -> []."""
        return self.add("Squeeze", x, self.ints(0), at=at)

    def range(self, start: str, end: str, at: str) -> str:
        """int64 [end - start]; start and end are [1]."""
        return self.add("Range", self.scalar(start, at), self.scalar(end, at), self.whole(1), at=at)

    def rows(self, table: str, ids: str, at: str) -> str:
        """table [N, E], ids [B, L] -> [B, L, E]. Gather counts negative ids from the end: they are made huge."""
        ids = self.add("BitwiseAnd", ids, self.constant("constants/int64_max", _INT64_MAX), at=at)
        return self.add("Gather", table, ids, at=at)

    def gather(self, sequence: str, positions: str, at: str) -> str:
        """sequence [B, L, E], positions [B, P] -> [B, P, E]."""
        indices = self.add("Unsqueeze", positions, self.ints(2), at=at)
        return self.add("GatherND", sequence, indices, at=at, batch_dims=1)

    def narrow(self, x: str, at: str) -> str:
        """What is float32 outside, in the graph's dtype."""
        return x if self.dtype == np.float32 else self.add("Cast", x, at=at, to=self.type)

    def masked(self, seen: str, at: str) -> str:
        """bool -> what is added to scores: 0 where a query may see a key."""
        return self.add("Where", seen, self.number(0.0), self.number(_MASKED[self.dtype.name]), at=at)

    def heads(self, x: str, num_heads: int, at: str) -> str:
        """x [B, L, H D] -> [B, H, L, D]."""
        x = self.add("Reshape", x, self.ints(0, 0, num_heads, -1), at=at)
        return self.add("Transpose", x, at=at, perm=[0, 2, 1, 3])

    def merge(self, x: str, at: str) -> str:
        """x [B, H, L, D] -> [B, L, H D]."""
        x = self.add("Transpose", x, at=at, perm=[0, 2, 1, 3])
        return self.add("Reshape", x, self.ints(0, 0, -1), at=at)


def write_file(model: onnx.ModelProto, path: pathlib.Path) -> None:
    """Writes `model`, which loses its weights: one after the other, for to serialize all at once takes a multiple of
    their bytes. https://protobuf.dev/programming-guides/encoding/ is what is written."""
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    nodes = model.graph.SerializeToString(deterministic=True)
    model.ClearField("graph")
    sizes = [len(tensor.SerializeToString(deterministic=True)) for tensor in tensors]
    begins = [_varint(_INITIALIZER << 3 | 2) + _varint(size) for size in sizes]
    with open(path, "wb") as file:
        file.write(model.SerializeToString(deterministic=True))
        file.write(_varint(_GRAPH << 3 | 2) + _varint(len(nodes) + sum(map(len, begins)) + sum(sizes)) + nodes)
        for begin, tensor in zip(begins, tensors):
            file.write(begin + tensor.SerializeToString(deterministic=True))


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def read_header(path: pathlib.Path) -> onnx.ModelProto:
    """The model of a file without its weights, which stay unread: onnx.load would hold all of the file twice."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        model = onnx.ModelProto()
        for number, begin, content, end in verify.fields(data, 0, len(data)):
            if number != _GRAPH:
                model.MergeFromString(data[begin:end])
                continue
            for inner, begin, _, stop in verify.fields(data, content, end):
                if inner != _INITIALIZER:
                    model.graph.MergeFromString(data[begin:stop])
        return model


def describe(model: onnx.ModelProto) -> dict[str, dict[str, tuple[str, list]]]:
    """{"inputs": {name: (dtype, shape)}, "outputs": ...}, as verify.py has them of a session."""

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
    """x [B, L, H D], cos and sin [B, L, D / 2]: pairs (i, i + D / 2) turned."""

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
    """Attention as of opset 23: [B, L, H D] with numbers of heads, or [B, H, L, D] without."""

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
    """x [B, G, M, D] -> [B, H, M, D], each head `group` times."""
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
