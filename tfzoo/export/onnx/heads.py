"""Emitters of heads, and the outputs of the body that each head reads."""

import keras
import numpy as np
from onnx import TensorProto

from tfzoo import nn
from tfzoo.export.onnx.graph import Emitter, Graph
from tfzoo.nn.heads import SMALLEST


def _masked_lm_head(graph: Graph, layer: nn.MaskedLMHead, x: str) -> str:
    return _tied(graph, layer, graph.emit(layer.norm, graph.emit(layer.transform, x)))


def _lm_head(graph: Graph, layer: nn.LMHead, x: str) -> str:
    if layer.scale != 1.0:
        x = graph.add("Mul", x, graph.number(layer.scale), at=layer.path)
    if layer.dense is None:
        return _tied(graph, layer, x)
    x = graph.emit(layer.dense, x)
    return graph.add("Add", x, graph.weight(layer.bias), at=layer.path) if layer.use_bias else x


def _tied(graph: Graph, layer: nn.MaskedLMHead | nn.LMHead, x: str) -> str:
    """Emits x [B, L, E] times the token embeddings, plus the head's bias."""

    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=layer.path, **attributes)

    embeddings = layer.embedding.embeddings
    bias = graph.weight(layer.bias) if isinstance(layer, nn.MaskedLMHead) or layer.use_bias else None
    if graph.copy_tied:  # The bias stays separate, so that it is not quantised.
        table = graph.constant(f"{embeddings.path}/transposed", embeddings.numpy().T.astype(graph.dtype))
        logits = add("MatMul", x, table)
        return logits if bias is None else add("Add", logits, bias)
    # Runtimes evaluate the transpose and the concatenation with the bias once, when they load the graph.
    table = add("Transpose", graph.weight(embeddings), perm=[1, 0])
    if bias is not None:  # As an additional row of the product; adding it would read and write all logits once more.
        table = add("Concat", table, add("Unsqueeze", bias, graph.ints(0)), axis=0)
        x = add("Pad", x, graph.ints(0, 0, 0, 0, 0, 1), graph.number(1.0))
    return add("MatMul", x, table)


def _pooler(graph: Graph, layer: nn.Pooler, sequence: str) -> str:
    return graph.emit(layer.dense, graph.add("Gather", sequence, graph.whole(0), at=layer.path, axis=1))


def _classifier(graph: Graph, layer: nn.Classifier, x: str) -> str:
    return graph.emit(layer.dense, x if layer.hidden is None else graph.emit(layer.hidden, x))


def _discriminator(graph: Graph, layer: nn.Discriminator, sequence: str) -> str:
    logits = graph.emit(layer.dense, graph.emit(layer.hidden, sequence))
    return graph.add("Squeeze", logits, graph.ints(-1), at=layer.path)


def _relation_classifier(graph: Graph, layer: nn.RelationClassifier, sequence: str, positions: str) -> str:
    pair = graph.gather(sequence, positions, layer.path)
    return graph.emit(layer.classifier, graph.add("Reshape", pair, graph.ints(0, -1), at=layer.path))


def answer(graph: Graph, model: keras.Model, name: str, outputs: dict, inputs: dict) -> str:
    """Emits the logits of one head, or its vectors, as in nn.Model.answer."""
    head = model.heads[name]
    sequence = outputs["sequence"]
    if name == "next_sentence":
        return graph.emit(head, outputs["pooled"])
    if name == "classify":
        mask = inputs.get("decoder_padding_mask", inputs["padding_mask"])
        return graph.emit(head, _pool(graph, model.pool, outputs, mask, f"{model.name}/pool"))
    if name == "embed":
        return graph.emit(head, sequence, inputs["padding_mask"], inputs.get("pooling_mask"))
    if name == "relation":
        return graph.emit(head, sequence, inputs["entity_positions"])
    return graph.emit(head, sequence)


def _pool(graph: Graph, how: str, outputs: dict, attention_mask: str, at: str, counted: str | None = None) -> str:
    """Emits nn.pool, one vector per row [B, E]; `counted` is the pooling_mask, by default attention_mask."""
    sequence, counted = outputs["sequence"], counted or attention_mask

    def add(operator: str, *inputs, **attributes) -> str:
        return graph.add(operator, *inputs, at=at, **attributes)

    if how == "pooled":
        return outputs["pooled"]
    if how == "max":
        real = add("Cast", add("Unsqueeze", counted, graph.ints(2)), to=TensorProto.BOOL)
        lowest = graph.number(-6e4 if graph.dtype == np.float16 else -1e9)
        return add("ReduceMax", add("Where", real, sequence, lowest), graph.ints(1), keepdims=0)
    if how in ("first", "last"):
        if how == "first":
            place = add("ArgMax", counted, axis=1)
        else:  # The last real token is where mask * (0, 1, 2, ...) is largest.
            length = graph.size(counted, 1, at)
            place = add("ArgMax", add("Mul", counted, graph.range(graph.ints(0), length, at)), axis=1)
        return add("Squeeze", graph.gather(sequence, place, at), graph.ints(1))
    if how == "weighted_mean":
        counted = add("Mul", counted, add("CumSum", attention_mask, graph.whole(1)))
    weights = add("Cast", add("Unsqueeze", counted, graph.ints(2)), to=graph.type)
    total = add("ReduceSum", add("Mul", sequence, weights), graph.ints(1), keepdims=0)
    count = add("Max", add("ReduceSum", weights, graph.ints(1), keepdims=0), graph.number(1.0))
    return add("Div", total, add("Sqrt", count) if how == "mean_sqrt_len" else count)


def _embedding(graph: Graph, layer: nn.EmbeddingHead, sequence: str, mask: str, counted: str | None = None) -> str:
    vectors = [_pool(graph, how, {"sequence": sequence}, mask, layer.path, counted) for how in layer.embed.pooling]
    x = vectors[0] if len(vectors) == 1 else graph.add("Concat", *vectors, at=layer.path, axis=-1)
    dense = iter(layer.dense)
    for step in layer.embed.layers:
        x = _normalized(graph, x, layer.path) if step == "normalize" else graph.emit(next(dense), x)
    return x


def _normalized(graph: Graph, x: str, at: str) -> str:
    """Emits x divided by its length, computed in float32 because squares soon overflow in half precision."""

    def add(operator: str, *inputs, **attributes) -> str:
        return graph.add(operator, *inputs, at=at, **attributes)

    wide = x if graph.type == TensorProto.FLOAT else add("Cast", x, to=TensorProto.FLOAT)
    square = add("ReduceSum", add("Mul", wide, wide), graph.ints(1), keepdims=1)
    least = graph.constant("constants/shortest", np.array(SMALLEST, np.float32))
    return graph.narrow(add("Div", wide, add("Sqrt", add("Max", square, least))), at)


EMITTERS: dict[type, Emitter] = {
    nn.Classifier: _classifier,
    nn.Discriminator: _discriminator,
    nn.EmbeddingHead: _embedding,
    nn.LMHead: _lm_head,
    nn.MaskedLMHead: _masked_lm_head,
    nn.Pooler: _pooler,
    nn.RelationClassifier: _relation_classifier,
}
