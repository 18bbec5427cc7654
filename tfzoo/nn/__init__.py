"""Layers shared by all model families. No module here mentions a family: arguments alone determine what a layer does.

Shape abbreviations used throughout: B batch size, L query length, M key length, E hidden size, H heads, D head_dim, F
intermediate size, V vocabulary size, C classes, P requested positions.
"""

from tfzoo.nn.attention import Attention, FullAttention, cached_attention, dot_product_attention
from tfzoo.nn.basic import (
    Dense,
    Dropout,
    LayerNorm,
    RMSNorm,
    activation,
    compiled_steps,
    few_rows,
    make_initializer,
    make_norm,
    merged_variables,
    read,
    unset_weights,
    without_gradients,
)
from tfzoo.nn.block import MLP, Block, Stack
from tfzoo.nn.cache import Cache
from tfzoo.nn.embedding import Embeddings, TokenEmbedding
from tfzoo.nn.heads import (
    Classifier,
    Discriminator,
    EmbeddingHead,
    LMHead,
    MaskedLMHead,
    Pooler,
    RelationClassifier,
    gather_positions,
    output_of,
    pool,
)
from tfzoo.nn.inputs import check_inputs
from tfzoo.nn.kernel import FavorAttention, FavorConfig
from tfzoo.nn.lean import LeanAttention
from tfzoo.nn.lsh import LocalAttention, LSHAttention, LSHConfig, ReversibleTower
from tfzoo.nn.mask import Mask, causal_mask, mask_bias, padding_attention_mask
from tfzoo.nn.model import DecoderModel, EncoderDecoderModel, EncoderModel, Model, Tower
from tfzoo.nn.position import RelativeBias, rotary_tables, rotate, sinusoidal_positions
from tfzoo.nn.relative import RelativeAttention, TwoStreamConfig, TwoStreamStack, TwoStreamTower
from tfzoo.nn.shapes import shapes_only
from tfzoo.nn.stored import StoredMatrix, store_weights, stored_weights

__all__ = [
    "LSHAttention",
    "LSHConfig",
    "LocalAttention",
    "ReversibleTower",
    "MLP",
    "Attention",
    "Block",
    "Cache",
    "Classifier",
    "DecoderModel",
    "Dense",
    "Discriminator",
    "Dropout",
    "EmbeddingHead",
    "Embeddings",
    "EncoderDecoderModel",
    "EncoderModel",
    "FavorAttention",
    "FavorConfig",
    "FullAttention",
    "StoredMatrix",
    "compiled_steps",
    "few_rows",
    "store_weights",
    "stored_weights",
    "LMHead",
    "LayerNorm",
    "LeanAttention",
    "Mask",
    "MaskedLMHead",
    "Model",
    "RelationClassifier",
    "Pooler",
    "RMSNorm",
    "RelativeAttention",
    "RelativeBias",
    "Stack",
    "TokenEmbedding",
    "Tower",
    "TwoStreamConfig",
    "TwoStreamStack",
    "TwoStreamTower",
    "activation",
    "cached_attention",
    "causal_mask",
    "check_inputs",
    "dot_product_attention",
    "gather_positions",
    "make_initializer",
    "make_norm",
    "mask_bias",
    "merged_variables",
    "output_of",
    "padding_attention_mask",
    "pool",
    "read",
    "rotary_tables",
    "rotate",
    "shapes_only",
    "sinusoidal_positions",
    "unset_weights",
    "without_gradients",
]
