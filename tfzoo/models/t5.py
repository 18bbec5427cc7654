"""T5 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683): an encoder-decoder, pre-norm, with learned biases for
relative positions, unscaled scores and no other biases. Version 1.1, Flan-T5 and mT5 (Xue et al. 2021) have gated MLPs
and an output matrix of their own.

token_ids, padding_mask [B, M]; decoder_token_ids, decoder_padding_mask [B, L], which start with the padding id
-> memory [B, M, E], sequence [B, L, E], logits [B, L, V] of each next token
classify_logits [B, C], from the decoder's last token; encoder and decoder read the same text
"""

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.models.markers import Computed, Tied, When

_FAMILY = dict(positions="relative", norm="rms", norm_first=True, norm_epsilon=1e-6, biases="none", scale_scores=False)
_FAMILY |= dict(embedding_norm=False, initializer="fan_in")
_GATED = dict(activation="gelu_tanh", gated_mlp=True, tie_embeddings=False)
_WIDTH = ("hidden_size", "num_layers", "num_heads", "head_dim", "intermediate_size")


def _size(*sizes, **others):
    return _FAMILY | dict(zip(_WIDTH, sizes, strict=True), vocab_size=32128, activation="relu") | others


# From section 3.7 of the paper; the padded vocabulary size from config.json of https://huggingface.co/google-t5.
CONFIGS = {
    "t5_small": _size(512, 6, 8, 64, 2048),
    "t5_base": _size(768, 12, 12, 64, 3072),
    "t5_large": _size(1024, 24, 16, 64, 4096),
    "t5_3b": _size(1024, 24, 32, 128, 16384),
    "t5_11b": _size(1024, 24, 128, 128, 65536),
}
# From https://github.com/google-research/text-to-text-transfer-transformer/blob/main/released_checkpoints.md#t511; mT5
# has the same sizes with its own vocabulary: config.json of https://huggingface.co/google, t5-v1_1-* and mt5-*.
_V1_1 = {
    "small": (512, 8, 6, 64, 1024),
    "base": (768, 12, 12, 64, 2048),
    "large": (1024, 24, 16, 64, 2816),
    "xl": (2048, 24, 32, 64, 5120),
    "xxl": (4096, 24, 64, 64, 10240),
}
CONFIGS |= {f"t5_v1_1_{name}": _size(*sizes, **_GATED) for name, sizes in _V1_1.items()}
CONFIGS |= {f"mt5_{name}": _size(*sizes, **_GATED, vocab_size=250112) for name, sizes in _V1_1.items()}


class Model(nn.EncoderDecoderModel):
    """Encoder, decoder and language model head; each stack has one table of relative biases."""

    family = "t5"
    CLASSIFIER_HIDDEN = "tanh"

    def make_lm(self):
        # The authors' code (mesh_tensorflow, shared_embedding_and_softmax_weights) scales tied logits.
        scale = self.config.hidden_size**-0.5 if self.config.tie_embeddings else 1.0
        return self._head(nn.LMHead, "lm", self.tokens, scale=scale)


MODEL_TYPES = {"t5": _FAMILY, "mt5": _FAMILY}
ARCHITECTURES: dict[str, tuple[str, ...]] = {f"{name}Model": () for name in ("T5", "MT5")}
ARCHITECTURES |= {f"{name}ForConditionalGeneration": ("lm",) for name in ("T5", "MT5")}
ARCHITECTURES |= {f"{name}ForSequenceClassification": ("classify",) for name in ("T5", "MT5")}
CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "intermediate_size": "d_ff",
    "relative_buckets": "relative_attention_num_buckets",
    "relative_distance": "relative_attention_max_distance",
    "norm_epsilon": "layer_norm_epsilon",
    "attention_dropout": "dropout_rate",
    "dropout": "dropout_rate",
}
# feed_forward_proj -> activation, gated_mlp
_MLPS = {"relu": ("relu", False), "gated-gelu": ("gelu_tanh", True), "gated-silu": ("silu", True)}
REQUIRED = {"feed_forward_proj": tuple(_MLPS), "is_encoder_decoder": True, "is_decoder": False}
REQUIRED |= {"tie_word_embeddings": (True, False)}
IGNORED = ("n_positions",)  # T5 has no position table.


