"""BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805): a bidirectional encoder, post-norm, with segments.

token_ids, segment_ids, padding_mask [B, L] -> sequence [B, L, E], pooled [B, E]
masked_positions [B, P] -> logits [B, P, V] of the words there; without it [B, L, V]
next_sentence_logits [B, 2]: index 0 says that segment B follows A, 1 that it does not
"""

import keras
from keras import ops

from tfzoo import nn
from tfzoo.config import TransformerConfig

_BASE = dict(
    vocab_size=30522,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    intermediate_size=3072,
    max_positions=512,
    num_segments=2,
)
# The table of https://github.com/google-research/bert#bert; base and large: section 3 of the paper.
CONFIGS = {
    "bert_tiny": _BASE | dict(hidden_size=128, num_layers=2, num_heads=2, intermediate_size=512),
    "bert_mini": _BASE | dict(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024),
    "bert_small": _BASE | dict(hidden_size=512, num_layers=4, num_heads=8, intermediate_size=2048),
    "bert_medium": _BASE | dict(hidden_size=512, num_layers=8, num_heads=8, intermediate_size=2048),
    "bert_base": _BASE,
    "bert_large": _BASE | dict(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096),
}


class Encoder(keras.layers.Layer):
    """token_ids, segment_ids, padding_mask [B, L] -> {"sequence": [B, L, E], "pooled": [B, E]}."""

    def __init__(self, config: TransformerConfig, **kwargs):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.embeddings = nn.Embeddings(config, dtype=policy, name="embeddings")
        self.stack = nn.Stack(config, dtype=policy, name="stack")
        self.pooler = nn.Pooler(config.hidden_size, _initializer(config), dtype=policy, name="pooler")

    def call(self, inputs, training=False):
        x = self.embeddings(inputs["token_ids"], inputs.get("segment_ids"), training=training)
        bias = None
        if "padding_mask" in inputs:
            bias = nn.mask_bias(nn.padding_attention_mask(inputs["padding_mask"]), x.dtype)
        sequence = self.stack(x, bias=bias, training=training)
        return {"sequence": sequence, "pooled": self.pooler(sequence)}


class Model(keras.Model):
    """The encoder with BERT's two pre-training heads; the page above states the shapes."""

    INPUTS = ("token_ids", "segment_ids", "padding_mask", "masked_positions")

    def __init__(self, config: TransformerConfig, *, dtype=None, name="bert"):
        super().__init__(dtype=dtype, name=name)
        policy = self.dtype_policy
        self.config = config
        self.encoder = Encoder(config, dtype=policy, name="encoder")
        self.masked_lm = nn.MaskedLMHead(config, self.encoder.embeddings.tokens, dtype=policy, name="masked_lm")
        self.next_sentence = nn.Classifier(2, _initializer(config), dtype=policy, name="next_sentence")
        # Creates the variables. Two tokens, for Keras warns of a softmax over one.
        self({"token_ids": ops.zeros((1, min(2, config.max_positions)), "int32")})

    def call(self, inputs, training=False):
        nn.check_inputs(inputs, self.INPUTS[:1], self.INPUTS[1:])
        outputs = self.encoder({k: v for k, v in inputs.items() if k != "masked_positions"}, training=training)
        logits = self.masked_lm(outputs["sequence"], inputs.get("masked_positions"))
        return outputs | {"logits": logits, "next_sentence_logits": self.next_sentence(outputs["pooled"])}


def _initializer(config: TransformerConfig):
    return keras.initializers.TruncatedNormal(stddev=config.initializer_range)
