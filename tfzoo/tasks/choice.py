"""Choice among several endings of a text, or among the answers to a question.

    startphrase,ending0,ending1,label
    She sits at the piano and,plays.,sleeps.,0

becomes a row of the model for each ending,

    [CLS] she sits at the piano and [SEP] plays . [SEP]
    [CLS] she sits at the piano and [SEP] sleeps . [SEP]       label 0

An encoder scores each row with one logit of the head classify (Devlin et al. 2019, section 4.4). A decoder scores an
ending by its log-probability after the context, with --ending_score=mean divided by the number of its tokens; without
training, that is zero-shot (Radford et al. 2019, section 3). The loss is the cross-entropy of the softmax over the
endings' scores. Rows may have different numbers of endings.
"""

import dataclasses
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data.choices import ChoiceFile, ChoiceRow
from tfzoo.data.encoded import EncodedRows
from tfzoo.errors import UserError
from tfzoo.evaluation.intervals import Weighted
from tfzoo.objectives import shared
from tfzoo.objectives.objective import MAIN
from tfzoo.options import option
from tfzoo.tasks import GROUP, decoder_rows
from tfzoo.tasks.similarity import tfidf_cosines
from tfzoo.tasks.task import ColumnOptions, PoolingOption, Task, chunked

tf = lazy.module("tensorflow")
by_length = lazy.module("tfzoo.data.by_length")

SUM, MEAN = "sum", "mean"
_ABSENT = -1e9  # The score of an ending that a row does not have.
_FIGURES = (("accuracy", "accuracy", "{:.2%}"), ("validation loss", "validation_loss", "{:.4f}"))
_OF_DECODERS = (
    ("accuracy by likelihood", "accuracy_sum", "{:.2%}"),
    ("accuracy per token", "accuracy_mean", "{:.2%}"),
)
_BASELINE_ROWS = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ColumnOptions, PoolingOption):
    """The options of the task choice."""

    ending_score: str = option(
        SUM,
        "Decoders: score endings by the sum or by the mean of their tokens' log-probabilities.",
        group=GROUP,
        choices=(SUM, MEAN),
    )


