"""The base class of fine-tuning tasks: what a labelled file contains, and how its rows become batches.

A task is an objective (tfzoo/objectives/objective.py): the same loop trains it. It reads labelled files instead of
text. Each row of a file is encoded once (`chunks`), stored as arrays (tfzoo/data/encoded.py) and put into batches of
rows with similar length (tfzoo/data/by_length.py).
"""

import dataclasses
import functools
import itertools
import random
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tfzoo import lazy
from tfzoo.config import EmbeddingConfig
from tfzoo.data import encoded
from tfzoo.data.encoded import Chunk, EncodedRows
from tfzoo.data.frames import Framer
from tfzoo.data.labelled import Columns
from tfzoo.errors import UserError
from tfzoo.evaluation.evaluator import Evaluator
from tfzoo.evaluation.intervals import Weighted
from tfzoo.objectives import shared
from tfzoo.objectives.objective import MAIN, Objective
from tfzoo.options import Checked, option
from tfzoo.tasks import GROUP
from tfzoo.text import framing

if TYPE_CHECKING:
    from tfzoo.models.record import FolderRecord, SentenceRecord  # Its package imports TensorFlow.

tf = lazy.module("tensorflow")
reader = lazy.module("tfzoo.text.reader")  # Imports TensorFlow.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnOptions(Checked):
    """Options of tasks that read tables: by default, the columns are detected."""

    text_column: str | None = option(
        None, "Column, field or 0-based number of the column with the text.", group=GROUP, decides_rows=True
    )
    pair_column: str | None = option(None, "Column with the second text of a pair.", group=GROUP, decides_rows=True)
    label_column: str | None = option(None, "Column with the label.", group=GROUP, decides_rows=True)
    delimiter: str | None = option(
        None, "Character between the columns of .csv, .tsv and .txt files.", group=GROUP, decides_rows=True
    )

    @property
    def columns(self) -> Columns:
        """The columns as tfzoo.data.labelled expects them."""
        return Columns(self.text_column, self.pair_column, self.label_column, self.delimiter)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolingOption(Checked):
    """An option of tasks that read one state for a text."""

    pooling: str | None = option(
        None,
        "How the states of the tokens become one: first, last, mean, max, mean_sqrt_len or weighted_mean. The default "
        "of classify and rerank is that of the family's classifiers, which may also be pooled. similarity and embed "
        "concatenate several, separated by commas; their default is that of --init_from, otherwise mean.",
        group=GROUP,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowOverlapOption(Checked):
    """An option of tasks that read long texts in windows."""

    window_overlap: int | None = option(
        None,
        "Tokens that two consecutive windows of a long text share; by default, a quarter of a window.",
        group=GROUP,
        low=0,
        decides_rows=True,
    )


class Task(Objective):
    """A fine-tuning task.

    A subclass sets the class attributes of Objective, HEAD and FIGURES, and implements the methods that raise
    NotImplementedError here.

    Args:
      tokenizer: the tokenizer of the run.
      sequence_length: maximum number of tokens per row.
      page: the module of the model's family.
      labels: names of the classes, in the order of the head's outputs; () for tasks without classes.
      pair: whether the model reads two texts at a time.
      embed, sentence: how the model of --init_from computes vectors of texts, and reads them; None if it does not
        specify that. Used by tasks with the head embed.
      record: the files with the decoding options of --init_from, or of the run; None if there are none. Used by tasks
        that write texts.
      **options: fields of `Options`.

    Raises:
      UserError: the tokenizer, the family or the length is unsuitable.
    """

    HEAD: ClassVar[str]
    """The head that is trained."""
    KINDS: ClassVar[Sequence[str]] = ("encoder",)
    """The kinds of models that the task supports: encoder, decoder, encoder_decoder."""
    ROLES: ClassVar[Sequence[str]] = (MAIN,)
    """The roles of the models that an evaluation requires."""
    TUNES_A_MODEL: ClassVar[bool] = False
    """Whether training requires --init_from."""
    # The inputs of a row; None is the number of positions. Models without some of these inputs do not receive them.
    SIGNATURE: dict[str, tuple[Any, tuple[int | None, ...]]]
    last_outcome: dict[str, np.ndarray]
    """The outcome of the last evaluation."""
    batch_size = 32
    """The number of rows in a training step."""

    def __init__(
        self,
        tokenizer,
        sequence_length: int,
        *,
        page: types.ModuleType,
        labels: Sequence[str] = (),
        pair: bool = False,
        embed: EmbeddingConfig | None = None,
        sentence: "SentenceRecord | None" = None,
        record: "FolderRecord | None" = None,
        **options: Any,
    ):
        super().__init__(tokenizer, sequence_length, **options)
        self.page, self.labels, self.pair, self.source_record = page, tuple(labels), pair, record
        self.frame = framing.frame(page.Model.LAYOUT, tokenizer, pair)
        is_encoder_decoder = page.Model.is_encoder_decoder
        start_id = framing.encoder_decoder_ends(tokenizer).start if is_encoder_decoder else None
        self.framer = Framer(self.frame, sequence_length, reader.pad_id(tokenizer), start_id)
        positions = (np.int32, (None,)), (np.bool_, (None,))
        self.SIGNATURE = {"token_ids": positions[0], "segment_ids": positions[0], "padding_mask": positions[1]}
        if is_encoder_decoder:
            self.SIGNATURE |= {"decoder_token_ids": positions[0], "decoder_padding_mask": positions[1]}
        self.SIGNATURE |= self.targets() | {"weight": (np.float32, ())}

    def require_offsets(self) -> None:
        """Raises UserError if the tokenizer cannot tell where its tokens are in a text."""
        if not reader.has_offsets(self._tokenizer):
            raise UserError(
                f"--task={self.name}: the tokenizer cannot locate its tokens in a text; use another model or tokenizer"
            )

    def show(self, figures: Sequence[tuple[str, str, str]], best_metric: tuple[str, str]) -> None:
        """Sets FIGURES and best_metric of a task whose options or labels determine them."""
        vars(self).update(FIGURES=figures, best_metric=best_metric)

    # ------------------------------------------------------------------ Files

    @classmethod
    def open_file(cls, options: Any, path: str, flag: str, policy: str):
        """Opens a labelled file: an object with rows(), describe(), counts and fingerprint().

        Args:
          options: the task's Options.
          path: the file.
          flag: the flag that names it, for messages.
          policy: what to do with bad rows: strict or skip.

        Raises:
          UserError: the file cannot be read, or lacks what the task needs.
        """
        raise NotImplementedError

    @classmethod
    def labels_of(cls, options: Any, file) -> list[str]:
        """Returns the names of the classes in the training file; [] for tasks without classes."""
        return []

    @classmethod
    def has_labels(cls, options: Any) -> bool:
        """Returns whether the task has classes."""
        return True

    @classmethod
    def default_learning_rate(cls, options: Any, pretrained: bool) -> float:
        """Returns the peak learning rate of a run that specifies none.

        Args:
          options: the task's Options; None means its defaults.
          pretrained: whether the weights are those of --init_from.
        """
        return 1e-4 if pretrained else 1e-3

    @classmethod
    def is_pair(cls, file) -> bool:
        """Returns whether the rows of an open file have two texts."""
        return False

    @classmethod
    def adapted(cls, options: Any, tokenizer, special_tokens: Sequence[str], page: types.ModuleType):
        """Returns the tokenizer of a new run from the tokenizer that was found or trained.

        Args:
          options: the task's Options.
          tokenizer: the tokenizer.
          special_tokens: those of --special_tokens.
          page: the module of the model's family.

        Raises:
          UserError: the tokenizer is unsuitable.
        """
        return tokenizer

    @classmethod
    def repeated_texts(cls, train, held_out) -> list[str]:
        """Returns warnings about texts that are in both of two open files."""
        return []

    @classmethod
    def texts_of(cls, row) -> Sequence[str]:
        """Returns the texts of a row, from which a new tokenizer is trained and which a report shows."""
        return row.texts

    @classmethod
    def unit_of(cls, row) -> Sequence[str]:
        """Returns texts of a row; without a validation file, rows with the same ones are in the same part."""
        return cls.texts_of(row)

    def chunks(self, file) -> Iterator[Chunk]:
        """Yields the encoded rows of a file: the ragged columns "text" and "pair" (token ids without special tokens),
        "number", the number of the row in the file, and the columns of `target_columns`."""
        for first, rows in chunked(file.rows()):
            columns: dict[str, Any] = {"number": np.arange(first, first + len(rows))}
            for i, name in enumerate(self._texts):
                columns[name] = self.tokenize([self.texts_of(row)[i] for row in rows])
            yield columns | dict(self.target_columns(rows))

    @functools.cached_property
    def tokenize(self) -> Callable[[Sequence[str]], list[np.ndarray]]:
        """The function of encoded.tokenize_function for the tokenizer; its graph is traced once for all files."""
        return encoded.tokenize_function(self._tokenizer)

    @functools.cached_property
    def locate(self) -> Callable[[Sequence[str]], list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """The function of encoded.offsets_function for the tokenizer."""
        return encoded.offsets_function(self._tokenizer)

    def encode(self, rows: Sequence[Any]) -> EncodedRows:
        """Returns the encoded rows of a few rows that are not in a file, at most encoded.CHUNK."""
        (columns,) = self.chunks(types.SimpleNamespace(rows=lambda: iter(rows)))
        return encoded.of_chunk(columns)

    def encoding_key(self) -> str:
        """Returns what the encoded rows depend on in addition to the file, the tokenizer and the options."""
        return repr(self.framer.frame)

    @property
    def tokenizer(self):
        return self._tokenizer

    @property
    def tokenizer_fingerprint(self) -> str:
        return self._tokenizer.fingerprint()

    def prepare_training(self, rows: EncodedRows) -> None:
        """Determines what the loss needs to know of the training rows, such as class weights."""

    def training_rows(self, rows: EncodedRows) -> Any:
        """Returns the rows of which training batches consist, such as several encoded rows in one, or rows that recur;
        `lengths` and `batch` read them."""
        return rows

    def prepare_evaluation(self, file, whole: bool = False) -> None:
        """Receives the open file that the following evaluations are about.

        Args:
          file: the open file.
          whole: whether every row must be answered, even if evaluations during training answer only some.
        """

    def notes(self) -> list[str]:
        """Returns lines about the rows, which are shown when a run begins."""
        return []

    def target_columns(self, rows: Sequence[Any]) -> Mapping[str, Any]:
        """Returns the encoded targets of some rows, as columns."""
        raise NotImplementedError

    # ------------------------------------------------------------------ Batches

    def targets(self) -> dict[str, tuple[Any, tuple[int | None, ...]]]:
        """Returns the features of a batch besides the inputs and "weight": {name: (dtype, shape of one row)}."""
        raise NotImplementedError

    def signature(self, rows: EncodedRows) -> dict[str, tuple[Any, tuple[int | None, ...]]]:
        """Returns the features of a batch of these rows: {name: (dtype, shape of one row)}."""
        return self.SIGNATURE

    def lengths(self, rows: EncodedRows) -> np.ndarray:
        """Returns the number of tokens in each row, int64 [N]."""
        return np.asarray(self.framer.lengths(*(rows.lengths(name) for name in self._texts)))

    def sides(self, rows: EncodedRows) -> np.ndarray | None:
        """Returns the number of tokens in each of the sequences that a row consists of, int64 [N, S]; None if it is a
        single one. By default, rows have one. `batch` of rows with several receives a number of positions for each."""
        return None

    def batch(self, rows: EncodedRows, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns the features of the rows at `indices`, padded to `length` positions."""
        texts = [[rows.values(name, int(i)) for name in self._texts] for i in indices]
        features = self.framer.rows(texts, length) | {"weight": np.ones(len(texts), np.float32)}
        return features | self.target_features(rows, indices, length)

    def blank(self, signature: Mapping[str, tuple[Any, tuple[int | None, ...]]], count: int, length: int):
        """Returns features of `count` rows of `length` positions without tokens, {name: array}; weights are 1."""
        features = {
            name: np.zeros((count, *(length if size is None else size for size in shape)), dtype)
            for name, (dtype, shape) in signature.items()
        }
        features["token_ids"][:] = self.framer.pad_id
        features["weight"][:] = 1
        return features

    def target_features(self, rows: EncodedRows, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns the features named by `targets`; by default, the columns of the same names."""
        return {name: np.asarray(rows.columns[name][indices]) for name in self.targets()}

    @property
    def _texts(self) -> tuple[str, ...]:
        return ("text", "pair") if self.pair else ("text",)

    def truncated(self, rows: EncodedRows) -> int:
        """Returns how many rows do not fit into sequence_length."""
        counts = [rows.lengths(name) for name in self._texts]
        return int(np.sum(sum(counts) > sum(self.framer.kept(*counts))))

    def truncation(self, rows: EncodedRows, part: str) -> str:
        """Returns a line about `truncated` rows of a part, "training" or "validation"; "" if there are none."""
        count = self.truncated(rows)
        return f"{count:,} {part} rows are truncated to {self._length} tokens" if count else ""

    # ------------------------------------------------------------------ Models

    @property
    def heads(self) -> tuple[str, ...]:
        return (self.HEAD,)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.SIGNATURE)

    def check_model(self, name: str, page: types.ModuleType) -> None:
        from tfzoo import nn

        kind = "decoder" if issubclass(page.Model, nn.DecoderModel) else "encoder"
        kind = "encoder_decoder" if page.Model.is_encoder_decoder else kind
        if self.HEAD not in page.Model.HEADS or kind not in self.KINDS:
            raise UserError(f"--model={name}: --task={self.name} does not support its family; use another model")

    def build_models(self, page: types.ModuleType, config, dtype=None) -> dict[str, Any]:
        return {MAIN: page.Model(config, heads=self.heads, dtype=dtype, **self.model_options())}

    def model_options(self) -> dict[str, Any]:
        """Returns further arguments of the model: num_labels, labels, pool, embed."""
        return {"labels": self.labels} if self.labels else {}

    def generation_config(self) -> dict[str, Any] | None:
        """Returns the content of the run's generation_config.json: the decoding options of the evaluations; None for
        tasks that write no texts."""
        return None

    def record(self) -> dict[str, Any]:
        """Returns what config.json of the run says about the task, so that exports know it. After an evaluation, it may
        contain more, which is that of the best checkpoint."""
        return {"name": self.name, "pair": self.pair, "sequence_length": self._length}

    def restore(self, record: Any) -> None:
        """Takes over what an evaluation of the run determined: `record` is the runs.TaskRecord of config.json."""

    def logits(self, models: Mapping[str, Any], batch: Mapping[str, Any], training: bool):
        """Returns the logits of HEAD, float32."""
        return tf.cast(shared.forward(models[MAIN], batch, training)[f"{self.HEAD}_logits"], tf.float32)

    # ------------------------------------------------------------------ Evaluation

    def predict(self, models: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns {name: tensor [B, ...]} from which `outcome` computes the answers; runs in a graph.

        "loss" and "loss_weight" [B] become the mean validation_loss."""
        raise NotImplementedError

    def outcome(self, predictions: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the answers and the right answers of the N rows of a file, as arrays [N, ...]: "number", the number
        of the row in the file, and others that `score_rows` reads.

        Args:
          predictions: the results of `predict` for all encoded rows, in their order.
        """
        raise NotImplementedError

    def score_rows(self, outcome: Mapping[str, np.ndarray]) -> Weighted:
        """Returns the scores as a function of row indices, by default all rows; see tfzoo.evaluation.intervals."""
        raise NotImplementedError

    def further_scores(self, outcome: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns scores that have no interval, because they are not a function of rows."""
        return {}

    def details(self, outcome: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Returns {"classes": precision, recall and F1 of each class, "confusion": counts or None}; see `evaluate`."""
        return {"classes": [], "confusion": None}

    def mistakes(self, outcome: Mapping[str, np.ndarray], count: int) -> list[dict[str, Any]]:
        """Returns the worst mistakes, the worst first: {"number", "gold", "predicted", "score"}.

        With "texts": [i, ...], these of the row's texts are shown instead of the first two. Instead of "gold" and
        "predicted", "gold_at" and "predicted_at" can be (number of a row, i): the i-th text of that row.
        """
        return []

    def count_of(self, outcome: Mapping[str, np.ndarray]) -> int:
        """Returns the number of rows of a file that an outcome is about."""
        return len(outcome["number"])

    def validation_loss(self, predictions: Mapping[str, np.ndarray]) -> float | None:
        """Returns the mean loss of predictions, which is comparable to that of the training; None if it is unknown."""
        if "loss" not in predictions:
            return None
        total, weight = (float(np.sum(predictions[name], dtype=np.float64)) for name in ("loss", "loss_weight"))
        return total / max(weight, 1e-9)

    def described(self, mistake: Mapping[str, Any], row: Any) -> dict[str, Any]:
        """Returns what a report shows of one of `mistakes`, for the row of the file that it was made in."""
        texts = self.texts_of(row)
        shown = [texts[i] for i in mistake.get("texts", range(len(texts)))]
        others = {name: value for name, value in mistake.items() if name not in ("number", "texts")}
        return dict(zip(("text", "text_pair"), shown)) | others

    def evaluators(self) -> list[Evaluator]:
        return [Scores(self)]

    def file_baselines(self, train, held_out) -> dict[str, dict[str, float]]:
        """Returns {baseline: {figure: value}} of cheap models that are fitted on the open file `train`."""
        return {}


class Scores(Evaluator):
    """The figures of a task, and the mean loss."""

    def __init__(self, task: Task):
        self._task = task

    def predict(self, models, batch):
        return self._task.predict(models, batch)

    def figures(self, predictions):
        outcome = self._task.last_outcome = self._task.outcome(predictions)
        loss = self._task.validation_loss(predictions)
        scores = self._task.score_rows(outcome)() | self._task.further_scores(outcome)
        return ({} if loss is None else {"validation_loss": loss}) | scores


def sample(rows: Iterator[Any], count: int) -> list[Any]:
    """Returns a random sample of rows, all of them if there are at most `count` (Vitter 1985, algorithm R)."""
    draw, chosen = random.Random(0), []
    for number, row in enumerate(rows):
        if number < count:
            chosen.append(row)
        elif (place := draw.randrange(number + 1)) < count:
            chosen[place] = row
    return chosen


def chunked(rows: Iterator[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Yields the number of a row, from 0 on, and the rows from there: encoded.CHUNK at a time."""
    first = 0
    while chunk := list(itertools.islice(rows, encoded.CHUNK)):
        yield first, chunk
        first += len(chunk)
