"""Llama (Touvron et al. 2023, https://arxiv.org/abs/2302.13971) and similar models: a causal decoder with rotary
positions, RMS norms, gated MLPs and few key and value heads. Mistral (Jiang et al. 2023) has sliding-window attention,
Qwen2 has biases on queries, keys and values, and Qwen3 normalizes queries and keys.

token_ids, padding_mask [B, L] -> sequence [B, L, E], logits [B, L, V] of each next token
"""

from tfzoo import nn
from tfzoo.config import check_scaling
from tfzoo.errors import UserError
from tfzoo.models.markers import Computed, Tied

_BLOCK = dict(norm="rms", norm_first=True, embedding_norm=False, activation="silu", gated_mlp=True, biases="none")
_FAMILY = _BLOCK | dict(positions="rotary", tie_embeddings=False, dropout=0.0, attention_dropout=0.0)
_WIDTH = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size")


def _size(base, *sizes, **others):
    return base | dict(zip(_WIDTH, sizes)) | others


_2 = _FAMILY | dict(vocab_size=32000, max_positions=4096, norm_epsilon=1e-5)
_SCALING = dict(rope_type="llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
_3 = _2 | dict(vocab_size=128256, max_positions=131072, rotary_theta=500000.0)
_3_1 = _3 | dict(rotary_scaling=_SCALING | dict(factor=8.0))
_3_2 = _3 | dict(rotary_scaling=_SCALING | dict(factor=32.0), tie_embeddings=True)
_QWEN2 = _FAMILY | dict(vocab_size=151936, biases="qkv", rotary_theta=1e6, norm_epsilon=1e-6, max_positions=131072)
_QWEN3 = _QWEN2 | dict(biases="none", qk_norm=True, max_positions=40960)
# From config.json of https://huggingface.co/ followed by the name in the comment.
CONFIGS = {
    "llama_tiny": _size(_2, 256, 4, 8, 8, 32, 688),  # tfzoo's own size, for experiments.
    "llama2_7b": _size(_2, 4096, 32, 32, 32, 128, 11008),  # meta-llama/Llama-2-7b-hf
    "llama2_13b": _size(_2, 5120, 40, 40, 40, 128, 13824),  # meta-llama/Llama-2-13b-hf
    "llama2_70b": _size(_2, 8192, 80, 64, 8, 128, 28672),  # meta-llama/Llama-2-70b-hf
    "llama3_8b": _size(_3_1, 4096, 32, 32, 8, 128, 14336),  # meta-llama/Llama-3.1-8B
    "llama3_70b": _size(_3_1, 8192, 80, 64, 8, 128, 28672),  # meta-llama/Llama-3.1-70B
    "llama3_1b": _size(_3_2, 2048, 16, 32, 8, 64, 8192),  # meta-llama/Llama-3.2-1B
    "llama3_3b": _size(_3_2, 3072, 28, 24, 8, 128, 8192),  # meta-llama/Llama-3.2-3B
    "mistral_7b": _size(_2, 4096, 32, 32, 8, 128, 14336, max_positions=32768, window=4096),  # mistralai/Mistral-7B-v0.1
    "qwen2_0.5b": _size(_QWEN2, 896, 24, 14, 2, 64, 4864, tie_embeddings=True),  # Qwen/Qwen2-0.5B
    "qwen2_7b": _size(_QWEN2, 3584, 28, 28, 4, 128, 18944, vocab_size=152064),  # Qwen/Qwen2-7B
    "qwen3_0.6b": _size(_QWEN3, 1024, 28, 16, 8, 128, 3072, tie_embeddings=True),  # Qwen/Qwen3-0.6B-Base
}


class Model(nn.DecoderModel):
    """The decoder with its language model head."""

    family = "llama"
    LAYOUT = ("bos? $A", None)


MODEL_TYPES = {
    "llama": _FAMILY,
    "mistral": _FAMILY,
    "qwen2": _FAMILY | dict(biases="qkv"),
    "qwen3": _FAMILY | dict(qk_norm=True),
}
ARCHITECTURES = {
    f"{name}{task}": heads
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3")
    for task, heads in (("Model", ()), ("ForCausalLM", ("lm",)), ("ForSequenceClassification", ("classify",)))
}
CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "activation": "hidden_act",
    "norm_epsilon": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
}
REQUIRED = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "use_mrope": False}
REQUIRED |= {"rope_interleaved": False}
IGNORED = ("pretraining_tp", "max_window_layers", "max_sequence_length", "is_llama_config")


