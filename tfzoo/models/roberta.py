"""RoBERTa (Liu et al. 2019, https://arxiv.org/abs/1907.11692): BERT trained longer, without next-sentence prediction or
segments.

token_ids, padding_mask [B, L] -> sequence [B, L, E]; without a head also pooled [B, E]
masked_positions [B, P] -> logits [B, P, V] of the tokens there; without it [B, L, V]

XLM-RoBERTa (Conneau et al. 2020, https://arxiv.org/abs/1911.02116) is the same model with a vocabulary of 250,002
tokens for 100 languages, CamemBERT (Martin et al. 2020, https://arxiv.org/abs/1911.03894) is the same with a French
vocabulary, and data2vec's text model (Baevski et al. 2022, https://arxiv.org/abs/2202.03555) is the same trained
differently.

Positions count a row's real tokens, wherever its padding is. The position table has position_offset rows before them,
one more than the id of the padding token; the last of these rows is the position of padding.
"""

import dataclasses

from keras import ops

from tfzoo import nn
from tfzoo.errors import UserError
from tfzoo.models import bert
from tfzoo.models.markers import Tied

_BASE = dict(
    vocab_size=50265,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    intermediate_size=3072,
    max_positions=512,
    position_offset=2,
    num_segments=1,
    norm_epsilon=1e-5,
)
_LARGE = _BASE | dict(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096)
# From appendix A of the RoBERTa paper, and from section 3.2 and table 5 of the XLM-RoBERTa paper. Vocabulary sizes,
# positions and epsilon: config.json of https://huggingface.co/FacebookAI/roberta-base and xlm-roberta-base, where the
# 514 positions are these 512 and the two rows before them.
CONFIGS = {
    "roberta_base": _BASE,
    "roberta_large": _LARGE,
    "xlm_roberta_base": _BASE | dict(vocab_size=250002),
    "xlm_roberta_large": _LARGE | dict(vocab_size=250002),
}


class Model(nn.EncoderModel):
    """The encoder and its heads; the module's docstring gives the shapes."""

    family = "roberta"
    INPUTS = tuple(name for name in nn.EncoderModel.INPUTS if name != "segment_ids")
    CLASSIFIER_HIDDEN = "tanh"
    POOLER = True  # Some checkpoints have a pooler; no head reads it.
    LAYOUT = ("cls $A sep", "cls $A sep sep $B sep")

    def position_ids(self, inputs):
        if "position_ids" in inputs or "padding_mask" not in inputs:
            return inputs.get("position_ids")
        real = ops.cast(inputs["padding_mask"], "int32")
        return ops.cumsum(real, axis=1) * real - 1

    def onnx_position_ids(self, graph, inputs):
        mask, at = inputs["padding_mask"], f"{self.name}/position_ids"
        count = graph.add("Mul", graph.add("CumSum", mask, graph.whole(1), at=at), mask, at=at)
        return graph.add("Sub", count, graph.ints(1), at=at)

    def make_lm(self):  # The head's activation is always gelu.
        config = dataclasses.replace(self.config, activation="gelu")
        return nn.MaskedLMHead(config, self.tokens, dtype=self.dtype_policy, name="lm")


MODEL_TYPES: dict[str, dict] = {"roberta": {}, "xlm-roberta": {}, "camembert": {}, "data2vec-text": {}}
_HEADS = {
    "Model": (),
    "ForMaskedLM": ("lm",),
    "ForSequenceClassification": ("classify",),
    "ForTokenClassification": ("tag",),
    "ForQuestionAnswering": ("span",),
}
_KINDS = ("Roberta", "XLMRoberta", "Camembert", "Data2VecText")
ARCHITECTURES = {kind + name: heads for kind in _KINDS for name, heads in _HEADS.items()}
CONFIG = bert.CONFIG
REQUIRED = bert.REQUIRED
IGNORED = bert.IGNORED


def decode_config(record):
    if record.get("pad_token_id") is None:
        raise UserError("pad_token_id is null, but positions are counted from it; set it to a token id")
    offset = record["pad_token_id"] + 1
    return {"position_offset": offset, "max_positions": record["max_position_embeddings"] - offset}


def encode_config(config):
    offset = config.position_offset
    return {"pad_token_id": offset - 1, "max_position_embeddings": config.max_positions + offset}


PREFIX = "roberta."
PREFIXES = {"data2vec-text": "data2vec_text."}  # model_type -> its prefix, if it is not PREFIX.
# The encoder's modules have the same names as in BERT.
_ENCODER = {name.replace("bert.", PREFIX, 1): path for name, path in bert.WEIGHTS.items() if name.startswith("bert.")}
WEIGHTS = _ENCODER | {
    "lm_head.dense": "lm/transform",
    "lm_head.layer_norm": "lm/norm",
    "lm_head.bias": "lm/bias",
    "lm_head.decoder.weight": Tied("encoder/embeddings/tokens/embeddings"),
    "lm_head.decoder.bias": Tied("lm/bias"),
    "classifier.dense": "classify/hidden",
    "classifier.out_proj": "classify/dense",
    "classifier": "tag/dense",
    "qa_outputs": "span/dense",
}
