"""Emitters of heads, and what each reads of a body."""

import keras

from tfzoo import nn
from tfzoo.export.onnx.graph import Emitter, Graph


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
    """x [B, L, E] times the token embeddings, with the head's bias."""

    def add(operator, *inputs, **attributes):
        return graph.add(operator, *inputs, at=layer.path, **attributes)

    embeddings = layer.embedding.embeddings
    bias = graph.weight(layer.bias) if isinstance(layer, nn.MaskedLMHead) or layer.use_bias else None
    if graph.copy_tied:  # A bias is not to be quantised.
        table = graph.constant(f"{embeddings.path}/transposed", embeddings.numpy().T.astype(graph.dtype))
        logits = add("MatMul", x, table)
        return logits if bias is None else add("Add", logits, bias)
    # Runtimes transpose, and put a bias under the table, once, when they load the graph.
    table = add("Transpose", graph.weight(embeddings), perm=[1, 0])
    if bias is not None:  # As one more product: to add it would be to read and write all logits once more.
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
    """The logits of one head, as nn.Model.answer gives them."""
    head = model.heads[name]
    sequence = outputs["sequence"]
    if name == "next_sentence":
        return graph.emit(head, outputs["pooled"])
    if name == "classify":
        mask = inputs.get("decoder_padding_mask", inputs["padding_mask"])
        return graph.emit(head, _pool(graph, model.pool, outputs, mask, f"{model.name}/pool"))
    if name == "relation":
        return graph.emit(head, sequence, inputs["entity_positions"])
    return graph.emit(head, sequence)


def _pool(graph: Graph, how: str, outputs: dict, attention_mask: str, at: str) -> str:
    """nn.pool: one vector a row [B, E]."""
    sequence = outputs["sequence"]
    if how == "pooled":
        return outputs["pooled"]
    if how == "mean":
        real = graph.add("Cast", graph.add("Unsqueeze", attention_mask, graph.ints(2), at=at), at=at, to=graph.type)
        total = graph.add("ReduceSum", graph.add("Mul", sequence, real, at=at), graph.ints(1), at=at, keepdims=0)
        count = graph.add("ReduceSum", real, graph.ints(1), at=at, keepdims=0)
        return graph.add("Div", total, graph.add("Max", count, graph.number(1.0), at=at), at=at)
    if how == "first":
        place = graph.add("ArgMax", attention_mask, at=at, axis=1)
    else:  # The last real token is where the sum of 0, 1, 2, ... over real tokens is largest.
        length = graph.size(attention_mask, 1, at)
        places = graph.add("Mul", attention_mask, graph.range(graph.ints(0), length, at), at=at)
        place = graph.add("ArgMax", places, at=at, axis=1)
    return graph.add("Squeeze", graph.gather(sequence, place, at), graph.ints(1), at=at)


EMITTERS: dict[type, Emitter] = {
    nn.Classifier: _classifier,
    nn.Discriminator: _discriminator,
    nn.LMHead: _lm_head,
    nn.MaskedLMHead: _masked_lm_head,
    nn.Pooler: _pooler,
    nn.RelationClassifier: _relation_classifier,
}
