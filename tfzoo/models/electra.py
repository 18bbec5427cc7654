"""ELECTRA (Clark et al. 2020, https://arxiv.org/abs/2003.10555): a discriminator that learns which tokens a small
generator has replaced. Both are BERT encoders with a separate embedding size, and share embeddings in pre-training.

token_ids, segment_ids, padding_mask [B, L] -> sequence [B, L, E]
Discriminator, head "discriminate": discriminate_logits [B, L], above 0 where a token was replaced
Generator, head "lm": masked_positions [B, P] -> logits [B, P, V] of the tokens there; without it [B, L, V]
"""

import dataclasses

from tfzoo import nn
from tfzoo.models import bert
from tfzoo.models.markers import Tied

_SMALL = dict(
    vocab_size=30522,
    embedding_size=128,
    hidden_size=256,
    num_layers=12,
    num_heads=4,
    intermediate_size=1024,
    max_positions=512,
    num_segments=2,
)
_BASE = _SMALL | dict(embedding_size=0, hidden_size=768, num_heads=12, intermediate_size=3072)
_LARGE = _BASE | dict(hidden_size=1024, num_layers=24, num_heads=16, intermediate_size=4096)
_QUARTER = dict(hidden_size=256, num_heads=4, intermediate_size=1024)
# From table 6 of the paper. Generators have 1, 1/3 and 1/4 of their discriminator's width; the small one's width is not
# the paper's 1/4 (https://github.com/google-research/electra/issues/39).
CONFIGS = {
    "electra_small": _SMALL,
    "electra_small_generator": _SMALL,
    "electra_base": _BASE,
    "electra_base_generator": _BASE | _QUARTER | dict(embedding_size=768),
    "electra_large": _LARGE,
    "electra_large_generator": _LARGE | _QUARTER | dict(embedding_size=1024),
}
# The other sizes use Model.DEFAULT_HEADS.
DEFAULT_HEADS = {name: ("lm",) for name in CONFIGS if name.endswith("_generator")}


class Model(nn.EncoderModel):
    """The encoder as discriminator or generator, depending on its head; the module's docstring gives the shapes.

    Args:
      config: the sizes.
      tied: the embeddings of the other model in pre-training, whose tables and norm this model shares; not saved with
        the model, which has its own variables when it is loaded.
      **kwargs: as for nn.Model.
    """

    family = "electra"
    HEADS = ("lm", "discriminate", "classify", "tag", "span", "relation", "embed")
    DEFAULT_HEADS = ("discriminate",)
    CLASSIFIER_HIDDEN = "gelu"

    def __init__(self, config, *, tied: nn.Embeddings | None = None, **kwargs):
        # As an attribute known to Keras, the other model's projection would become a part of this model.
        object.__setattr__(self, "_tied", tied)
        super().__init__(config, **kwargs)

    def make_body(self, config):
        self.encoder = nn.Tower(config, tied=self._tied, dtype=self.dtype_policy, name="encoder")
        self.pooler = None

    def make_lm(self):  # The head's activation is always gelu.
        config = dataclasses.replace(self.config, activation="gelu")
        return nn.MaskedLMHead(config, self.tokens, dtype=self.dtype_policy, name="lm")


MODEL_TYPES = {"electra": {"embedding_size": 128}}
ARCHITECTURES = {
    "ElectraModel": (),
    "ElectraForPreTraining": ("discriminate",),
    "ElectraForMaskedLM": ("lm",),
    "ElectraForSequenceClassification": ("classify",),
    "ElectraForTokenClassification": ("tag",),
    "ElectraForQuestionAnswering": ("span",),
}
CONFIG = bert.CONFIG | {"embedding_size": "embedding_size"}
REQUIRED = bert.REQUIRED
# The summary fields belong to a head for multiple choice.
IGNORED = (
    *bert.IGNORED,
    "generator_size",
    *(f"summary_{name}" for name in ("type", "use_proj", "activation", "last_dropout")),
)


def decode_config(hub):  # Embeddings of the hidden size are not projected.
    size = hub.get("embedding_size")
    return {"embedding_size": 0 if size == hub.get("hidden_size") else size}


def encode_config(config):
    return {"embedding_size": config.embedding_size or config.hidden_size}


PREFIX = "electra."
# The encoder's modules have the same names as in BERT.
_ENCODER = {name.replace("bert.", PREFIX, 1): path for name, path in bert.WEIGHTS.items() if name.startswith("bert.")}
WEIGHTS = _ENCODER | {
    "electra.embeddings_project": "encoder/embeddings/projection",
    "discriminator_predictions.dense": "discriminate/hidden",
    "discriminator_predictions.dense_prediction": "discriminate/dense",
    "generator_predictions.dense": "lm/transform",
    "generator_predictions.LayerNorm": "lm/norm",
    "generator_lm_head.weight": Tied("encoder/embeddings/tokens/embeddings"),
    "generator_lm_head.bias": "lm/bias",
    "classifier.dense": "classify/hidden",
    "classifier.out_proj": "classify/dense",
    "classifier": "tag/dense",
    "qa_outputs": "span/dense",
}