def decode_config(hub):
    mt5 = hub["model_type"] == "mt5"
    name = hub.get("feed_forward_proj", "gated-gelu" if mt5 else "relu")
    function, gated = _MLPS[name]
    # Newer files also contain these fields.
    for field, value in (("dense_act_fn", "gelu_new" if name == "gated-gelu" else function), ("is_gated_act", gated)):
        if hub.get(field, value) != value:
            raise UserError(f"{field} is {hub[field]!r}, but feed_forward_proj is {name!r}; make them agree")
    # Files of transformers 5 indicate an untied matrix only by scale_decoder_outputs.
    tied = False not in (hub.get("tie_word_embeddings"), hub.get("scale_decoder_outputs")) and not mt5
    return {"activation": function, "gated_mlp": gated, "tie_embeddings": tied}


def encode_config(config):
    names = {mlp: name for name, mlp in _MLPS.items()}
    if (mlp := (config.activation, config.gated_mlp)) not in names:
        raise UserError(
            f"activation {mlp[0]!r} with gated_mlp {mlp[1]}: T5 in Hugging Face's format supports only "
            f"{', '.join(_MLPS)}"
        )
    return {
        "num_decoder_layers": config.resolved_num_decoder_layers,
        "d_kv": config.resolved_head_dim,
        "feed_forward_proj": names[mlp],
        "tie_word_embeddings": config.tie_embeddings,
    }


def new_config(config):
    return {"decoder_start_token_id": 0}  # The id of the padding token.


PREFIX = "transformer."


def saved_name(name, heads):  # Only the class with this head has the body as a submodule.
    return PREFIX + name if "classify" in heads and not name.startswith("classification_head") else name


_TOKENS = Tied("encoder/embeddings/tokens/embeddings")
WEIGHTS = {
    "shared": "encoder/embeddings/tokens",
    "lm_head.weight": _TOKENS,
    "lm_head": "lm/dense",
    "classification_head.dense": "classify/hidden",
    "classification_head.out_proj": "classify/dense",
    "decoder.block.{}.layer.1.layer_norm": "decoder/stack/layer_{}/cross_norm",
    # A table in the first version's files that no layer uses.
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias": Computed(),
}
for _stack, _mlp in (("encoder", 1), ("decoder", 2)):  # The decoder's layer 1 is cross-attention.
    _layer, _tfzoo = f"{_stack}.block.{{}}.layer", f"{_stack}/stack/layer_{{}}"
    WEIGHTS |= {
        f"{_stack}.embed_tokens.weight": _TOKENS,
        f"{_stack}.block.0.layer.0.SelfAttention.relative_attention_bias": f"{_stack}/stack/relative_bias",
        f"{_layer}.0.layer_norm": f"{_tfzoo}/self_norm",
        f"{_layer}.{_mlp}.DenseReluDense.wi": When("gated_mlp", False, f"{_tfzoo}/mlp/up"),
        f"{_layer}.{_mlp}.DenseReluDense.wi_0": f"{_tfzoo}/mlp/gate",
        f"{_layer}.{_mlp}.DenseReluDense.wi_1": When("gated_mlp", True, f"{_tfzoo}/mlp/up"),
        f"{_layer}.{_mlp}.DenseReluDense.wo": f"{_tfzoo}/mlp/down",
        f"{_layer}.{_mlp}.layer_norm": f"{_tfzoo}/mlp_norm",
        f"{_stack}.final_layer_norm": f"{_stack}/stack/norm",
    }
    for _q, _query in dict(q="query", k="key", v="value", o="output").items():
        WEIGHTS[f"{_layer}.0.SelfAttention.{_q}"] = f"{_tfzoo}/attention/{_query}"
        WEIGHTS[f"{_layer}.1.EncDecAttention.{_q}"] = f"{_tfzoo}/cross_attention/{_query}"
