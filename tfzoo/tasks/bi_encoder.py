"""The base class of tasks that compare vectors of texts: a bi-encoder reads each text by itself.

The head embed computes the vector of each text from the states of its tokens (Reimers and Gurevych 2019, section 3).
Some losses compare all texts of a step with each other. They are exact for any number of replicas and microbatches:

- Each replica collects the vectors of all replicas, and computes the loss of the whole step from them. Its gradient
  with respect to the replica's own vectors reaches the weights; the sum over the replicas is the whole gradient.
- With --accumulation, a first pass computes the vectors of all microbatches without a gradient, and the gradient of
  the loss with respect to them. The second pass goes through the microbatches again, with the same dropout masks, and
  takes that gradient to the weights (GradCache, Gao et al. 2021, section 3).
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfzoo import lazy
from tfzoo.config import POOLINGS, EmbeddingConfig
from tfzoo.data.encoded import EncodedRows
from tfzoo.errors import UserError, suggest
from tfzoo.objectives.objective import MAIN
from tfzoo.options import option
from tfzoo.tasks import GROUP
from tfzoo.tasks.task import ColumnOptions, PoolingOption, Task, chunked

if TYPE_CHECKING:
    from tfzoo.models.record import SentenceRecord  # Its package imports TensorFlow.

tf = lazy.module("tensorflow")
record_lib = lazy.module("tfzoo.models.record")
reader = lazy.module("tfzoo.text.reader")

_GRADIENTS, _LOSSES, _WEIGHTS = "vector_gradients", "loss_shares", "weight_shares"  # Features of the second pass.
_MULTIPLE = 8  # Lengths are rounded up to a multiple of this, as in tfzoo.data.by_length.


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingOptions(ColumnOptions, PoolingOption):
    """The options of tasks that train vectors of texts."""

    normalize: bool | None = option(
        None,
        "Divide vectors by their length, which exports and saved folders then do too. By default as in --init_from, if "
        "that is a sentence-transformers folder or such a run; otherwise yes.",
        group=GROUP,
    )
    temperature: float = option(
        0.05, "What cosines are divided by in the losses cosent and embed.", group=GROUP, low=1e-4, high=100.0
    )


class BiEncoder(Task):
    """See the module's docstring.

    The columns of encoded rows are text_0, text_1, ... A subclass implements `batch_loss` and what Task requires.

    Args:
      embed, sentence: see Task.
      **arguments: those of Task.

    Raises:
      UserError: --pooling is unknown, or as for Task.
    """

    HEAD = "embed"
    KINDS = ("encoder", "decoder")
    PROMPTS: tuple[str | None, ...] = (None,)
    """The name of the prompt before the texts of each group; None is the default prompt."""
    PREFIXES: tuple[str, ...] = ("",)
    """The prefix of each group's features. The texts of a group have the same number of positions: the first group has
    one text if there are two groups."""

    def __init__(
        self,
        tokenizer,
        sequence_length: int,
        *,
        embed: EmbeddingConfig | None = None,
        sentence: "SentenceRecord | None" = None,
        **arguments: Any,
    ):
        super().__init__(tokenizer, sequence_length, **arguments)
        self.embed = self._embedding(embed)
        self.sentence = self._record(sentence or record_lib.SentenceRecord())
        self._wordings = [reader.Wording(self.sentence.prompt(name), self.sentence.lowercase) for name in self.PROMPTS]
        self._prompt_lengths = [
            reader.Reader(
                tokenizer, self.frame, (), sequence_length, wording=wording, pools_prompt=self.embed.include_prompt
            ).prompt_length
            for wording in self._wordings
        ]

    def _embedding(self, source: EmbeddingConfig | None) -> EmbeddingConfig:
        """Returns how vectors are computed: as in --init_from, except for what options specify."""
        options = self.options
        default = EmbeddingConfig(pooling=("last" if self.page.Model.POOL == "last" else "mean",))
        embed = dataclasses.replace(source or default, pooler=False)
        if options.pooling:
            for name in options.pooling.split(","):
                if name not in POOLINGS:
                    raise UserError(
                        f"--pooling={options.pooling}: {name!r} is not one of {', '.join(POOLINGS)}"
                        f"{suggest(name, POOLINGS)}"
                    )
            embed = dataclasses.replace(embed, pooling=tuple(options.pooling.split(",")))
        layers, normalize = embed.layers, options.normalize
        if normalize is False:
            layers = tuple(layer for layer in layers if layer != "normalize")
        elif (normalize or source is None) and layers[-1:] != ("normalize",):
            layers = (*layers, "normalize")
        return dataclasses.replace(embed, layers=layers)

    def _record(self, source: "SentenceRecord") -> "SentenceRecord":
        """Returns how the model's folder specifies that texts are read and compared."""
        return dataclasses.replace(source, max_length=self._length, similarity="cosine", config={})

    # ------------------------------------------------------------------ Files

    @classmethod
    def has_labels(cls, options):
        return False

    def chunks(self, file):
        for first, rows in chunked(file.rows()):
            columns: dict[str, Any] = {"number": np.arange(first, first + len(rows))}
            for i in range(len(rows[0].texts)):
                wording = self._wordings[min(i, len(self._wordings) - 1)]
                columns[f"text_{i}"] = self.tokenize([wording.worded_text(row.texts[i]) for row in rows])
            yield columns | dict(self.target_columns(rows)) | {"keys": self._keys(columns)}

    def _keys(self, columns: Mapping[str, Any]) -> np.ndarray:
        """Returns int64 [N, K], a hash of each text's tokens; texts that the model reads as equal have equal ones."""
        texts = [ids for name, ids in columns.items() if name.startswith("text_")]
        return np.array([[_hash(ids[: self.framer.room]) for ids in row] for row in zip(*texts, strict=True)], np.int64)

    def encoding_key(self):
        return f"{super().encoding_key()} {self._wordings}"

    # ------------------------------------------------------------------ Batches

    def signature(self, rows: EncodedRows):
        count = len(rows.ragged)
        sizes = (count,) if len(self.PREFIXES) == 1 else (1, count - 1)
        signature: dict[str, tuple[Any, tuple[int | None, ...]]] = {}
        for prefix, size, prompt in zip(self.PREFIXES, sizes, self._prompt_lengths, strict=True):
            signature |= {
                f"{prefix}token_ids": (np.int32, (size, None)),
                f"{prefix}segment_ids": (np.int32, (size, None)),
                f"{prefix}padding_mask": (np.bool_, (size, None)),
            }
            if prompt:
                signature[f"{prefix}pooling_mask"] = np.bool_, (size, None)
        targets = self.targets() | {"keys": (np.int64, (count,)), "number": (np.int64, ())}
        return signature | targets | {"weight": (np.float32, ())}

    def targets(self):
        return {}

    def lengths(self, rows):
        return np.max([self.framer.lengths(rows.lengths(name)) for name in rows.ragged], axis=0)

    def truncated(self, rows):
        over = [rows.lengths(name) > self.framer.room for name in rows.ragged]
        return int(np.count_nonzero(np.any(over, axis=0)))

    def batch(self, rows, indices, length):
        names = list(rows.ragged)
        groups = [names] if len(self.PREFIXES) == 1 else [names[:1], names[1:]]
        features: dict[str, np.ndarray] = {"weight": np.ones(len(indices), np.float32)}
        for prefix, group, prompt in zip(self.PREFIXES, groups, self._prompt_lengths, strict=True):
            texts = [[rows.values(name, int(i))] for i in indices for name in group]
            positions = length
            if len(groups) > 1 and length < self._length:  # Queries are usually shorter than documents.
                longest = int(np.max(self.framer.lengths(np.array([len(ids) for (ids,) in texts]))))
                positions = min(length, -(-longest // _MULTIPLE) * _MULTIPLE)
            inputs = self.framer.rows(texts, positions)
            if prompt:
                inputs["pooling_mask"] = inputs["padding_mask"] & (np.arange(positions) >= prompt)
            for name, x in inputs.items():
                features[prefix + name] = x.reshape(len(indices), len(group), positions)
        for name in (*self.targets(), "keys", "number"):
            features[name] = np.asarray(rows.columns[name][indices])
        return features

    # ------------------------------------------------------------------ Models

    def model_options(self):
        return {"embed": self.embed}

    def build_models(self, page, config, dtype=None):
        models = super().build_models(page, config, dtype)
        models[MAIN].record = record_lib.FolderRecord(sentence=self.sentence)
        return models

    def vectors(self, model, batch: Mapping[str, Any], training: bool):
        """Returns the vectors of a batch's texts, float32 [B, K, D], which need not have the length 1."""
        found = []
        for prefix in self.PREFIXES:
            names = [name for name in (*model.INPUTS, "pooling_mask") if prefix + name in batch]
            shape = tf.shape(batch[f"{prefix}token_ids"])
            inputs = {name: tf.reshape(batch[prefix + name], [-1, shape[2]]) for name in names}
            vectors = model(inputs, training=training)["embedding"]
            found.append(tf.reshape(vectors, [shape[0], shape[1], vectors.shape[-1]]))
        return tf.concat(found, 1)

    # ------------------------------------------------------------------ Loss

    @property
    def compares_rows(self) -> bool:
        """Whether the loss of a row depends on the other rows of the step."""
        return True

    def batch_loss(self, vectors, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """Returns (sum, weight) of a whole step.

        Args:
          vectors: float32 [N, K, D].
          batch: "keys" int64 [N, K] and the features named by `targets`.
        """
        raise NotImplementedError

    def _compared(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {name: batch[name] for name in ("keys", *self.targets())}

    def loss(self, models, batch, training=True):
        vectors = self.vectors(models[MAIN], batch, training)
        if _GRADIENTS in batch:
            product = tf.reduce_sum(vectors * batch[_GRADIENTS])  # Its gradient is that of the whole step's loss.
            return _with_value(product, tf.reduce_sum(batch[_LOSSES])), tf.reduce_sum(batch[_WEIGHTS])
        if not self.compares_rows:
            return self.batch_loss(vectors, self._compared(batch))
        everyones = {name: _everyones(x) for name, x in self._compared(batch).items()}
        loss, weight = self.batch_loss(_everyones(vectors), everyones)
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        return (loss, weight) if replicas == 1 else (_with_value(loss, loss / replicas), weight / replicas)

    def whole_batch(self, models, parts):
        if not self.compares_rows:
            return {}
        model = models[MAIN]
        states = [variable for variable in model.non_trainable_variables if "seed" in variable.path]
        before = [tf.identity(variable.value) for variable in states]
        vectors = tf.map_fn(
            lambda part: self.vectors(model, part, True), parts, parallel_iterations=1, fn_output_signature=tf.float32
        )
        for variable, state in zip(states, before, strict=True):  # The second pass draws the same dropout masks.
            variable.assign(state)
        shape = tf.shape(vectors)
        own = tf.reshape(vectors, [-1, *vectors.shape[2:]])
        compared = {name: tf.reshape(x, [-1, *x.shape[2:]]) for name, x in self._compared(parts).items()}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(own)
            everyones = {name: _everyones(x) for name, x in compared.items()}
            loss, weight = self.batch_loss(_everyones(own), everyones)
        shares = tf.cast(tf.shape(own)[0] * tf.distribute.get_replica_context().num_replicas_in_sync, tf.float32)
        return {
            _GRADIENTS: tf.reshape(tape.gradient(loss, own), shape),
            _LOSSES: tf.fill(shape[:2], loss / shares),
            _WEIGHTS: tf.fill(shape[:2], weight / shares),
        }

    # ------------------------------------------------------------------ Evaluation

    def predict(self, models, batch):
        features = self._compared(batch) | {"number": batch["number"]}
        return features | {"vectors": self.vectors(models[MAIN], batch, False)}

    def validation_loss(self, predictions):
        """Returns the mean loss over batches of the size of the training's, whose rows are drawn once."""
        count = len(predictions["number"])
        order = np.random.default_rng(0).permutation(count)
        size = min(self.batch_size, count)
        total, weight = 0.0, 0.0
        for begin in range(0, count - size + 1, size):
            rows = np.sort(order[begin : begin + size])
            batch = {name: tf.constant(predictions[name][rows]) for name in ("keys", *self.targets())}
            loss = self.batch_loss(tf.constant(predictions["vectors"][rows]), batch)
            total, weight = total + float(loss[0]), weight + float(loss[1])
        return total / weight


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the cosines of vectors [N, D] and [M, D], float32 [N, M]."""
    return unit(first) @ unit(second).T


def unit(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [..., D] divided by their lengths."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def bounded_integers(name: str, text: str) -> tuple[int, ...]:
    """Returns the positive whole numbers of an option, which are separated by commas.

    Raises:
      UserError: the text is something else.
    """
    parts = text.split(",") if text else []
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise UserError(f"--{name}={text}: must be whole numbers separated by commas, such as 64,128")
    return tuple(int(part) for part in parts)


def shown(values: Sequence[float]) -> str:
    """Returns numbers as a message shows them."""
    return ", ".join(f"{value:g}" for value in values)


def _hash(ids: np.ndarray) -> int:
    digest = hashlib.blake2b(np.ascontiguousarray(ids, np.int32).tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _with_value(x, value):
    """Returns `value` with the gradient of x."""
    return x + tf.stop_gradient(value - x)


def _everyones(x):
    """Returns x [B, ...] of all replicas, [replicas * B, ...]; its gradient is that of the replica's own part.

    The parts are added up with zeros in place of the others: every strategy can do that, and it is exact.
    """
    replica = tf.distribute.get_replica_context()
    count = replica.num_replicas_in_sync
    if count == 1:
        return x
    own = tf.one_hot(replica.replica_id_in_sync_group, count, dtype=x.dtype)
    own = tf.reshape(own, [count] + [1] * x.shape.rank)
    parts = replica.all_reduce(tf.distribute.ReduceOp.SUM, own * tf.stop_gradient(x)[None])
    if x.dtype.is_floating:
        parts = parts + own * (x - tf.stop_gradient(x))[None]
    return tf.reshape(parts, tf.concat([[-1], tf.shape(x)[1:]], 0))
