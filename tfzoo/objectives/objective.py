"""The interface between the training loop and an objective (objectives/) or a task (tasks/).

Losses are pairs of a sum and a weight: the loop adds them up over microbatches and replicas and divides once, so that
one device and several devices agree. `prepare` is a pure function of its example, whose "seed" is the only source of
randomness: a resumed run sees the same data as an uninterrupted one.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from tfzoo.errors import UserError
from tfzoo.evaluation.evaluator import Evaluator, Means
from tfzoo.options import Checked, option

MAIN = "main"  # The role of the model that is trained for later use: it is loaded, evaluated and exported.
Models = Mapping[str, Any]  # Role -> Keras model.

GROUP = "Objective"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions(Checked):
    """The options of an objective without options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackOption(Checked):
    """An option of objectives whose rows can contain several documents."""

    pack: bool = option(
        True,
        "Pack several documents into one row, each attending only to itself; masked_lm packs only with "
        "--pairs=none or translation.",
        group=GROUP,
        decides_rows=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskRateOption(Checked):
    """An option of objectives that hide a part of the text."""

    mask_rate: float = option(
        0.15, "Fraction of the tokens to mask or corrupt.", group=GROUP, low=0.01, high=0.9, decides_rows=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanSpanOption(Checked):
    """An option of objectives that corrupt spans of several tokens."""

    mean_span: float = option(
        3.0, "Mean length of a corrupted span, in tokens.", group=GROUP, low=1.0, decides_rows=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSmoothingOption(Checked):
    """An option of objectives and tasks with one right answer among several."""

    label_smoothing: float = option(
        None,
        "Share of the probability that the targets divide among all answers (Szegedy et al. 2016, section 7); 0.1 by "
        "default for seq2seq, translate and summarise, otherwise 0.",
        group=GROUP,
        low=0.0,
        high=0.9,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetLengthOption(Checked):
    """An option of objectives and tasks whose decoder writes another text than the encoder reads."""

    target_length: int | None = option(
        None,
        "Tokens per row of the decoder; by default and at most --sequence_length.",
        group=GROUP,
        low=8,
        decides_rows=True,
    )


class Objective:
    """A training objective.

    A subclass sets the class attributes and implements `inputs`, `rows`, `prepare`, `loss` and `metrics` (or
    `evaluators`).

    Args:
      tokenizer: the tokenizer of the run.
      sequence_length: tokens per row.
      **options: fields of `Options`.

    Raises:
      UserError: the tokenizer or the length is unsuitable.
    """

    name: ClassVar[str]
    """The value of --objective; by convention, the names of its figures start with it."""
    Options: ClassVar[type[Checked]] = NoOptions
    """A frozen dataclass of `tfzoo.options` with the flags of this objective."""
    best_metric: ClassVar[tuple[str, Literal["min", "max"]]]
    """The figure that selects the best checkpoint, and whether its minimum or maximum is the best."""
    FIGURES: ClassVar[Sequence[tuple[str, str, str]]]
    """(label, figure, format) of each line of an evaluation table; the first one is plotted in loss.png."""
    PACKED: ClassVar[Mapping[str, Any] | None] = None
    """The option values with which tfzoo.corpus packs rows in advance; None if that is not supported. Other options
    that affect the rows are declared with decides_rows=True."""
    MODEL_KIND: ClassVar[tuple[str, str]]
    """The required kind of main model, "encoder", "decoder" or "encoder_decoder", and examples for error messages."""

    def __init__(self, tokenizer, sequence_length: int, **options: Any):
        self.options: Any = self.Options(**options)
        self._tokenizer, self._length = tokenizer, sequence_length

    @classmethod
    def shown(cls, options: Any) -> tuple[Sequence[tuple[str, str, str]], tuple[str, Literal["min", "max"]]]:
        """Returns FIGURES and best_metric for the values of the options."""
        return cls.FIGURES, cls.best_metric

    @classmethod
    def form_for(cls, page: types.ModuleType) -> "type[Objective]":
        """Returns the class that trains the models of a family's module: this class, or, for an objective with a form
        for each kind of model, a class with the same name, options and figures."""
        return cls

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that the main model must have."""
        return ("lm",)

    @property
    def patterns(self) -> int:
        """The number of different seeds that a training row has, which repeat after as many epochs; 0 means a new seed
        in every epoch."""
        return 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """The features that are passed to the main model if it has such inputs."""
        raise NotImplementedError

    def check_model(self, name: str, page: types.ModuleType) -> None:
        """Raises UserError if the models of a family's module cannot be trained with this objective."""
        from tfzoo import nn

        kind, examples = self.MODEL_KIND
        base = {"encoder": nn.EncoderModel, "decoder": nn.DecoderModel, "encoder_decoder": nn.EncoderDecoderModel}[kind]
        noun = {"encoder": "an encoder", "decoder": "a causal decoder", "encoder_decoder": "an encoder-decoder"}[kind]
        fits = issubclass(page.Model, base) or (kind != "encoder_decoder" and _causal_by_config(page))
        if not fits or not self.reads_what_it_needs(page.Model):
            raise UserError(f"--model={name}: --objective={self.name} requires {noun}, such as {examples}")
        if "document_ids" in set(self.inputs) - set(page.Model.INPUTS):
            raise UserError(f"--model={name}: cannot separate the documents packed into one row; add --nopack")

    def check_config(self, name: str, config) -> None:
        """Raises UserError if a model with this config is causal and the objective requires an encoder, or vice versa.

        Only families whose config determines whether they are causal, such as performer and reformer, can fail.
        """
        wanted = self.MODEL_KIND[0] == "decoder"
        if getattr(config, "causal", wanted) != wanted:
            raise UserError(
                f"--model={name}: --objective={self.name} requires {'a causal' if wanted else 'a bidirectional'} "
                f"model; add --overrides=causal={str(wanted).lower()}"
            )

    def reads_what_it_needs(self, model_class: type) -> bool:
        """Returns whether a model has the inputs that this objective requires."""
        return True

    def build_models(self, page: types.ModuleType, config, dtype=None) -> dict[str, Any]:
        """Builds the models that are trained or used, by role; the first one is the main model.

        Frozen models (a teacher) have `trainable = False`. Variables shared by several models are trained once.
        """
        return {MAIN: page.Model(config, heads=self.heads, dtype=dtype)}

    def initialized(self, models: Models) -> None:
        """Called for the models of a new run after those of --init_from have been loaded, if any."""

    def model_names(self, name: str) -> dict[str, str]:
        """Returns the name in CONFIGS of each role's model for config.json; `name` is that of the main model."""
        return {MAIN: name}

    def rows(self, corpus):
        """Returns the rows of a TokenizedCorpus: an object with a length, `row(index, numbers)`, FEATURES and
        padding_share, as required by tfzoo.data.pipeline."""
        raise NotImplementedError

    def prepare(self, example: dict[str, Any]) -> dict[str, Any]:
        """Converts one example of `rows` to features with static shapes, in a tf.data pipeline; all randomness comes
        from example["seed"], int32 [2]. example["progress"], float32 [], grows from 0 to 1 during the training; it is 1
        in evaluations."""
        raise NotImplementedError

    def loss(self, models: Models, batch: Mapping[str, Any], training: bool = True):
        """Returns (sum, weight), scalars of a batch of features, which are added up over microbatches and replicas."""
        raise NotImplementedError

    def whole_batch(self, models: Models, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Returns further features for the microbatches of a replica, for a loss that compares the rows of a whole step
        with each other, over microbatches and replicas; called before the microbatches, and only if there are several.

        Args:
          models: models by role.
          parts: the replica's features, [number of microbatches, B, ...].

        Returns:
          {name: tensor [number of microbatches, B, ...]}, which `loss` finds in the batch.
        """
        return {}

    def metrics(self, models: Models, batch: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Returns {name: (sum, weight)} of a batch, for the weighted means of an evaluation."""
        raise NotImplementedError

    def evaluators(self) -> list[Evaluator]:
        """Returns the evaluators for the held-out rows; by default the means of `metrics`, and the perplexity of
        best_metric if that is a loss."""
        name, _ = self.best_metric
        return [Means(self.metrics, perplexity_of=(name,) if name.endswith("_loss") else ())]

    def baselines(self, train_ids, batches: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        """Returns {baseline: {figure: value}}, the figures that are reached without a model.

        Args:
          train_ids: int32 [N], the token ids of the training text.
          batches: the evaluation batches, as dicts of numpy arrays.
        """
        return {}

    def row_baselines(self, rows, batches: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        """Returns further baselines, in the format of `baselines`: those that need to know where documents begin.

        Args:
          rows: the training rows.
          batches: the evaluation batches, as dicts of numpy arrays.
        """
        return {}


def direction_of(figure: str) -> Literal["min", "max"]:
    """Returns whether the smallest or the largest value of a figure is the best."""
    return "min" if figure.partition("/")[0].endswith(("loss", "perplexity", "mse")) else "max"


def _causal_by_config(page: types.ModuleType) -> bool:
    """Returns whether the config of a family's models determines whether they are causal."""
    config = getattr(page, "Config", None)
    return config is not None and any(field.name == "causal" for field in dataclasses.fields(config))
