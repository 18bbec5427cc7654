"""Performer (Choromanski et al. 2020, https://arxiv.org/abs/2009.14794): a transformer that estimates attention with
random features, in time and memory linear in the sequence length.

token_ids, padding_mask [B, L] -> sequence [B, L, E], logits [B, L, V] of the tokens there or, with causal=true, of each
next token
masked_positions [B, P] -> logits [B, P, V] of the tokens there only
"""

from tfzoo import nn

Config = nn.FavorConfig
# The paper's runs used pre-norm and fixed sinusoids (section 4: "pre-existing Transformer training code in Jax"), ReLU
# (appendix D.4), 256 features (A.3), the 32,768 tokens of PG-19 (A.1.1) and 8,192 positions (section 4.5). The paper
# does not state how often features are redrawn (section 4.2).
_BASE = dict(
    vocab_size=32768,
    hidden_size=512,
    num_layers=6,
    num_heads=8,
    intermediate_size=2048,
    max_positions=8192,
    positions="sinusoidal",
    embedding_norm=False,
    norm_first=True,
    norm_epsilon=1e-6,
    activation="relu",
    attention="favor",
    num_features=256,
    redraw_every=1000,
)
CONFIGS = {
    "performer_small": _BASE | dict(hidden_size=64, num_heads=1, intermediate_size=64),  # Appendix E
    "performer_regular": _BASE,  # Section 4.1
    "performer_protein": _BASE  # Figure 6; 25 amino acids (appendix C.2) and tfzoo's five special tokens.
    | dict(vocab_size=30, num_layers=36, intermediate_size=1024, max_positions=1024),
}


class Model(nn.EncoderModel):
    """The encoder (the paper's "B") or, with causal=true, the decoder ("U"); the module's docstring gives shapes."""

    family = "performer"
    INPUTS = ("token_ids", "padding_mask", "position_ids", "masked_positions", "entity_positions")
    POOL = "mean"

    def make_body(self, config):
        self.causal = config.causal
        self.encoder = nn.Tower(config, causal=self.causal, dtype=self.dtype_policy, name="encoder")
        self.pooler = None

    def make_lm(self):
        return nn.Model.make_lm(self) if self.causal else super().make_lm()


MODEL_TYPES: dict[str, dict] = {"performer": {}}
CONFIG = WEIGHTS = None  # Hugging Face has no Performer: weights are stored under tfzoo's names.