def decode_config(hub):
    kind = hub["model_type"]
    window = hub.get("sliding_window") if kind != "llama" else 0
    if kind != "mistral":  # In Qwen models a window requires use_sliding_window, which is not supported.
        window = 0
    layers, required = hub.get("layer_types") or (), "sliding_attention" if window else "full_attention"
    if any(layer != required for layer in layers):
        unsupported = next(layer for layer in layers if layer != required)
        raise UserError(f"layer_types has {unsupported!r}, but every layer of this {kind} must have {required}")
    if layers and len(layers) != hub["num_hidden_layers"]:
        raise UserError(
            f"layer_types has {len(layers)} items, but num_hidden_layers is {hub['num_hidden_layers']}; make them equal"
        )
    theta, scaling = _rope(hub)
    return {"rotary_theta": theta, "rotary_scaling": scaling, "window": window or 0}


def _rope(hub):
    """Returns rotary_theta and rotary_scaling.

    Older files have rope_theta and rope_scaling, newer ones have both in rope_parameters.
    """
    sources = []
    for name in ("rope_parameters", "rope_scaling"):
        fields = hub.get(name) or {}
        if not isinstance(fields, dict):
            raise UserError(f"{name} is {fields!r}, not an object; replace it with an object")
        fields = {key: value for key, value in fields.items() if value is not None}
        old_type = fields.pop("type", None)
        if old_type is not None and fields.setdefault("rope_type", old_type) != old_type:
            raise UserError(f"{name} has the type {old_type!r} and the rope_type {fields['rope_type']!r}; remove one")
        if fields:
            sources.append((name, {"rope_type": "default"} | fields))
    thetas = {hub.get("rope_theta"), *(fields.pop("rope_theta", None) for _, fields in sources)} - {None}
    if len(thetas) > 1:
        raise UserError(f"rope_theta is {' and '.join(map(str, sorted(thetas)))}; remove one")
    parts = {hub.get("partial_rotary_factor"), *(fields.pop("partial_rotary_factor", None) for _, fields in sources)}
    if parts - {None, 1}:
        raise UserError(
            f"partial_rotary_factor is {max(parts - {None})}; only 1 (rotation of whole heads) is supported"
        )
    if len(sources) == 2 and sources[0][1] != sources[1][1]:
        raise UserError(
            "rope_scaling contradicts rope_parameters; put the correct values, with rope_theta, into rope_parameters "
            "and remove rope_scaling"
        )
    name, scaling = sources[0] if sources else ("rope_parameters", {})
    original, max_positions = scaling.get("original_max_position_embeddings"), hub.get("max_position_embeddings")
    if scaling.get("rope_type") == "dynamic" and original not in (None, max_positions):
        raise UserError(
            f"{name}: original_max_position_embeddings is {original!r}, but dynamic scaling uses "
            f"max_position_embeddings ({max_positions!r}); remove it"
        )
    check_scaling(scaling, None, name)
    theta = thetas.pop() if thetas else 10000.0
    theta = float(theta) if type(theta) is int else theta
    return theta, {} if scaling.get("rope_type") == "default" else scaling


def encode_config(config):
    scaling = dict(config.rotary_scaling)
    kind = scaling.pop("type", "default")
    rope = {"rope_theta": config.rotary_theta, "rope_type": kind} | scaling
    return {
        "head_dim": config.resolved_head_dim,
        "num_key_value_heads": config.resolved_num_kv_heads,
        "rope_parameters": rope,
        "sliding_window": config.window or None,
        **({"model_type": "mistral"} if config.window else {}),  # The only one of these types that reads a window.
    }


PREFIX = "model."
_LAYER, _TFZOO = "model.layers.{}", "decoder/stack/layer_{}"
WEIGHTS = {
    "model.embed_tokens": "decoder/embeddings/tokens",
    f"{_LAYER}.input_layernorm": f"{_TFZOO}/self_norm",
    f"{_LAYER}.self_attn.q_proj": f"{_TFZOO}/attention/query",
    f"{_LAYER}.self_attn.k_proj": f"{_TFZOO}/attention/key",
    f"{_LAYER}.self_attn.v_proj": f"{_TFZOO}/attention/value",
    f"{_LAYER}.self_attn.o_proj": f"{_TFZOO}/attention/output",
    f"{_LAYER}.self_attn.q_norm": f"{_TFZOO}/attention/query_norm",
    f"{_LAYER}.self_attn.k_norm": f"{_TFZOO}/attention/key_norm",
    f"{_LAYER}.post_attention_layernorm": f"{_TFZOO}/mlp_norm",
    f"{_LAYER}.mlp.gate_proj": f"{_TFZOO}/mlp/gate",
    f"{_LAYER}.mlp.up_proj": f"{_TFZOO}/mlp/up",
    f"{_LAYER}.mlp.down_proj": f"{_TFZOO}/mlp/down",
    "model.norm": "decoder/stack/norm",
    "lm_head": "lm/dense",
    "lm_head.weight": Tied("decoder/embeddings/tokens/embeddings"),
    "score": "classify/dense",
    f"{_LAYER}.self_attn.rotary_emb.inv_freq": Computed(),
}
