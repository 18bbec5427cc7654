"""ALBERT (Lan et al. 2020, https://arxiv.org/abs/1909.11942): a variant of BERT whose layers share one set of weights,
with narrow embeddings that are projected to the hidden size.

token_ids, segment_ids, padding_mask [B, L] -> sequence [B, L, E], pooled [B, E]
masked_positions [B, P] -> logits [B, P, V] of the tokens there; without it [B, L, V]
next_sentence_logits [B, 2]: the order of two consecutive segments; index 0 means original order, 1 means swapped
"""

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.models import bert
from tfzoo.models.markers import Computed, Tied

_BASE = dict(
    vocab_size=30000,
    embedding_size=128,
    hidden_size=768,
    num_layers=12,
    share_layers=True,
    num_heads=12,
    intermediate_size=3072,
    max_positions=512,
    num_segments=2,
    activation="gelu_tanh",
    dropout=0.0,
    attention_dropout=0.0,
)
# Sizes from table 1 of the paper. Other fields are those of version 2 (https://github.com/google-research/albert), from
# config.json of https://huggingface.co/albert/albert-base-v2 and the other sizes; there xlarge has 16 heads, while
# section 3.1 has 32.
CONFIGS = {
    "albert_base_v2": _BASE,
    "albert_large_v2": _BASE | dict(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096),
    "albert_xlarge_v2": _BASE | dict(hidden_size=2048, num_layers=24, num_heads=16, intermediate_size=8192),
    "albert_xxlarge_v2": _BASE | dict(hidden_size=4096, num_heads=64, intermediate_size=16384),
}


class Model(nn.EncoderModel):
    """The encoder with ALBERT's two pre-training heads; the module's docstring gives the shapes."""

    family = "albert"
    HEADS = ("lm", "next_sentence", "classify", "tag", "span", "relation", "embed")
    DEFAULT_HEADS = ("lm", "next_sentence")
    POOLER, POOL = True, "pooled"


MODEL_TYPES = {
    "albert": dict(share_layers=True, embedding_size=128, activation="gelu_tanh", dropout=0.0, attention_dropout=0.0)
}
ARCHITECTURES = {
    "AlbertModel": (),
    "AlbertForPreTraining": ("lm", "next_sentence"),
    "AlbertForMaskedLM": ("lm",),
    "AlbertForSequenceClassification": ("classify",),
    "AlbertForTokenClassification": ("tag",),
    "AlbertForQuestionAnswering": ("span",),
}
CONFIG = bert.CONFIG | {"embedding_size": "embedding_size"}
REQUIRED = {
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
    "is_decoder": False,
    "is_encoder_decoder": False,
}
# Fields of the first version, which Hugging Face's code has never read.
IGNORED = (
    *("classifier_dropout_prob", "down_scale_factor", "gap_size", "net_structure_type", "num_memory_blocks"),
    "layers_to_keep",
)


def encode_config(config):
    if not config.embedding_size:
        raise UserError("embedding_size (0): ALBERT in Hugging Face's format projects its embeddings; set their size")
    return {}


PREFIX = "albert."
_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
_TFZOO = "encoder/stack/layer_0"
WEIGHTS = {
    "albert.embeddings.word_embeddings": "encoder/embeddings/tokens",
    "albert.embeddings.position_embeddings.weight": "encoder/embeddings/positions",
    "albert.embeddings.token_type_embeddings.weight": "encoder/embeddings/segments",
    "albert.embeddings.LayerNorm": "encoder/embeddings/norm",
    "albert.encoder.embedding_hidden_mapping_in": "encoder/embeddings/projection",
    f"{_LAYER}.attention.query": f"{_TFZOO}/attention/query",
    f"{_LAYER}.attention.key": f"{_TFZOO}/attention/key",
    f"{_LAYER}.attention.value": f"{_TFZOO}/attention/value",
    f"{_LAYER}.attention.dense": f"{_TFZOO}/attention/output",
    f"{_LAYER}.attention.LayerNorm": f"{_TFZOO}/self_norm",
    f"{_LAYER}.ffn": f"{_TFZOO}/mlp/up",
    f"{_LAYER}.ffn_output": f"{_TFZOO}/mlp/down",
    f"{_LAYER}.full_layer_layer_norm": f"{_TFZOO}/mlp_norm",
    "albert.pooler": "pooler/dense",
    "predictions.dense": "lm/transform",
    "predictions.LayerNorm": "lm/norm",
    "predictions.bias": "lm/bias",
    "predictions.decoder.weight": Tied("encoder/embeddings/tokens/embeddings"),
    "predictions.decoder.bias": Tied("lm/bias"),
    "albert.embeddings.position_ids": Computed(),
    "sop_classifier.classifier": "next_sentence/dense",
    "classifier": {"classify": "classify/dense", "tag": "tag/dense"},
    "qa_outputs": "span/dense",
}