class Choice(Task):
    """See the module's docstring."""

    name = "choice"
    Options = Options
    HEAD = "classify"
    KINDS = ("encoder", "decoder")
    FIGURES = _FIGURES
    best_metric = ("accuracy", "max")

    def __init__(self, tokenizer, sequence_length: int, *, page: types.ModuleType, **arguments: Any):
        from tfzoo import nn

        self._is_decoder = issubclass(page.Model, nn.DecoderModel)
        pair = not self._is_decoder and not page.Model.is_encoder_decoder
        super().__init__(tokenizer, sequence_length, page=page, **arguments | {"pair": pair})
        self.pair = True
        if self._is_decoder:
            vars(self).update(HEAD="lm")
            self.show((*_FIGURES[:1], *_OF_DECODERS, *_FIGURES[1:]), self.best_metric)
            self._bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
            if sequence_length < 2:
                raise UserError(f"--sequence_length={sequence_length} leaves no room for text; use a larger value")

    # ------------------------------------------------------------------ Files

    @classmethod
    def open_file(cls, options, path, flag, policy):
        return ChoiceFile(path, flag=flag, columns=options.columns, policy=policy)

    @classmethod
    def has_labels(cls, options):
        return False

    @classmethod
    def is_pair(cls, file):
        return True

    @classmethod
    def unit_of(cls, row):
        return (row.context,)

    def chunks(self, file):
        # A decoder reads the context and the ending as one text.
        space = " " if self._is_decoder and self._tokenizer.keeps_spaces else ""
        for first, rows in chunked(file.rows()):
            flat = self.tokenize([f"{space}{ending}" for row in rows for ending in row.endings])
            ends = np.cumsum([len(row.endings) for row in rows])
            endings = [flat[end - len(row.endings) : end] for row, end in zip(rows, ends, strict=True)]
            yield {
                "number": np.arange(first, first + len(rows)),
                "label": np.array([row.label for row in rows], np.int32),
                "context": self.tokenize([row.context for row in rows]),
                "endings": [np.concatenate(each) for each in endings],
                "sizes": [np.array([len(ids) for ids in each], np.int32) for each in endings],
            }

    # ------------------------------------------------------------------ Batches

    def targets(self):
        return {"label": (np.int32, ()), "number": (np.int64, ())}

    def signature(self, rows):
        count = int(rows.lengths("sizes").max())
        ids = np.int32, (count, None)
        inputs = {"token_ids": ids, "padding_mask": (np.bool_, (count, None))}
        if self._is_decoder:
            inputs |= {"targets": ids, "target_weights": (np.float32, (count, None))}
        else:
            inputs |= {"segment_ids": ids}
        return inputs | {"is_ending": (np.bool_, (count,))} | self.targets() | {"weight": (np.float32, ())}

    def _rows_of(self, rows: EncodedRows, i: int) -> list[list[np.ndarray]]:
        """Returns the context and the ending, as token ids, of each row of the model."""
        context, endings = rows.values("context", i), rows.values("endings", i)
        return [[context, ending] for ending in np.split(endings, np.cumsum(rows.values("sizes", i))[:-1])]

    def _kept(self, context, ending):
        """Returns how many tokens of a context and of an ending a decoder reads; the ending may use half of the room
        and what the context leaves. The last token of the ending is only a target."""
        room = self._length + 1 - len(self._bos)
        kept = np.minimum(ending, np.maximum(room - context, (room + 1) // 2))
        return np.minimum(context, room - kept), kept

    def _sizes(self, rows: EncodedRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the numbers of tokens of the context and of the ending in each row of the model, and the first one of
        each row of the file."""
        counts = rows.lengths("sizes")
        starts = np.cumsum(counts) - counts
        return np.repeat(rows.lengths("context"), counts), np.asarray(rows.ragged["sizes"][0]), starts

    def lengths(self, rows):
        contexts, endings, starts = self._sizes(rows)
        if self._is_decoder:
            before, kept = self._kept(contexts, endings)
            each = before + kept + len(self._bos) - 1
        else:
            each = self.framer.lengths(contexts, endings)
        return np.maximum(np.maximum.reduceat(each, starts), 1)

    def truncated(self, rows):
        contexts, endings, starts = self._sizes(rows)
        kept = self._kept(contexts, endings) if self._is_decoder else self.framer.kept(contexts, endings)
        return int(np.count_nonzero(np.logical_or.reduceat(kept[0] + kept[1] < contexts + endings, starts)))

    def batch(self, rows, indices, length):
        features = self.blank(self.signature(rows), len(indices), length)
        for row, index in enumerate(indices):
            texts = self._rows_of(rows, int(index))
            features["is_ending"][row, : len(texts)] = True
            if self._is_decoder:
                self._fill({name: x[row] for name, x in features.items()}, texts)
            else:
                for name, x in self.framer.rows(texts, length).items():
                    features[name][row, : len(texts)] = x
        return features | {name: np.asarray(rows.columns[name][indices]) for name in self.targets()}

    def _fill(self, row: dict[str, np.ndarray], texts: Sequence[Sequence[np.ndarray]]) -> None:
        """Writes the rows of a decoder, one for each ending."""
        for i, (context, ending) in enumerate(texts):
            before, kept = (int(size) for size in self._kept(len(context), len(ending)))
            tokens = np.concatenate([self._bos, context[len(context) - before :], ending[:kept]]).astype(np.int32)
            own = {name: x[i] for name, x in row.items() if x.ndim == 2}
            decoder_rows.write(own, tokens, [(len(tokens) - kept, len(tokens))])

    # ------------------------------------------------------------------ Models and loss

    def model_options(self):
        if self._is_decoder:
            return {}
        return {"num_labels": 1} | ({"pool": self.options.pooling} if self.options.pooling else {})

    def record(self):
        # Exports of a decoder continue single texts.
        return super().record() | ({"pair": False} if self._is_decoder else {"problem_type": "regression"})

    def _scores(self, models, batch, training: bool) -> dict[str, Any]:
        """Returns scores of endings, float32 [B, C]: the encoder's under "", the decoder's under SUM and MEAN."""
        model, shape = models[MAIN], tf.shape(batch["token_ids"])
        if self._is_decoder:
            total = decoder_rows.log_probabilities(model, batch, training)
            return {SUM: total, MEAN: total / tf.maximum(tf.reduce_sum(batch["target_weights"], -1), 1)}
        inputs = {name: tf.reshape(batch[name], [-1, shape[2]]) for name in model.INPUTS if name in batch}
        outputs = model(inputs, training=training)
        return {"": tf.reshape(tf.cast(outputs["classify_logits"], tf.float32), shape[:2])}

    def _losses(self, models, batch, training: bool):
        """Returns the scores of the endings that there are, each [B, C], and the loss of each row, float32 [B]."""
        found = {
            name: tf.where(batch["is_ending"], x, _ABSENT) for name, x in self._scores(models, batch, training).items()
        }
        chosen = found[self.options.ending_score if self._is_decoder else ""]
        loss, _ = shared.cross_entropy(chosen, batch["label"])
        return found, chosen, loss * batch["weight"]

    def loss(self, models, batch, training=True):
        _, _, losses = self._losses(models, batch, training)
        return tf.reduce_sum(losses), tf.reduce_sum(batch["weight"])

    # ------------------------------------------------------------------ Evaluation

    def predict(self, models, batch):
        found, chosen, losses = self._losses(models, batch, False)
        answers = {f"answer_{name}": x for name, x in found.items() if name}
        features = {name: batch[name] for name in ("number", "label", "is_ending")}
        return features | answers | {"answer": chosen, "loss": losses, "loss_weight": batch["weight"]}

    def outcome(self, predictions):
        names = ("number", "label", "is_ending", *(name for name in predictions if name.startswith("answer")))
        return {name: predictions[name] for name in names}

    def score_rows(self, outcome):
        names = sorted(name for name in outcome if name.startswith("answer"))
        right = np.stack([outcome[name].argmax(1) == outcome["label"] for name in names], 1).astype(np.float64)

        def figures(values, weights):
            found = weights @ values / weights.sum(1, keepdims=True)
            return {name.replace("answer", "accuracy"): found[:, i] for i, name in enumerate(names)}

        return Weighted(right, figures)

    def mistakes(self, outcome, count):
        answer, label = outcome["answer"], outcome["label"]
        chances = _softmax(answer)
        wrong = chances.max(1) * (answer.argmax(1) != label)
        return [
            {
                "number": int(outcome["number"][i]),
                "texts": (0,),
                "gold_at": (int(outcome["number"][i]), 1 + int(label[i])),
                "predicted_at": (int(outcome["number"][i]), 1 + int(answer[i].argmax())),
                "score": float(chances[i].max()),
            }
            for i in np.argsort(-wrong, kind="stable")[:count]
            if wrong[i] > 0
        ]

    def file_baselines(self, train, held_out):
        known = [row for _, row in zip(range(_BASELINE_ROWS), train.rows())]
        rows = list(held_out.rows())
        frequencies = np.bincount([row.label for row in known])
        lengths = [[len(ending) for ending in row.endings] for row in rows]
        pairs: list[tuple[str, ...]] = [(row.context, ending) for row in rows for ending in row.endings]
        cosines = iter(tfidf_cosines([row.texts for row in known], pairs))
        guesses = {
            "position": [int(np.argmax(frequencies[: len(row.endings)])) for row in rows],
            "longest": [int(np.argmax(each)) for each in lengths],
            "shortest": [int(np.argmin(each)) for each in lengths],
            "tfidf": [int(np.argmax([next(cosines) for _ in row.endings])) for row in rows],
        }
        labels = np.array([row.label for row in rows])
        return {name: {"accuracy": float(np.mean(np.array(each) == labels))} for name, each in guesses.items()}

    def answers(self, model, rows: Sequence[tuple[str, Sequence[str]]]) -> list[dict[str, Any]]:
        """Returns for each context with its endings {"answer": the chosen ending, "index", "score": its probability,
        "scores": those of all endings}."""
        asked = [ChoiceRow("", context, tuple(endings), 0) for context, endings in rows]
        encoded_rows = self.encode(asked)
        length = by_length.rounded(self.lengths(encoded_rows).max())
        batch = self.batch(encoded_rows, np.arange(len(asked)), length)
        batch = {name: tf.constant(x) for name, x in batch.items()}
        chances = _softmax(self.predict({MAIN: model}, batch)["answer"].numpy())
        return [_answer(row, each[: len(row.endings)]) for row, each in zip(asked, chances, strict=True)]


def _answer(row: ChoiceRow, chances: np.ndarray) -> dict[str, Any]:
    best = int(np.argmax(chances))
    return {
        "answer": row.endings[best],
        "index": best,
        "score": float(chances[best]),
        "scores": [float(chance) for chance in chances],
    }


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
