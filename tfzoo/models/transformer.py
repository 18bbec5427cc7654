"""The Transformer (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762): a post-norm encoder-decoder with sinusoidal
positions and one embedding matrix for encoder, decoder and output. Marian's translation models have the same
architecture, with the sines before the cosines. PEGASUS (Zhang et al. 2020, https://arxiv.org/abs/1912.08777) is a
pre-norm version of Marian's.

token_ids, padding_mask [B, M]; decoder_token_ids, decoder_padding_mask [B, L]
-> memory [B, M, E], sequence [B, L, E], logits [B, L, V] of each next token
"""

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.models import bart
from tfzoo.models.markers import Computed

_FAMILY = dict(positions="sinusoidal", embedding_norm=False, norm_epsilon=1e-6)
_BASE = _FAMILY | dict(
    vocab_size=37000,
    hidden_size=512,
    num_layers=6,
    num_heads=8,
    intermediate_size=2048,
    max_positions=1024,  # Sinusoids have no limit, but the table needs a size.
    scale_embeddings=True,
    activation="relu",
    attention_dropout=0.0,
    initializer_range=512**-0.5,
)
# From table 3; the English-German vocabulary size from section 5.1. The initializer, which is that of the embeddings,
# and the norm's epsilon follow the authors' code, https://github.com/tensorflow/tensor2tensor. The attention
# projections have biases as in Marian.
CONFIGS = {
    "transformer_base": _BASE,
    "transformer_big": _BASE
    | dict(hidden_size=1024, num_heads=16, intermediate_size=4096, dropout=0.3, initializer_range=1024**-0.5),
}


class Model(nn.EncoderDecoderModel):
    """Encoder, decoder and language model head. The bias of the logits is 0 except in Marian's models."""

    family = "transformer"
    LOGITS_BIAS = True


# Files with interleaved sines and cosines are written in Marian's layout with the model_type "transformer", because
# Hugging Face's Marian would not interleave them.
MODEL_TYPES = {
    "marian": _FAMILY | dict(positions="sinusoidal_concat", norm_epsilon=1e-5),
    "pegasus": _FAMILY | dict(positions="sinusoidal_concat", norm_epsilon=1e-5, norm_first=True),
    "transformer": _FAMILY,
}
ARCHITECTURES = {
    "MarianModel": (),
    "MarianMTModel": ("lm",),
    "PegasusModel": (),
    "PegasusForConditionalGeneration": ("lm",),
    "TransformerModel": (),
    "TransformerForConditionalGeneration": ("lm",),
}
CONFIG = bart.CONFIG
REQUIRED = bart.REQUIRED | {"share_encoder_decoder_embeddings": True}
IGNORED = bart.IGNORED


def decode_config(hub):
    size = hub.get("decoder_vocab_size")
    if size not in (None, hub.get("vocab_size")):
        raise UserError(f"decoder_vocab_size is {size!r}, but vocab_size is {hub.get('vocab_size')!r}; make them equal")
    return bart.decode_config(hub)


def encode_config(config):
    kind = "transformer"
    if config.positions == "sinusoidal_concat":
        kind = "pegasus" if config.norm_first else "marian"
    return bart.encode_config(config) | {"model_type": kind}


def new_config(config):  # As in published models, padding is the last token and starts the decoder.
    last = config.vocab_size - 1
    return {"pad_token_id": last, "decoder_start_token_id": last, "eos_token_id": 0, "forced_eos_token_id": 0}


def computed(model, model_type, written=False):
    """Returns position tables by tensor name.

    With `written`, these are only the tables that Hugging Face writes: PEGASUS's, and Marian's without a head.
    """
    if model_type == "transformer" or (written and model_type == "marian" and model.head_names):
        return {}
    table = nn.sinusoidal_positions(model.config.max_positions, model.config.hidden_size, interleaved=False)
    return {f"model.{stack}.embed_positions.weight": table for stack in ("encoder", "decoder")}


PREFIX = bart.PREFIX
WEIGHTS = bart.WEIGHTS | {
    "model.encoder.embed_positions.weight": Computed(),
    "model.decoder.embed_positions.weight": Computed(),
}
