"""Two-stream relative attention in float64 NumPy, a pair of positions at a time (Yang et al. 2019, appendix A.2)."""

import math

import numpy as np

from tests.nn import formulas


def encoding(distance, size):
    """Dai et al. 2019, section 3.3: the sinusoids of the distance from the query back to the key."""
    angles = [distance / 10000 ** (2 * i / size) for i in range(size // 2)]
    return np.array([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])


def attention(v, layer, queries, places, memory, start, sees, segments=None):
    """Returns the attention output [Q, E] for one row of a batch.

    Args:
      queries: [Q, E], at the positions `places`.
      memory: [M, E], from the position `start` on.
      sees: sees(i, j) is whether the query at position i may attend to position j; a query that may not attend to
        anything averages.
      segments: position -> segment.
    """
    size, heads, width = queries.shape[-1], layer.num_heads, layer.head_dim
    content_bias, position_bias = v(layer.content_bias), v(layer.position_bias)
    segment_bias, embeddings = v(layer.segment_bias), v(layer.segments)
    result = np.zeros((len(queries), heads, width))
    for n, i in enumerate(places):
        for h in range(heads):
            query = queries[n] @ v(layer.query.kernel)[:, h]
            scores, values = [], []
            for m, other in enumerate(memory):
                j = start + m
                key = other @ v(layer.key.kernel)[:, h]
                relative = encoding(i - j, size) @ v(layer.relative.kernel)[:, h]
                score = (query + content_bias[h]) @ key + (query + position_bias[h]) @ relative
                if segments is not None:
                    score += (query + segment_bias[h]) @ embeddings[int(segments[i] != segments[j]), h]
                scores.append(score / math.sqrt(width) if sees(i, j) else -np.inf)
                values.append(other @ v(layer.value.kernel)[:, h])
            scores = np.array(scores)
            weights = np.exp(scores - scores.max()) if np.isfinite(scores).any() else np.ones(len(scores))
            result[n, h] = weights / weights.sum() @ np.array(values)
    return np.einsum("nhd,ehd->ne", result, v(layer.output_projection.kernel))


def block(v, layer, activation, x, attended):
    x = formulas.layer_norm(v, layer.self_norm, x + attended)
    return formulas.layer_norm(v, layer.mlp_norm, x + formulas.mlp(v, layer.mlp, x, activation))


def stack(
    v,
    layer,
    content,
    target_mapping=None,
    segment_ids=None,
    padding_mask=None,
    permutation_mask=None,
    previous_sequence=None,
    previous_mask=None,
):
    """Returns TwoStreamStack's outputs (content, query, previous_sequence) for its arguments as arrays."""
    batch, length, _ = content.shape
    past = 0 if previous_sequence is None else previous_sequence.shape[2]
    rows: list[list] = [[], [], []]
    for b in range(batch):
        targets = None if target_mapping is None else np.argmax(target_mapping[b], 1)
        segments = None
        if segment_ids is not None:
            segments = {i: segment_ids[b, i] if i >= 0 else 0 for i in range(-past, length)}

        def visible(i, j, b=b):
            if j < 0:
                return previous_mask is None or previous_mask[b, past + j]
            real = padding_mask is None or padding_mask[b, j]
            return real and (permutation_mask is None or permutation_mask[b, i, j])

        h = content[b]
        g = None if targets is None else np.broadcast_to(v(layer.query_start)[0], (len(targets), h.shape[-1]))
        memories = []
        for n, each in enumerate(layer.blocks):
            memory = h if previous_sequence is None else np.concatenate([previous_sequence[n, b], h])
            memories.append(memory[-layer.config.memory_length :])
            common = (memory, -past)
            new = attention(
                v, each.attention, h, range(length), *common, lambda i, j: i == j or visible(i, j), segments
            )
            if g is not None:
                attended = attention(v, each.attention, g, targets, *common, visible, segments)
                g = block(v, each, layer.config.activation, g, attended)
            h = block(v, each, layer.config.activation, h, new)
        for row, value in zip(rows, (h, g, memories), strict=True):
            row.append(value)
    return (
        np.array(rows[0]),
        None if target_mapping is None else np.array(rows[1]),
        None if previous_sequence is None else np.swapaxes(rows[2], 0, 1),
    )
