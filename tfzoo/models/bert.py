"""BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805): a bidirectional post-norm encoder with segments.

token_ids, segment_ids, padding_mask [B, L] -> sequence [B, L, E], pooled [B, E]
masked_positions [B, P] -> logits [B, P, V] of the tokens there; without it [B, L, V]
next_sentence_logits [B, 2]: index 0 means that segment B follows segment A, 1 that it does not
"""

from tfzoo import nn
from tfzoo.models.markers import Computed, Tied

_BASE = dict(
    vocab_size=30522,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    intermediate_size=3072,
    max_positions=512,
    num_segments=2,
)
_LARGE = _BASE | dict(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096)
# Sizes from the table of https://github.com/google-research/bert#bert; base and large also from section 3 of the paper.
# Vocabulary sizes from the list "Pre-trained models" in the README.
CONFIGS = {
    "bert_tiny": _BASE | dict(hidden_size=128, num_layers=2, num_heads=2, intermediate_size=512),
    "bert_mini": _BASE | dict(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024),
    "bert_small": _BASE | dict(hidden_size=512, num_layers=4, num_heads=8, intermediate_size=2048),
    "bert_medium": _BASE | dict(hidden_size=512, num_layers=8, num_heads=8, intermediate_size=2048),
    "bert_base": _BASE,
    "bert_base_uncased": _BASE,
    "bert_base_cased": _BASE | dict(vocab_size=28996),
    "bert_base_chinese": _BASE | dict(vocab_size=21128),
    "bert_base_multilingual_cased": _BASE | dict(vocab_size=119547),
    "bert_large": _LARGE,
    "bert_large_uncased": _LARGE,
    "bert_large_cased": _LARGE | dict(vocab_size=28996),
}


class Model(nn.EncoderModel):
    """The encoder with BERT's two pre-training heads; the module's docstring gives the shapes."""

    family = "bert"
    HEADS = ("lm", "next_sentence", "classify", "tag", "span", "relation", "embed")
    DEFAULT_HEADS = ("lm", "next_sentence")
    POOLER, POOL = True, "pooled"


# Hugging Face's format: the fields of config.json, and the modules that hold the weights.
MODEL_TYPES: dict[str, dict] = {"bert": {}, "ernie": {}}  # model_type -> the fields that all its models share.
_HEADS = {
    "Model": (),
    "ForPreTraining": ("lm", "next_sentence"),
    "ForMaskedLM": ("lm",),
    "ForNextSentencePrediction": ("next_sentence",),
    "ForSequenceClassification": ("classify",),
    "ForTokenClassification": ("tag",),
    "ForQuestionAnswering": ("span",),
}
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    kind + name: heads for kind in ("Bert", "Ernie") for name, heads in _HEADS.items()
}
CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "activation": "hidden_act",
    "norm_epsilon": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
}
REQUIRED = {"position_embedding_type": "absolute", "is_decoder": False, "tie_word_embeddings": True}
REQUIRED |= {"is_encoder_decoder": False}
REQUIRED |= {"use_task_id": False}  # A field of ERNIE, whose later models have task embeddings.
# Google's poolers all have this shape; without task embeddings the number of tasks has no effect.
IGNORED = (
    *("directionality", "task_type_vocab_size"),
    *(f"pooler_{x}" for x in "fc_size num_attention_heads num_fc_layers size_per_head type".split()),
)
PREFIX = "bert."
PREFIXES = {"ernie": "ernie."}
_LAYER, _TFZOO = "bert.encoder.layer.{}", "encoder/stack/layer_{}"
WEIGHTS = {
    "bert.embeddings.word_embeddings": "encoder/embeddings/tokens",
    "bert.embeddings.position_embeddings.weight": "encoder/embeddings/positions",
    "bert.embeddings.token_type_embeddings.weight": "encoder/embeddings/segments",
    "bert.embeddings.LayerNorm": "encoder/embeddings/norm",
    f"{_LAYER}.attention.self.query": f"{_TFZOO}/attention/query",
    f"{_LAYER}.attention.self.key": f"{_TFZOO}/attention/key",
    f"{_LAYER}.attention.self.value": f"{_TFZOO}/attention/value",
    f"{_LAYER}.attention.output.dense": f"{_TFZOO}/attention/output",
    f"{_LAYER}.attention.output.LayerNorm": f"{_TFZOO}/self_norm",
    f"{_LAYER}.intermediate.dense": f"{_TFZOO}/mlp/up",
    f"{_LAYER}.output.dense": f"{_TFZOO}/mlp/down",
    f"{_LAYER}.output.LayerNorm": f"{_TFZOO}/mlp_norm",
    "bert.pooler.dense": "pooler/dense",
    "cls.predictions.transform.dense": "lm/transform",
    "cls.predictions.transform.LayerNorm": "lm/norm",
    "cls.predictions.bias": "lm/bias",
    "cls.predictions.decoder.weight": Tied("encoder/embeddings/tokens/embeddings"),
    "cls.predictions.decoder.bias": Tied("lm/bias"),
    "bert.embeddings.position_ids": Computed(),
    "cls.seq_relationship": "next_sentence/dense",
    "classifier": {"classify": "classify/dense", "tag": "tag/dense"},
    "qa_outputs": "span/dense",
}
