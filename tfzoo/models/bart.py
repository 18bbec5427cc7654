"""BART (Lewis et al. 2020, https://arxiv.org/abs/1910.13461): a post-norm encoder-decoder with learned positions. mBART
(Liu et al. 2020, https://arxiv.org/abs/2001.08210) is pre-norm and scales its embeddings. PLBART (Ahmad et al. 2021,
https://arxiv.org/abs/2103.06333), a model of programs, is post-norm and scales its embeddings.

token_ids, padding_mask [B, M]; decoder_token_ids, decoder_padding_mask [B, L]
-> memory [B, M, E], sequence [B, L, E], logits [B, L, V] of each next token
classify_logits [B, C], from the decoder's last token; encoder and decoder read the same text
"""

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.models.markers import Reshaped, Tied

_FAMILY = dict(position_offset=2, norm_epsilon=1e-5)
_MBART = _FAMILY | dict(norm_first=True)
_BASE = _FAMILY | dict(vocab_size=50265, hidden_size=768, num_layers=6, num_heads=12, intermediate_size=3072)
_BASE |= dict(max_positions=1024)
_WIDE = dict(hidden_size=1024, num_layers=12, num_heads=16, intermediate_size=4096)
_LARGE_MBART = _BASE | _WIDE | _MBART | dict(scale_embeddings=True, attention_dropout=0.0)
# From config.json of https://huggingface.co/facebook/bart-base, bart-large, bart-large-cnn, mbart-large-cc25 and
# mbart-large-50; base and large also from section 2.1 of the BART paper.
CONFIGS = {
    "bart_base": _BASE,
    "bart_large": _BASE | _WIDE,
    "bart_large_cnn": _BASE | _WIDE | dict(vocab_size=50264, attention_dropout=0.0),
    "mbart_large_cc25": _LARGE_MBART | dict(vocab_size=250027),
    "mbart_large_50": _LARGE_MBART | dict(vocab_size=250054),
}


class Model(nn.EncoderDecoderModel):
    """Encoder, decoder and language model head."""

    family = "bart"
    CLASSIFIER_HIDDEN = "tanh"
    LAYOUT = ("cls $A sep", "cls $A sep sep $B sep")
    LOGITS_BIAS = True


MODEL_TYPES = {"bart": _FAMILY, "mbart": _MBART, "plbart": _FAMILY}
_KINDS = ("Bart", "MBart", "PLBart")
ARCHITECTURES: dict[str, tuple[str, ...]] = {f"{name}Model": () for name in _KINDS}
ARCHITECTURES |= {f"{name}ForConditionalGeneration": ("lm",) for name in _KINDS}
ARCHITECTURES |= {f"{name}ForSequenceClassification": ("classify",) for name in _KINDS}
CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers",
    "num_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim",
    "max_positions": "max_position_embeddings",
    "activation": "activation_function",
    "scale_embeddings": "scale_embedding",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "initializer_range": "init_std",
}
REQUIRED = {"is_encoder_decoder": True, "is_decoder": False, "tie_word_embeddings": True}
# Fields for training, and fairseq's fields, which Hugging Face's BART has never read.
IGNORED = (
    *("encoder_layerdrop", "decoder_layerdrop", "activation_dropout", "classif_dropout", "extra_pos_embeddings"),
    *("add_bias_logits", "add_final_layer_norm", "normalize_before", "normalize_embedding"),
    *("static_position_embeddings", "save_step"),
)


def decode_config(hub):
    for field in ("attention_heads", "ffn_dim"):
        encoder, decoder = (hub.get(f"{stack}_{field}") for stack in ("encoder", "decoder"))
        if encoder != decoder:
            raise UserError(f"decoder_{field} is {decoder!r}, but encoder_{field} is {encoder!r}; make them equal")
    return {}


def encode_config(config):
    return {
        "decoder_layers": config.resolved_num_decoder_layers,
        "decoder_attention_heads": config.num_heads,
        "decoder_ffn_dim": config.intermediate_size,
    }


def new_config(config):
    return {"decoder_start_token_id": 2}  # </s>, for mBART as well: its language codes are not known here.


PREFIX = "model."
_TOKENS = Tied("encoder/embeddings/tokens/embeddings")
WEIGHTS = {
    "model.shared": "encoder/embeddings/tokens",
    "lm_head.weight": _TOKENS,
    "final_logits_bias": Reshaped("lm/bias", (1, -1)),
    "classification_head.dense": "classify/hidden",
    "classification_head.out_proj": "classify/dense",
}
for _stack in ("encoder", "decoder"):
    _layer, _tfzoo = f"model.{_stack}.layers.{{}}", f"{_stack}/stack/layer_{{}}"
    WEIGHTS |= {
        f"model.{_stack}.embed_tokens.weight": _TOKENS,
        f"model.{_stack}.embed_positions.weight": f"{_stack}/embeddings/positions",
        f"model.{_stack}.layernorm_embedding": f"{_stack}/embeddings/norm",
        f"{_layer}.self_attn_layer_norm": f"{_tfzoo}/self_norm",
        f"{_layer}.encoder_attn_layer_norm": f"{_tfzoo}/cross_norm",
        f"{_layer}.fc1": f"{_tfzoo}/mlp/up",
        f"{_layer}.fc2": f"{_tfzoo}/mlp/down",
        f"{_layer}.final_layer_norm": f"{_tfzoo}/mlp_norm",
        f"model.{_stack}.layer_norm": f"{_stack}/stack/norm",
    }
    for _q, _query in dict(q_proj="query", k_proj="key", v_proj="value", out_proj="output").items():
        WEIGHTS[f"{_layer}.self_attn.{_q}"] = f"{_tfzoo}/attention/{_query}"
        WEIGHTS[f"{_layer}.encoder_attn.{_q}"] = f"{_tfzoo}/cross_attention/{_query}"
