"""Layers. No family's name in here; what a layer does follows from its arguments.

Shapes, once for all: B batch, L query length, M key length, E hidden, H heads, D head_dim, F intermediate,
V vocabulary, P positions asked for.
"""

from tfzoo.nn.attention import (
    Attention,
    causal_mask,
    dot_product_attention,
    mask_bias,
    padding_attention_mask,
)
from tfzoo.nn.basic import Dense, Dropout, LayerNorm, activation
from tfzoo.nn.block import MLP, Block, Stack
from tfzoo.nn.embedding import Embeddings, TokenEmbedding
from tfzoo.nn.heads import Classifier, MaskedLMHead, Pooler
from tfzoo.nn.inputs import check_inputs
from tfzoo.nn.position import sinusoidal_positions

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "Classifier",
    "Dense",
    "Dropout",
    "Embeddings",
    "LayerNorm",
    "MaskedLMHead",
    "Pooler",
    "Stack",
    "TokenEmbedding",
    "activation",
    "causal_mask",
    "check_inputs",
    "dot_product_attention",
    "mask_bias",
    "padding_attention_mask",
    "sinusoidal_positions",
]
