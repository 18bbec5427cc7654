"""Reformer (Kitaev et al. 2020, https://arxiv.org/abs/2001.04451): a transformer with LSH attention and reversible
layers.

token_ids, padding_mask [B, L] -> sequence [B, L, 2 E], the two streams concatenated; logits [B, L, V]
rotations.i [H, D, num_hashes, sum(num_buckets) / 2]: the hash rotations of the i-th "lsh" layer. Without it they are
the same in every evaluation, and different in every training call, where all replicas have the same ones.

L is static and at most the product of axial_shape.
"""

from collections.abc import Sequence
from typing import Any

from tfzoo import nn

Config = nn.LSHConfig
# From config.json of https://huggingface.co/google/reformer-crime-and-punishment and google/reformer-enwik8.
_CRIME: dict[str, Any] = dict(vocab_size=320, hidden_size=256, num_layers=6, num_heads=2, head_dim=64)
_CRIME |= dict(attention_layers=["local", "lsh"] * 3, num_buckets=[64, 128], dropout=0.05, attention_dropout=0.05)
_CRIME |= dict(intermediate_size=512, max_positions=524288, axial_shape=[512, 1024], axial_dims=[64, 192])
_ENWIK8: dict[str, Any] = dict(vocab_size=258, hidden_size=1024, num_layers=12, num_heads=8, head_dim=128)
_ENWIK8 |= dict(attention_layers=["local", "local", "lsh", "local"] * 3, num_hashes=4, num_buckets=[512])
_ENWIK8 |= dict(lsh_chunk_length=256, local_chunk_length=128, max_positions=65536)
_ENWIK8 |= dict(intermediate_size=4096, axial_shape=[128, 512], axial_dims=[256, 768])
_ENWIK8 |= dict(dropout=0.2, attention_dropout=0.2, lsh_attention_dropout=0.1)
CONFIGS = {"reformer_crime_and_punishment": _CRIME, "reformer_enwik8": _ENWIK8}


class Model(nn.Model):
    """A tower of reversible layers, causal if the config is; the module's docstring gives the shapes."""

    family = "reformer"
    # And, in a model, the rotations of its layers.
    INPUTS: Sequence[str] = ("token_ids", "padding_mask", "masked_positions", "entity_positions")
    fixed_length = True
    CLASSIFIER_HIDDEN = "tanh"

    def make_body(self, config):
        self.encoder = nn.ReversibleTower(config, dtype=self.dtype_policy, name="encoder")
        self.rotations = [f"rotations.{i}" for i in range(config.attention_layers.count("lsh"))]
        self.INPUTS = (*self.INPUTS, *self.rotations)

    @property
    def sequence_size(self):
        return 2 * self.config.hidden_size

    def towers(self):
        return [self.encoder]

    @property
    def tokens(self):
        return self.encoder.embeddings.tokens

    def body(self, inputs, training):
        rotations = [inputs.get(name) for name in self.rotations]
        mask = inputs.get("padding_mask")
        return {"sequence": self.encoder(inputs["token_ids"], mask, rotations=rotations, training=training)}

    def make_lm(self):
        return self._head(nn.LMHead, "lm", self.tokens, True)


# Hugging Face's format: the fields of config.json, and the modules and tensors that hold the weights.
MODEL_TYPES: dict[str, dict] = {"reformer": {}}
ARCHITECTURES = {
    "ReformerModel": (),
    "ReformerModelWithLMHead": ("lm",),  # This class is causal, the next one is not.
    "ReformerForMaskedLM": ("lm",),
    "ReformerForSequenceClassification": ("classify",),
    "ReformerForQuestionAnswering": ("span",),
}
CONFIG = {name: name for name in ("vocab_size", "hidden_size", "num_hashes", "initializer_range")}
CONFIG |= dict(num_layers="num_hidden_layers", num_heads="num_attention_heads", head_dim="attention_head_size")
CONFIG |= dict(intermediate_size="feed_forward_size", max_positions="max_position_embeddings", activation="hidden_act")
CONFIG |= dict(norm_epsilon="layer_norm_eps", dropout="hidden_dropout_prob", causal="is_decoder")
CONFIG |= dict(attention_layers="attn_layers", mlp_chunk_length="chunk_size_feed_forward")
CONFIG |= dict(axial_positions="axial_pos_embds", axial_shape="axial_pos_shape", axial_dims="axial_pos_embds_dim")
CONFIG |= dict(attention_dropout="local_attention_probs_dropout_prob")
CONFIG |= dict(lsh_attention_dropout="lsh_attention_probs_dropout_prob")
for _kind in ("lsh", "local"):
    CONFIG |= {f"{_kind}_chunks_{side}": f"{_kind}_num_chunks_{side}" for side in ("before", "after")}
    CONFIG[f"{_kind}_chunk_length"] = f"{_kind}_attn_chunk_length"


def decode_config(record):
    buckets = record.get("num_buckets") or []
    fields: dict[str, Any] = {"num_buckets": buckets if isinstance(buckets, list) else [buckets]}
    if record.get("num_hidden_layers") is None and record.get("attn_layers") is not None:
        fields["num_layers"] = len(record["attn_layers"])
    return fields


def encode_config(config):
    buckets = config.num_buckets
    architecture = "ReformerModelWithLMHead" if config.causal else "ReformerForMaskedLM"
    return {"num_buckets": buckets if len(buckets) > 1 else (*buckets, None)[0], "architectures": [architecture]}


REQUIRED = {"tie_word_embeddings": False, "is_encoder_decoder": False}
# The initialization of axial positions, the number of pieces in which logits are computed, and the seed of rotations,
# which are an input in tfzoo; then fields of the published models' files that no version reads.
IGNORED = (
    *("axial_norm_std", "chunk_size_lm_head", "hash_seed", "attention_probs_dropout_prob", "intermediate_size"),
    *("type_vocab_size", "sinusoidal_pos_embds", "num_chunks_before", "num_chunks_after"),
)
PREFIX = "reformer."
_LAYER, _TFZOO = "reformer.encoder.layers.{}", "encoder/stack/layer_{}"
WEIGHTS = {
    "reformer.embeddings.word_embeddings": "encoder/embeddings/tokens",
    "reformer.embeddings.position_embeddings.weights.{}": "encoder/embeddings/positions/axis_{}",
    "reformer.embeddings.position_embeddings.embedding.weight": "encoder/embeddings/positions/table",
    f"{_LAYER}.attention.layer_norm": f"{_TFZOO}/self_norm",
    f"{_LAYER}.attention.output.dense": f"{_TFZOO}/attention/output",
    f"{_LAYER}.feed_forward.layer_norm": f"{_TFZOO}/mlp_norm",
    f"{_LAYER}.feed_forward.dense.dense": f"{_TFZOO}/mlp/up",
    f"{_LAYER}.feed_forward.output.dense": f"{_TFZOO}/mlp/down",
    "reformer.encoder.layer_norm": "encoder/stack/norm",
    "lm_head.decoder": "lm/dense",
    "lm_head.bias": "lm/bias",  # transformers 5 reads and writes this bias, but omits it from the logits.
    "classifier.dense": "classify/hidden",
    "classifier.out_proj": "classify/dense",
    "qa_outputs": "span/dense",
}
_KINDS = ("query", "key", "query_key", "value")
WEIGHTS |= {f"{_LAYER}.attention.self_attention.{kind}": f"{_TFZOO}/attention/{kind}" for kind in _KINDS}
