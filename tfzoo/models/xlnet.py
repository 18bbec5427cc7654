"""XLNet (Yang et al. 2019, https://arxiv.org/abs/1906.08237): a model with relative positions that predicts tokens in
any order.

token_ids, segment_ids, padding_mask [B, L] -> sequence [B, L, E], logits [B, L, V]
target_mapping [B, P, L], one-hot, what to predict -> query_sequence [B, P, E], logits [B, P, V]
permutation_mask [B, L, L]: True where position i may attend to token j; a target must not attend to its own token
previous_sequence [layers, B, M, E] (M is 0 at first) -> previous_sequence for the next segment
previous_mask [B, M]: True where previous_sequence holds a real token
"""

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.models.markers import Tied

Config = nn.TwoStreamConfig
# Layers, widths and heads from https://github.com/zihangdai/xlnet#released-models; other fields from config.json of
# https://huggingface.co/xlnet/xlnet-base-cased and .../xlnet-large-cased.
_BASE = dict(vocab_size=32000, hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072)
CONFIGS = {
    "xlnet_base": _BASE,
    "xlnet_large": _BASE | dict(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096),
}


class Model(nn.EncoderModel):
    """The two-stream encoder and its heads.

    Padding may be on either side: the released models have it on the left, and the head classify reads <cls>, the last
    token.
    """

    family = "xlnet"
    STACK_INPUTS = (
        "segment_ids",
        "padding_mask",
        "permutation_mask",
        "target_mapping",
        "previous_sequence",
        "previous_mask",
    )
    INPUTS = ("token_ids", *STACK_INPUTS, "entity_positions")
    POOL, CLASSIFIER_HIDDEN = "last", "tanh"
    LAYOUT = ("$A sep cls:2", "$A sep $B:1 sep:1 cls:2")
    reads_segments = True  # Segments are compared with each other and need no table.

    def make_body(self, config):
        self.encoder, self.pooler = nn.TwoStreamTower(config, dtype=self.dtype_policy, name="encoder"), None

    def body(self, inputs, training):
        rest = {name: inputs[name] for name in self.STACK_INPUTS if name in inputs}
        return self.encoder(inputs["token_ids"], **rest, training=training)

    def onnx_body(self, graph, inputs):  # Only the content stream.
        tokens, padding = inputs["token_ids"], inputs["padding_mask"]
        return {"sequence": graph.emit(self.encoder, tokens, padding, segment_ids=inputs["segment_ids"])}

    def make_lm(self):
        return self._head(nn.LMHead, "lm", self.tokens, True)


# Hugging Face's format: the fields of config.json, and the modules and tensors that hold the weights.
MODEL_TYPES: dict[str, dict] = {"xlnet": {}}
ARCHITECTURES = {
    "XLNetModel": (),
    "XLNetLMHeadModel": ("lm",),
    "XLNetForSequenceClassification": ("classify",),
    "XLNetForTokenClassification": ("tag",),
    "XLNetForQuestionAnsweringSimple": ("span",),
}
CONFIG = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "intermediate_size": "d_inner",
    "activation": "ff_activation",
    "norm_epsilon": "layer_norm_eps",
    "dropout": "dropout",
    "attention_dropout": "dropout",
    "initializer_range": "initializer_range",
    "memory_length": "mem_len",
}
REQUIRED = {"attn_type": "bi", "bi_data": False, "clamp_len": -1, "reuse_len": (None, 0)}
REQUIRED |= {
    "summary_type": "last",
    "summary_use_proj": True,
    "summary_activation": "tanh",
    "tie_word_embeddings": True,
    "same_length": False,
    "is_encoder_decoder": False,
}
# Fields for training, for beam search over spans, and for keeping a memory, which the caller decides in tfzoo.
IGNORED = ("summary_last_dropout", "start_n_top", "end_n_top", "use_mems_eval", "use_mems_train", "untie_r")


def decode_config(hub):
    if hub.get("d_head") and hub["d_head"] * hub["n_head"] != hub["d_model"]:
        raise UserError(
            f"d_head ({hub['d_head']!r}) times n_head ({hub['n_head']!r}) must be d_model ({hub['d_model']!r})"
        )
    return {}


PREFIX = "transformer."
_LAYER, _TFZOO = "transformer.layer.{}", "encoder/stack/layer_{}"
_KERNELS = ("query", "key", "value", "relative", "output")  # Stored under their initials.
WEIGHTS = {
    "transformer.word_embedding": "encoder/embeddings/tokens",
    "transformer.mask_emb": "encoder/stack/query_start",
    **{f"{_LAYER}.rel_attn.{name[0]}": f"{_TFZOO}/attention/{name}/kernel" for name in _KERNELS},
    f"{_LAYER}.rel_attn.r_w_bias": f"{_TFZOO}/attention/content_bias",
    f"{_LAYER}.rel_attn.r_r_bias": f"{_TFZOO}/attention/position_bias",
    f"{_LAYER}.rel_attn.r_s_bias": f"{_TFZOO}/attention/segment_bias",
    f"{_LAYER}.rel_attn.seg_embed": f"{_TFZOO}/attention/segments",
    f"{_LAYER}.rel_attn.layer_norm": f"{_TFZOO}/self_norm",
    f"{_LAYER}.ff.layer_1": f"{_TFZOO}/mlp/up",
    f"{_LAYER}.ff.layer_2": f"{_TFZOO}/mlp/down",
    f"{_LAYER}.ff.layer_norm": f"{_TFZOO}/mlp_norm",
    "lm_loss.weight": Tied("encoder/embeddings/tokens/embeddings"),
    "lm_loss.bias": "lm/bias",
    "sequence_summary.summary": "classify/hidden",
    "logits_proj": "classify/dense",
    "classifier": "tag/dense",
    "qa_outputs": "span/dense",
}
