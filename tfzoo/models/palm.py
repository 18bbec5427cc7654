"""PaLM (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311): a causal decoder whose blocks compute attention and
MLP in parallel, with one key/value head for all queries, SwiGLU, rotary positions and no biases.

token_ids, padding_mask [B, L] -> sequence [B, L, E], logits [B, L, V] of each next token
"""

from tfzoo import nn

# Section 2: SwiGLU, parallel layers, multi-query attention, RoPE, shared input and output embeddings, no biases.
_FAMILY = dict(
    positions="rotary",
    num_kv_heads=1,
    head_dim=256,
    norm_first=True,
    embedding_norm=False,
    norm_epsilon=1e-6,
    activation="silu",
    gated_mlp=True,
    parallel_blocks=True,
    biases="none",
    dropout=0.0,
    attention_dropout=0.0,
)
_BASE = _FAMILY | dict(vocab_size=256000, max_positions=2048)
# From table 1. The MLP is four times as wide as the model; vocabulary and length are from sections 2 and 5.
CONFIGS = {
    "palm_tiny": _BASE  # tfzoo's own size, for experiments.
    | dict(vocab_size=32000, hidden_size=256, num_layers=4, num_heads=4, head_dim=64, intermediate_size=1024),
    "palm_8b": _BASE | dict(hidden_size=4096, num_layers=32, num_heads=16, intermediate_size=16384),
    "palm_62b": _BASE | dict(hidden_size=8192, num_layers=64, num_heads=32, intermediate_size=32768),
    "palm_540b": _BASE | dict(hidden_size=18432, num_layers=118, num_heads=48, intermediate_size=73728),
}


class Model(nn.DecoderModel):
    """The decoder with its language model head, which is tied to the token embeddings."""

    family = "palm"


MODEL_TYPES: dict[str, dict] = {"palm": {}}
CONFIG = WEIGHTS = None  # Hugging Face has no PaLM: weights are stored under tfzoo's names.
