"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"): a causal pre-norm decoder.

token_ids, padding_mask [B, L] -> sequence [B, L, E], logits [B, L, V] of each next token
"""

from tfzoo import nn
from tfzoo.models.markers import Computed, Conv1D, Fused, Tied

# Common to all sizes: https://github.com/openai/gpt-2/blob/master/src/model.py
_FAMILY = dict(norm_first=True, embedding_norm=False, activation="gelu_tanh", norm_epsilon=1e-5)
_FAMILY |= dict(initializer="scaled_residual")  # Section 2.3.
_BASE = _FAMILY | dict(
    vocab_size=50257,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    intermediate_size=3072,
    max_positions=1024,
)
# From section 2.3, table 2; heads of size 64 from the released hparams.json.
CONFIGS = {
    "gpt2": _BASE,
    "gpt2_medium": _BASE | dict(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096),
    "gpt2_large": _BASE | dict(hidden_size=1280, num_layers=36, num_heads=20, intermediate_size=5120),
    "gpt2_xl": _BASE | dict(hidden_size=1600, num_layers=48, num_heads=25, intermediate_size=6400),
}


class Model(nn.DecoderModel):
    """The decoder with its language model head, which is tied to the token embeddings."""

    family = "gpt2"


MODEL_TYPES = {"gpt2": _FAMILY}
ARCHITECTURES = {
    "GPT2Model": (),
    "GPT2LMHeadModel": ("lm",),
    "GPT2ForSequenceClassification": ("classify",),
    "GPT2ForTokenClassification": ("tag",),
    "GPT2ForQuestionAnswering": ("span",),
}
CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_positions": "n_positions",
    "activation": "activation_function",
    "norm_epsilon": "layer_norm_epsilon",
    "dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
    "initializer_range": "initializer_range",
}
REQUIRED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "is_encoder_decoder": False,
}
# The summary fields belong to a head for multiple choice; n_ctx repeats n_positions.
IGNORED = (
    *("embd_pdrop", "n_ctx", "n_special", "predict_special_tokens"),
    *(f"summary_{x}" for x in "type use_proj activation proj_to_labels first_dropout".split()),
)


def decode_config(hub):
    return {"intermediate_size": hub.get("n_inner") or 4 * hub["n_embd"]}


def new_config(config):  # The default, <|endoftext|>, may be missing in another vocabulary.
    return {} if config.vocab_size > 50256 else {"bos_token_id": None, "eos_token_id": None}


PREFIX = "transformer."
_LAYER, _TFZOO = "transformer.h.{}", "decoder/stack/layer_{}"
WEIGHTS = {
    "transformer.wte": "decoder/embeddings/tokens",
    "transformer.wpe.weight": "decoder/embeddings/positions",
    f"{_LAYER}.ln_1": f"{_TFZOO}/self_norm",
    f"{_LAYER}.attn.c_attn": Fused([f"{_TFZOO}/attention/{name}" for name in ("query", "key", "value")], conv1d=True),
    f"{_LAYER}.attn.c_proj": Conv1D(f"{_TFZOO}/attention/output"),
    f"{_LAYER}.ln_2": f"{_TFZOO}/mlp_norm",
    f"{_LAYER}.mlp.c_fc": Conv1D(f"{_TFZOO}/mlp/up"),
    f"{_LAYER}.mlp.c_proj": Conv1D(f"{_TFZOO}/mlp/down"),
    "transformer.ln_f": "decoder/stack/norm",
    "lm_head.weight": Tied("decoder/embeddings/tokens/embeddings"),
    "score": "classify/dense",
    "classifier": "tag/dense",
    "qa_outputs": "span/dense",
    f"{_LAYER}.attn.bias": Computed(),  # The causal mask, in older files.
    f"{_LAYER}.attn.masked_bias": Computed(),
}
