"""DistilBERT (Sanh et al. 2019, https://arxiv.org/abs/1910.01108): a variant of BERT with half of the layers and
without segments or pooler.

token_ids, padding_mask [B, L] -> sequence [B, L, E]
masked_positions [B, P] -> logits [B, P, V] of the tokens there; without it [B, L, V]
"""

from tfzoo import nn
from tfzoo.models.markers import Computed, Tied

_BASE = dict(
    vocab_size=30522,
    hidden_size=768,
    num_layers=6,
    num_heads=12,
    intermediate_size=3072,
    max_positions=512,
)
# From section 3 of the paper; the others from the list in
# https://github.com/huggingface/transformers-research-projects/tree/main/distillation. Vocabulary sizes are BERT's.
CONFIGS = {
    "distilbert_base_uncased": _BASE,
    "distilbert_base_cased": _BASE | dict(vocab_size=28996),
    "distilbert_base_multilingual_cased": _BASE | dict(vocab_size=119547),
}


class Model(nn.EncoderModel):
    """The encoder and its heads; the module's docstring gives the shapes."""

    family = "distilbert"
    INPUTS = tuple(name for name in nn.EncoderModel.INPUTS if name != "segment_ids")
    CLASSIFIER_HIDDEN = "relu"


MODEL_TYPES = {"distilbert": {"norm_epsilon": 1e-12}}
ARCHITECTURES = {
    "DistilBertModel": (),
    "DistilBertForMaskedLM": ("lm",),
    "DistilBertForSequenceClassification": ("classify",),
    "DistilBertForTokenClassification": ("tag",),
    "DistilBertForQuestionAnswering": ("span",),
}
CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_positions": "max_position_embeddings",
    "activation": "activation",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
}
REQUIRED = {"tie_word_embeddings": True, "is_decoder": False, "is_encoder_decoder": False}
# sinusoidal_pos_embds only determines how the position table was initialized; the table is stored and read either way.
IGNORED = ("sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout", "tie_weights_")
PREFIX = "distilbert."
_LAYER, _TFZOO = "distilbert.transformer.layer.{}", "encoder/stack/layer_{}"
WEIGHTS = {
    "distilbert.embeddings.word_embeddings": "encoder/embeddings/tokens",
    "distilbert.embeddings.position_embeddings.weight": "encoder/embeddings/positions",
    "distilbert.embeddings.LayerNorm": "encoder/embeddings/norm",
    f"{_LAYER}.attention.q_lin": f"{_TFZOO}/attention/query",
    f"{_LAYER}.attention.k_lin": f"{_TFZOO}/attention/key",
    f"{_LAYER}.attention.v_lin": f"{_TFZOO}/attention/value",
    f"{_LAYER}.attention.out_lin": f"{_TFZOO}/attention/output",
    f"{_LAYER}.sa_layer_norm": f"{_TFZOO}/self_norm",
    f"{_LAYER}.ffn.lin1": f"{_TFZOO}/mlp/up",
    f"{_LAYER}.ffn.lin2": f"{_TFZOO}/mlp/down",
    f"{_LAYER}.output_layer_norm": f"{_TFZOO}/mlp_norm",
    "vocab_transform": "lm/transform",
    "vocab_layer_norm": "lm/norm",
    "vocab_projector.weight": Tied("encoder/embeddings/tokens/embeddings"),
    "vocab_projector.bias": "lm/bias",
    "distilbert.embeddings.position_ids": Computed(),
    "pre_classifier": "classify/hidden",
    "classifier": {"classify": "classify/dense", "tag": "tag/dense"},
    "qa_outputs": "span/dense",
}
