"""The training protocol: what the training loop asks of an objective (objectives/) and of a task (tasks/).

Losses are sums and weights: the loop adds them up over microbatches and replicas and divides once, which is why one
device and many agree. `prepare` is a pure function of its example, whose "seed" is its only source of random numbers: a
resumed run sees what an uninterrupted one would have seen.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from tfzoo.errors import UserError
from tfzoo.evaluation.evaluator import Evaluator, Means
from tfzoo.options import Checked, option

MAIN = "main"  # The role of the model that a run is about: it is loaded, evaluated and exported.
Models = Mapping[str, Any]  # Role -> Keras model.

GROUP = "Objective"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions(Checked):
    """The options of an objective that has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackOption(Checked):
    """Of objectives whose rows can hold several documents."""

    pack: bool = option(
        True,
        "Pack several documents into one row, each attending only to itself; masked_lm packs only with "
        "--nonext_sentence.",
        group=GROUP,
        decides_rows=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskRateOption(Checked):
    """Of objectives that hide a part of the text."""

    mask_rate: float = option(
        0.15, "Fraction of the tokens to mask or corrupt.", group=GROUP, low=0.01, high=0.9, decides_rows=True
    )


class Objective:
    """What a model is trained on.

    A subclass sets the class attributes and has `inputs`, `rows`, `prepare`, `loss` and `metrics` (or `evaluators`).

    Args:
      tokenizer: of the run.
      sequence_length: tokens in a row.
      **options: fields of `Options`.

    Raises:
      UserError: the tokenizer or the length does not fit.
    """

    name: ClassVar[str]
    """Its figures' names begin with it."""
    Options: ClassVar[type[Checked]] = NoOptions
    """A frozen dataclass of `tfzoo.options`: the flags that are this objective's own."""
    best_metric: ClassVar[tuple[str, Literal["min", "max"]]]
    """The figure by which the best checkpoint is chosen, and whether the lowest or the highest is best."""
    FIGURES: ClassVar[Sequence[tuple[str, str, str]]]
    """(label, figure, format) of each line of an evaluation's table; the first is drawn as the run's curve."""
    PACKED: ClassVar[Mapping[str, Any] | None] = None
    """The options, and their values, with which tfzoo.corpus packs rows ahead of training; None where it cannot. What
    rows depend on besides is declared with decides_rows=True."""
    MODEL_KIND: ClassVar[tuple[str, str]]
    """What the main model must be, "encoder", "decoder" or "encoder_decoder", and examples of it for messages."""

    def __init__(self, tokenizer, sequence_length: int, **options: Any):
        self.options: Any = self.Options(**options)
        self._tokenizer, self._length = tokenizer, sequence_length

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that the main model must have."""
        return ("lm",)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The features that the main model may be fed."""
        raise NotImplementedError

    def check_model(self, name: str, page: types.ModuleType) -> None:
        """Raises UserError where the models of a family's page cannot be trained by this objective."""
        from tfzoo import nn

        kind, examples = self.MODEL_KIND
        base = {"encoder": nn.EncoderModel, "decoder": nn.DecoderModel, "encoder_decoder": nn.EncoderDecoderModel}[kind]
        noun = {"encoder": "an encoder", "decoder": "a causal decoder", "encoder_decoder": "an encoder-decoder"}[kind]
        if not issubclass(page.Model, base) or not self.reads_what_it_needs(page.Model):
            raise UserError(f"--model={name}: --objective={self.name} requires {noun}, such as {examples}")
        if "document_ids" in set(self.inputs) - set(page.Model.INPUTS):
            raise UserError(f"--model={name}: cannot separate the documents packed into one row; add --nopack")

    def reads_what_it_needs(self, model_class: type) -> bool:
        """Whether a model has the inputs without which this objective makes no sense."""
        return True

    def build_models(self, page: types.ModuleType, config, dtype=None) -> dict[str, Any]:
        """The models that are trained or used, by role; the first is the main one.

        Frozen models (a teacher) have `trainable = False`. Variables that models share are trained once.
        """
        return {MAIN: page.Model(config, heads=self.heads, dtype=dtype)}

    def model_names(self, name: str) -> dict[str, str]:
        """The name in CONFIGS of each role's model, `name` being the main one's; config.json records them."""
        return {MAIN: name}

    def rows(self, corpus):
        """The rows of a TokenizedCorpus: an object with a length, `row(index, numbers)`, FEATURES and padding_share, as
        tfzoo.data.pipeline takes it."""
        raise NotImplementedError

    def prepare(self, example: dict[str, Any]) -> dict[str, Any]:
        """One example of `rows` -> features with static shapes, in a tf.data pipeline; random only by
        example["seed"], int32 [2]."""
        raise NotImplementedError

    def loss(self, models: Models, batch: Mapping[str, Any], training: bool = True):
        """(sum, weight): scalars of a batch of features, added up over microbatches and replicas."""
        raise NotImplementedError

    def metrics(self, models: Models, batch: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """{name: (sum, weight)} of a batch, for the weighted means of an evaluation."""
        raise NotImplementedError

    def evaluators(self) -> list[Evaluator]:
        """What is measured on the held-out rows; by default the means of `metrics`, with the perplexity of a loss by
        which the best checkpoint is chosen."""
        name, _ = self.best_metric
        return [Means(self.metrics, perplexity_of=(name,) if name.endswith("_loss") else ())]

    def baselines(self, train_ids, batches: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        """{baseline: {figure: value}}: what can be had without a model.

        Args:
          train_ids: int32 [N], the training text.
          batches: the evaluation's, as dicts of numpy arrays.
        """
        return {}
