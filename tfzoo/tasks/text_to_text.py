"""Text to text: an encoder-decoder reads a text and writes another one (Sutskever et al. 2014; Raffel et al. 2020).

    text,target
    is it raining?,regnet es?

The texts are framed as by the objective seq2seq, so that a run of that objective, T5 and BART can be fine-tuned: with a
prefix "to german:", padding 0 and </s> 1, a row becomes

    token_ids           "to german: is it raining?" </s>
    decoder_token_ids   <pad> "regnet es?"
    targets             "regnet es?" </s>

The loss is the cross-entropy over all targets (teacher forcing). An evaluation measures it on all rows, and writes the
texts of up to --decoded_rows rows with the decoding options of the run's generation_config.json, which predictions and
exports use, too. translate.py, summarise.py and mixture.py are this task with other scores and defaults.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tfzoo import lazy
from tfzoo.data import text_pairs
from tfzoo.data.frames import Framer
from tfzoo.errors import UserError
from tfzoo.evaluation import extracts, intervals, written
from tfzoo.evaluation.intervals import Weighted
from tfzoo.generation.options import read_options
from tfzoo.objectives import shared
from tfzoo.objectives.objective import MAIN, LabelSmoothingOption, TargetLengthOption
from tfzoo.options import Checked, option
from tfzoo.tasks import GROUP
from tfzoo.tasks.task import ColumnOptions, Task, chunked
from tfzoo.text import framing

tf = lazy.module("tensorflow")
decode = lazy.module("tfzoo.generation.decode")  # Imports TensorFlow.
folder = lazy.module("tfzoo.generation.folder")

# The decoding options of --init_from's generation_config.json that fine-tuning keeps: not those that sample, and none
# with token ids, which another tokenizer would not have.
_KEPT = (
    *("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "repetition_penalty", "encoder_repetition_penalty", "max_new_tokens"),
    *("min_new_tokens", "exponential_decay_length_penalty", "renormalize_logits"),
)
_OF_BEAMS = ("num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "renormalize_logits")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingOptions(Checked):
    """Options of tasks that write texts: how an evaluation decodes."""

    num_beams: int | None = option(
        None,
        "Beams with which texts are written; by default those of --init_from, otherwise 4 for translate and 1 for the "
        "other tasks.",
        group=GROUP,
        low=1,
        high=64,
    )
    max_new_tokens: int | None = option(
        None,
        "Maximum number of tokens of a written text; by default that of --init_from, otherwise --target_length.",
        group=GROUP,
        low=1,
    )
    length_penalty: float | None = option(
        None, "Beam search divides a text's log-probability by its length to this power; 1 by default.", group=GROUP
    )
    decoded_rows: int = option(
        1000,
        "Number of validation rows whose texts an evaluation during training writes and scores, evenly spaced in the "
        "file; 0 means all. The loss is always that of all rows, and tfzoo.evaluate writes all texts.",
        group=GROUP,
        low=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ColumnOptions, LabelSmoothingOption, TargetLengthOption, DecodingOptions):
    """The options of the task text_to_text."""

    prefix: str = option(
        "",
        'What precedes each text, separated by a space, such as "translate English to German:".',
        group=GROUP,
        decides_rows=True,
    )


class ReadsTargets(Task):
    """A task whose files contain a text and the text that is to be written for it."""

    @classmethod
    def open_file(cls, options, path, flag, policy):
        if options.pair_column is not None:
            raise UserError(
                f"--pair_column={options.pair_column}: does not apply to --task={cls.name}; use --label_column"
            )
        return text_pairs.open_pairs(path, flag=flag, columns=options.columns, policy=policy)

    @classmethod
    def repeated_texts(cls, train, held_out):
        return text_pairs.repeated(train, held_out)


def worst_texts(
    numbers: np.ndarray, hypotheses: Sequence[str], references: Sequence[str], scores: np.ndarray, count: int
) -> list[dict[str, Any]]:
    """Returns the mistakes (Task.mistakes) of the rows with the lowest scores whose text differs from the right one."""
    return [
        {
            "number": int(numbers[i]),
            "texts": (0,),
            "gold": references[i],
            "predicted": hypotheses[i],
            "score": float(scores[i]),
        }
        for i in np.argsort(scores, kind="stable")[:count]
        if hypotheses[i] != references[i]
    ]


class TextToText(ReadsTargets):
    """See the module's docstring."""

    name = "text_to_text"
    Options: ClassVar[type[Checked]] = Options
    HEAD = "lm"
    KINDS = ("encoder_decoder",)
    FIGURES: ClassVar[Sequence[tuple[str, str, str]]] = (
        ("exact match", "exact_match", "{:.2f}"),
        ("F1 of words", "token_f1", "{:.2f}"),
        ("chrF", "chrf", "{:.2f}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    )
    best_metric = ("token_f1", "max")
    SMOOTHING: ClassVar[float] = 0.0
    """The default of --label_smoothing."""
    BEAMS: ClassVar[int] = 1
    """The default of --num_beams."""

    def __init__(self, tokenizer, sequence_length: int, *, page: types.ModuleType, **options: Any):
        super().__init__(tokenizer, sequence_length, page=page, **options)
        ends = framing.encoder_decoder_ends(tokenizer)
        pad: Any = getattr(tokenizer, "pad_id", None)
        if missing := [role for role, i in {"pad": pad, "eos or sep": ends.end}.items() if i is None]:
            raise UserError(
                f"{type(tokenizer).__name__}: --task={self.name} requires a tokenizer with pad and eos or sep tokens, "
                f"but this one has no token for {', '.join(missing)}; use a SentencePiece tokenizer"
            )
        self.ends = ends
        self._target_length = self.options.target_length or sequence_length
        if self._target_length > sequence_length:
            raise UserError(f"--target_length={self._target_length}: exceeds --sequence_length={sequence_length}")
        parts = tuple(part for part in (ends.begin, framing.TEXT, ends.end) if part is not None)
        frame = framing.Frame(parts, (0,) * len(parts))
        self.framer = Framer(frame, sequence_length, pad)
        self._target_framer = Framer(frame, self._target_length, pad)
        smoothing = self.options.label_smoothing
        self._smoothing = self.SMOOTHING if smoothing is None else smoothing
        self.decoding = self._decoding_options(pad)
        ids, mask = (np.int32, (None,)), (np.bool_, (None,))
        self.SIGNATURE = {
            "token_ids": ids,
            "padding_mask": mask,
            "decoder_token_ids": ids,
            "targets": ids,
            "target_weights": (np.float32, (None,)),
            "number": (np.int64, ()),
            "weight": (np.float32, ()),
        }
        self._decoded = np.zeros(0, bool)  # Which rows of the evaluated file are decoded.
        self._texts_of_rows: list[tuple[str, str]] = []  # The sources and targets of these.

    def targets(self):
        return {}  # The features of the decoder are in SIGNATURE.

    def _decoding_options(self, pad: int) -> dict[str, Any]:
        """Returns the decoding options: the flags, then those of the folder that training starts from, then defaults.

        Raises:
          UserError: an option is out of bounds or contradicts another one.
        """
        given = self._folder_options()
        for name in ("num_beams", "max_new_tokens", "length_penalty"):
            if getattr(self.options, name) is not None:
                given[name] = getattr(self.options, name)
        given = {"num_beams": self.BEAMS, "max_new_tokens": self._target_length} | given
        if given["num_beams"] == 1:
            if self.options.length_penalty is not None:
                value = self.options.length_penalty
                raise UserError(f"--length_penalty={value}: applies to beam search; add --num_beams, or omit it")
            given = {name: value for name, value in given.items() if name not in _OF_BEAMS}
        ids = {"eos_token_id": self.ends.end, "pad_token_id": pad, "decoder_start_token_id": self.ends.start}
        return {name: i for name, i in ids.items() if i is not None} | given

    def _folder_options(self) -> dict[str, Any]:
        if self.source_record is None:
            return {}
        options = folder.options_of(self.source_record, is_encoder_decoder=True)
        for name in ("max", "min"):  # These count the start token.
            if f"{name}_length" in options:
                options.setdefault(f"{name}_new_tokens", max(options[f"{name}_length"] - 1, 1))
        return {name: options[name] for name in _KEPT if name in options}

    def generation_config(self) -> dict[str, Any]:
        return dict(self.decoding)

    # ------------------------------------------------------------------ Files

    @classmethod
    def has_labels(cls, options):
        return False

    @classmethod
    def unit_of(cls, row):
        return row.texts[:1]

    def prefixed(self, row) -> str:
        """Returns the source of a row with its prefix."""
        prefix = self.options.prefix.strip()
        return f"{prefix} {row.texts[0]}" if prefix else row.texts[0]

    def chunks(self, file):
        for first, rows in chunked(file.rows()):
            yield {
                "number": np.arange(first, first + len(rows)),
                "source": self.tokenize([self.prefixed(row) for row in rows]),
                "target": self.tokenize([row.texts[1] for row in rows]),
            }

    def prepare_evaluation(self, file, whole=False):
        rows = [row.texts[:2] for row in file.rows()]
        most = len(rows) if whole or not self.options.decoded_rows else min(self.options.decoded_rows, len(rows))
        places = np.arange(-1, len(rows)) * most // len(rows)
        self._decoded = np.diff(places) > 0  # `most` rows, the first one among them.
        self._texts_of_rows = rows

    # ------------------------------------------------------------------ Batches

    def sides(self, rows):
        framers = {"source": self.framer, "target": self._target_framer}
        return np.stack([framer.lengths(rows.lengths(name)) for name, framer in framers.items()], axis=1)

    def lengths(self, rows):
        source, target = self.sides(rows).T
        # The targets first, in steps of the padded lengths: the decoder, with its vocabulary, costs more.
        return -(-target // 8) * (self._length + 1) + source

    def batch(self, rows, indices, length):
        positions = (length, length) if isinstance(length, int) else length
        sources, targets = ([[rows.values(name, int(i))] for i in indices] for name in ("source", "target"))
        source = self.framer.rows(sources, positions[0])
        target = self._target_framer.rows(targets, positions[1])
        start = np.full((len(targets), 1), self.ends.start, np.int32)
        shifted = np.concatenate([start, target["token_ids"][:, :-1]], axis=1)
        return {
            "token_ids": source["token_ids"],
            "padding_mask": source["padding_mask"],
            "decoder_token_ids": np.where(target["padding_mask"], shifted, self._target_framer.pad_id),
            "targets": target["token_ids"],
            "target_weights": target["padding_mask"].astype(np.float32),
            "number": np.asarray(rows.columns["number"][indices]),
            "weight": np.ones(len(targets), np.float32),
        }

    def truncated(self, rows):
        kept = self.framer.kept(rows.lengths("source"))[0], self._target_framer.kept(rows.lengths("target"))[0]
        return int(np.sum((kept[0] < rows.lengths("source")) | (kept[1] < rows.lengths("target"))))

    # ------------------------------------------------------------------ Models and loss

    def check_model(self, name, page):
        super().check_model(name, page)
        if self.ends.begin is not None and "cls" not in page.Model.LAYOUT[0]:
            raise UserError(
                f"--model={name}: its texts begin without a cls token, which {type(self._tokenizer).__name__} would "
                "add; use a SentencePiece tokenizer, or --model=bart_base"
            )

    def record(self):
        prefix = self.options.prefix.strip()
        return super().record() | ({"prefix": prefix} if prefix else {})

    def logits(self, models, batch, training):
        """Returns the logits of each next token, float32 [B, T, V]."""
        return tf.cast(shared.forward(models[MAIN], batch, training)["logits"], tf.float32)

    def loss(self, models, batch, training=True):
        weights = batch["target_weights"]
        losses, _ = shared.cross_entropy(self.logits(models, batch, training), batch["targets"], self._smoothing)
        return tf.reduce_sum(losses * weights), tf.reduce_sum(weights)

    # ------------------------------------------------------------------ Evaluation

    def predict(self, models, batch):
        """Returns per row: "loss" and "loss_weight", the sum over its targets and their number, "number", "written"
        int32 [B, N], the ids of its text if the row is among those that are decoded, and "num_written"."""
        losses, _ = shared.cross_entropy(self.logits(models, batch, False), batch["targets"])
        weights = batch["target_weights"] * batch["weight"][:, None]
        chosen = tf.gather(tf.constant(self._decoded), batch["number"]) & (batch["weight"] > 0)
        written, lengths = self._write_chosen(models[MAIN], batch, chosen)
        return {
            "number": batch["number"],
            "loss": tf.reduce_sum(losses * weights, 1),
            "loss_weight": tf.reduce_sum(weights, 1),
            "written": written,
            "num_written": lengths,
        }

    def _write_chosen(self, model, batch, chosen):
        """Writes the texts of the rows that `chosen`, bool [B], selects. Returns (ids int32 [B, N], lengths int32 [B]),
        which are 0 in the other rows."""
        count = self.decoding["max_new_tokens"]
        size = tf.shape(chosen)[0]

        def write():
            inputs = [tf.boolean_mask(batch[name], chosen) for name in ("token_ids", "padding_mask")]
            ids, lengths = self._write(model, *inputs)
            places = tf.where(chosen)
            shape = tf.cast(tf.stack([size, count]), tf.int64)
            return tf.scatter_nd(places, ids, shape), tf.scatter_nd(places, lengths, shape[:1])

        def nothing():
            return tf.zeros([size, count], tf.int32), tf.zeros([size], tf.int32)

        written, lengths = tf.cond(tf.reduce_any(chosen), write, nothing)
        return tf.ensure_shape(written, [None, count]), lengths

    def _write(self, model, token_ids, padding_mask):
        """Returns the ids of the likeliest texts, int32 [B, N], and their lengths, int32 [B]."""
        static, each = read_options(**self.decoding)
        rows = {name: tf.fill(tf.shape(token_ids)[:1], value) for name, value in each.items()}
        outputs = decode.decode(model, static, token_ids, padding_mask, rows, self.decoding["max_new_tokens"])
        return outputs["token_ids"], outputs["lengths"]

    def outcome(self, predictions):
        """Returns "number" and "text", the written text, of the D rows that were decoded."""
        chosen = self._decoded[predictions["number"]]
        ids, lengths = predictions["written"][chosen], predictions["num_written"][chosen]
        ragged = tf.RaggedTensor.from_tensor(tf.constant(ids), tf.constant(lengths, tf.int64))
        texts = [text.decode(errors="replace") for text in self._tokenizer.detokenize(ragged).numpy()]
        return {"number": predictions["number"][chosen], "text": np.array(texts, object)}

    def answers_of(self, outcome: Mapping[str, np.ndarray]) -> tuple[list[str], list[str]]:
        """Returns the written texts and the right ones of an outcome."""
        return list(outcome["text"]), [self._texts_of_rows[number][1] for number in outcome["number"]]

    def score_rows(self, outcome):
        return self.score_texts(*self.answers_of(outcome), self.options)

    @classmethod
    def score_texts(cls, hypotheses: Sequence[str], references: Sequence[str], options: Any) -> Weighted:
        """Returns the scores of texts as a function of rows."""
        return intervals.together(written.match_rows(hypotheses, references), written.chrf_rows(hypotheses, references))

    def mistakes(self, outcome, count):
        """Returns the texts with the lowest chrF."""
        hypotheses, references = self.answers_of(outcome)
        chrf = written.chrf_of_each(hypotheses, references)
        return worst_texts(outcome["number"], hypotheses, references, chrf, count)

    # ------------------------------------------------------------------ Baselines

    def file_baselines(self, train, held_out):
        rows = [row.texts for row, chosen in zip(held_out.rows(), self._decoded, strict=True) if chosen]
        sources, references = zip(*(texts[:2] for texts in rows))
        found = self.baseline_texts(train, sources)
        return {name: self.score_texts(texts, references, self.options)() for name, texts in found.items()}

    @classmethod
    def baseline_texts(cls, train, sources: Sequence[str]) -> dict[str, list[str]]:
        """Returns {baseline: its text for each source}; `train` is the open training file."""
        return {"source": list(sources), "memory": _memory(train, sources)}


def _memory(train, sources: Sequence[str]) -> list[str]:
    """Returns the targets of the most similar texts of training."""
    known = [row.texts for _, row in zip(range(extracts.MAX_ROWS), train.rows())]
    return extracts.memory([texts[0] for texts in known], [texts[1] for texts in known], sources)
