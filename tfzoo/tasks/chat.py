"""Dialogue and instruction tuning: a language model learns the assistant's answers in conversations.

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                  {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you"}]}

becomes, with the chat template

    {% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}
    {%- if add_generation_prompt %}<assistant>{% endif %}

and a token for each word, where the targets that count are those of the answers,

    token_ids       <user> Hi    <end>       <assistant> Hello <end>  <user> Bye   <end>       <assistant> See you
    targets         Hi     <end> <assistant> Hello       <end> <user> Bye    <end> <assistant> See         you <end>
    target_weights  0      0     0           1           1     0      0      0     0           1           1   1

The loss is the cross-entropy of the answers' tokens, with the token that ends the turn (Ouyang et al. 2022, section
3.5, supervised fine-tuning). An answer is preceded by exactly the tokens that the model reads when it answers: the
conversation is rendered once for each answer. As long as the template only appends to what precedes, the answers share
a sample; a template that rewrites the history, such as one that drops earlier reasoning, begins a new sample.

Samples that are too long lose turns from the left (templated.py). Several samples share a row, each attending only to
itself (--pack). An encoder-decoder reads the conversation in its encoder and writes the answer.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data import packing
from tfzoo.data.encoded import EncodedRows
from tfzoo.data.messages import Conversation, ConversationFile
from tfzoo.errors import UserError
from tfzoo.evaluation import diversity
from tfzoo.evaluation.intervals import Weighted
from tfzoo.evaluation.ngram import KneserNey
from tfzoo.objectives import shared
from tfzoo.objectives.objective import MAIN, LabelSmoothingOption, PackOption
from tfzoo.options import option
from tfzoo.tasks import GROUP, decoder_rows
from tfzoo.tasks.task import Scores, chunked
from tfzoo.tasks.templated import ChatTemplateOption, TemplatedTask
from tfzoo.text import framing

tf = lazy.module("tensorflow")
answering = lazy.module("tfzoo.evaluation.answering")  # Imports TensorFlow.

_WHOLE, _DROPPED, _CUT = 0, 1, 2  # Of a sample: nothing is missing, earlier turns are, or tokens are.
_NGRAM_ORDER = 5
_BASELINE_TOKENS = 2_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ChatTemplateOption, PackOption, LabelSmoothingOption):
    """The options of the task chat."""

    sample_answers: int = option(
        8,
        "Number of validation conversations whose last message the model answers in an evaluation, for distinct-1, "
        "distinct-2 and the report; 0 generates nothing.",
        group=GROUP,
        low=0,
    )
    answer_tokens: int = option(64, "Maximum number of tokens of these answers.", group=GROUP, low=1)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A part of a conversation.

    Attributes:
      tokens: token ids.
      spans: (begin, end) of each answer in the tokens.
      missing: what is missing: _WHOLE, _DROPPED or _CUT.
    """

    tokens: list[int]
    spans: list[tuple[int, int]]
    missing: int = _WHOLE


class Packed:
    """Rows of several samples, at most `capacity` positions each.

    Args:
      samples: the samples.
      lengths: the number of positions of each.
      capacity: the number of positions of a row.
    """

    def __init__(self, samples: EncodedRows, lengths: np.ndarray, capacity: int):
        self.samples = samples
        costs, limits = lengths[:, None].astype(np.int64), np.array([capacity], np.int64)
        self._order, self._starts = packing.assign(costs, limits, packing.window_starts(len(lengths)))
        self.lengths = np.add.reduceat(lengths[self._order], self._starts[:-1])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def members(self, index: int) -> np.ndarray:
        """Returns the samples of a row, int64 [n]."""
        return self._order[self._starts[index] : self._starts[index + 1]]


class Chat(TemplatedTask):
    """See the module's docstring."""

    name = "chat"
    Options = Options
    HEAD = "lm"
    KINDS = ("decoder", "encoder_decoder")
    FIGURES = (
        ("perplexity of answers", "answer_perplexity", "{:.2f}"),
        ("token accuracy", "answer_accuracy", "{:.2%}"),
        ("distinct-1", "distinct_1", "{:.3f}"),
        ("distinct-2", "distinct_2", "{:.3f}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    )
    best_metric = ("answer_perplexity", "min")

    def __init__(self, tokenizer, sequence_length: int, **arguments: Any):
        super().__init__(tokenizer, sequence_length, **arguments)
        model = self.page.Model
        self._ends = framing.encoder_decoder_ends(tokenizer) if model.is_encoder_decoder else None
        if self._ends and None in (self._ends.start, self._ends.end):
            raise UserError(
                f"{type(tokenizer).__name__}: an encoder-decoder requires a tokenizer with pad and eos or sep tokens; "
                "use --tokenizer=sentencepiece"
            )
        ids, mask, weights = (np.int32, (None,)), (np.bool_, (None,)), (np.float32, (None,))
        self.SIGNATURE = {"token_ids": ids, "padding_mask": mask, "targets": ids, "target_weights": weights}
        self.SIGNATURE |= {"number": (np.int64, ()), "weight": (np.float32, ())}
        self.SIGNATURE |= {"decoder_token_ids": ids} if self._ends else {}
        if self._packs:
            self.SIGNATURE |= {"document_ids": ids, "position_ids": ids}
        self._evaluated: Any = None  # The open file that evaluations are about.
        # Of the conversations that the model answers: number, prompt and right answer.
        self._sampled: list[tuple[int, list[int], list[int]]] | None = []
        self._written: list[str] = []

    @property
    def _packs(self) -> bool:
        return self.options.pack and self._ends is None

    def check_model(self, name, page):
        super().check_model(name, page)
        if self._packs and "document_ids" not in page.Model.INPUTS:
            raise UserError(f"--model={name}: cannot separate the conversations packed into one row; add --nopack")

    # ------------------------------------------------------------------ Files

    @classmethod
    def open_file(cls, options, path, flag, policy):
        return ConversationFile(path, flag=flag, policy=policy)

    def targets(self):
        return {}

    def chunks(self, file):
        for first, rows in chunked(file.rows()):
            found = [
                (number, sample)
                for number, row in enumerate(rows, first)
                for sample in self._samples_or_refuse(row, file)
            ]
            yield {
                "number": np.array([number for number, _ in found], np.int64),
                "tokens": [np.array(sample.tokens, np.int32) for _, sample in found],
                "spans": [np.array(sample.spans, np.int32).ravel() for _, sample in found],
                "missing": np.array([sample.missing for _, sample in found], np.int8),
            }

    def _samples_or_refuse(self, row: Conversation, file) -> list[Sample]:
        """Returns the samples of a row; [] if the template does not support it and bad rows are skipped."""
        return self.or_refuse(row, file, lambda: list(self.samples(row)))

    def samples(self, row: Conversation) -> Iterator[Sample]:
        """Yields the samples of a conversation.

        Raises:
          UserError: the chat template does not support the conversation.
        """
        how: dict[str, Any] = {} if row.tools is None else {"tools": list(row.tools)}
        sample = Sample([], [])
        for i in row.learned:
            turn = self.turn(row.messages[: i + 1], self._room, **how)
            missing = _CUT if turn.cut else _DROPPED if turn.dropped else _WHOLE
            span = (len(turn.prompt), len(turn.prompt) + len(turn.answer))
            tokens = [*turn.prompt, *turn.answer]
            if sample.spans and (self._ends or turn.prompt[: len(sample.tokens)] != sample.tokens):
                yield sample
                sample = Sample([], [])
            sample = Sample(tokens, [*sample.spans, span], max(missing, sample.missing))
        yield sample

    @property
    def _room(self) -> int:
        """The maximum number of tokens of a sample. The last token of a decoder's row is only a target."""
        return self._length + (self._ends is None)

    def truncated(self, rows):
        """Returns the number of conversations of which turns or tokens are missing."""
        samples = rows.samples if isinstance(rows, Packed) else rows
        return len(np.unique(samples.columns["number"][np.asarray(samples.columns["missing"]) > _WHOLE]))

    # ------------------------------------------------------------------ Batches

    def training_rows(self, rows):
        return Packed(rows, self.lengths(rows), self._length) if self._packs else rows

    def prepare_evaluation(self, file, whole=False):
        self._evaluated, self._sampled = file, None

    def sides(self, rows):
        if self._ends is None:
            return None
        lengths = rows.lengths("tokens")
        begins = np.array([rows.values("spans", i)[0] for i in range(len(rows))], np.int64)
        return np.stack([begins, lengths - begins + (self._ends.begin is not None)], 1)

    def lengths(self, rows):
        if isinstance(rows, Packed):
            return rows.lengths
        if self._ends is None:
            return np.maximum(rows.lengths("tokens") - 1, 1)
        read, written = self.sides(rows).T
        return written * (self._length + 1) + read  # The decoder, with its vocabulary, costs more than the encoder.

    def batch(self, rows, indices, length):
        packed = isinstance(rows, Packed)
        samples = rows.samples if packed else rows
        read, written = (length, length) if isinstance(length, int) else length
        features = {}
        for name, (dtype, shape) in self.SIGNATURE.items():
            positions = written if name in ("decoder_token_ids", "targets", "target_weights") else read
            features[name] = np.zeros((len(indices), *([positions] if shape else [])), dtype)
        features["weight"][:] = 1
        for name in ("token_ids", "decoder_token_ids"):
            if name in features:
                features[name][:] = self.framer.pad_id
        fill = self._fill if self._ends is None else self._fill_pair
        for row, index in enumerate(indices):
            members = rows.members(int(index)) if packed else [index]
            features["number"][row] = samples.columns["number"][members[0]]
            begin = 0
            for document, i in enumerate(members, 1):
                begin = fill({name: x[row] for name, x in features.items()}, samples, int(i), begin, document)
        return features

    def _fill(self, row: dict[str, np.ndarray], samples: EncodedRows, i: int, begin: int, document: int) -> int:
        """Writes a sample into a row of features from `begin` on, and returns its end."""
        spans = samples.values("spans", i).reshape(-1, 2)
        end = decoder_rows.write(row, samples.values("tokens", i), spans, begin)
        if "document_ids" in row:
            row["document_ids"][begin:end] = document
            row["position_ids"][begin:end] = np.arange(end - begin)
        return end

    def _fill_pair(self, row: dict[str, np.ndarray], samples: EncodedRows, i: int, begin: int, document: int) -> int:
        """Writes the conversation and the answer of an encoder-decoder into a row of features."""
        assert self._ends is not None
        tokens, first = samples.values("tokens", i), int(samples.values("spans", i)[0])
        start = [] if self._ends.begin is None else [self._ends.begin]
        answer = [*start, *tokens[first:]]
        row["token_ids"][:first] = tokens[:first]
        row["padding_mask"][:first] = True
        row["decoder_token_ids"][: len(answer)] = [self._ends.start, *answer[:-1]]
        row["targets"][: len(answer)] = answer
        row["target_weights"][: len(answer)] = 1
        return first

    @property
    def inputs(self):
        if self._ends is not None:
            return ("token_ids", "padding_mask", "decoder_token_ids")
        return ("token_ids", "document_ids", "position_ids") if self._packs else ("token_ids",)

    # ------------------------------------------------------------------ Loss and evaluation

    def _words(self, models, batch, training: bool, smoothing: float = 0.0):
        """Returns the loss, the hits and the weight of each target, float32 [B, L] each."""
        outputs = models[MAIN]({name: batch[name] for name in self.inputs}, training=training)
        loss, hits = shared.cross_entropy(tf.cast(outputs["logits"], tf.float32), batch["targets"], smoothing)
        return loss, hits, batch["target_weights"] * batch["weight"][:, None]

    def loss(self, models, batch, training=True):
        """Returns (sum, weight): the cross-entropy in nats over the answers' tokens, and their number."""
        loss, _, weights = self._words(models, batch, training, self.options.label_smoothing or 0.0)
        return tf.reduce_sum(loss * weights), tf.reduce_sum(weights)

    def predict(self, models, batch):
        loss, hits, weights = self._words(models, batch, False)
        if self._ends is not None and self._ends.begin is not None:  # With which every answer begins.
            weights *= tf.cast(batch["targets"] != self._ends.begin, tf.float32)
        sums = {"loss": loss * weights, "hits": hits * weights, "loss_weight": weights}
        return {name: tf.reduce_sum(x, 1) for name, x in sums.items()} | {"number": batch["number"]}

    def outcome(self, predictions):
        number, inverse = np.unique(predictions["number"], return_inverse=True)
        sums = {
            name: np.bincount(inverse, predictions[name].astype(np.float64), len(number))
            for name in ("loss", "hits", "loss_weight")
        }
        return {"number": number} | sums

    def score_rows(self, outcome):
        """Returns the scores as a function of conversations."""
        values = np.stack([outcome[name] for name in ("loss", "hits", "loss_weight")], 1)

        def figures(values, weights):
            loss, hits, count = (weights @ values).T
            count = np.maximum(count, 1e-9)
            return {"answer_perplexity": np.exp(np.minimum(loss / count, 700)), "answer_accuracy": hits / count}

        return Weighted(values, figures)

    def evaluators(self):
        return [_Answers(self)]

    def write_answers(self, model) -> None:
        """Writes the answers to the first conversations of the file that is evaluated."""
        if self._sampled is None:
            rows = itertools.islice(self._evaluated.rows(), self.options.sample_answers)
            last = [(number, [*self._samples_or_refuse(row, self._evaluated)][-1:]) for number, row in enumerate(rows)]
            self._sampled = [
                (number, sample.tokens[: sample.spans[-1][0]], sample.tokens[slice(*sample.spans[-1])])
                for number, samples in last
                for sample in samples
            ]
        prompts = [prompt for _, prompt, _ in self._sampled]
        self._written = answering.answers(model, self._tokenizer, prompts, self.options.answer_tokens)

    def further_scores(self, outcome):
        texts = [diversity.words(text) for text in self._written]
        return {f"distinct_{n}": diversity.distinct(texts, n) for n in (1, 2)} if self._sampled else {}

    def mistakes(self, outcome, count):
        """Returns the conversations that were answered otherwise, those with the least likely right answer first."""
        losses = dict(zip(outcome["number"].tolist(), outcome["loss"] / np.maximum(outcome["loss_weight"], 1e-9)))
        found = [
            {
                "number": number,
                "gold": answering.text_of(self._tokenizer, reference),
                "predicted": written,
                "score": float(losses[number]),
            }
            for (number, _, reference), written in zip(self._sampled or (), self._written, strict=True)
        ]
        found = [each for each in found if each["gold"] != each["predicted"]]
        return sorted(found, key=lambda each: -each["score"])[:count]

    def file_baselines(self, train, held_out):
        """Returns the scores of the frequencies of the answers' tokens, and of an n-gram model that reads what a
        decoder reads."""
        trained, tested = self._joined(train, _BASELINE_TOKENS), self._joined(held_out)
        size = self._tokenizer.vocab_size
        tokens, starts, is_answer = tested
        frequency = np.bincount(trained[0][trained[2]], minlength=size) + 1.0
        ngram = KneserNey(trained[0], trained[1], order=_NGRAM_ORDER, vocab_size=size).score(tokens, starts)
        targets = tokens[is_answer]
        found = {
            "frequency": (np.log(frequency / frequency.sum())[targets], targets == np.argmax(frequency)),
            "n-gram": (ngram.log_probabilities[is_answer], (ngram.likeliest == tokens)[is_answer]),
        }
        return {
            name: {"answer_perplexity": float(np.exp(-scores.mean())), "answer_accuracy": float(hits.mean())}
            for name, (scores, hits) in found.items()
        }

    def _joined(self, file, most: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the tokens of the samples of a file, int [N], their starts, int [S + 1], and which are answers', bool
        [N]; those of the first samples, if there are many more than `most` tokens."""
        tokens: list[Sequence[int]] = []
        answers: list[np.ndarray] = []
        count = 0
        for chunk in self.chunks(file):
            if most is not None and count > most:
                break
            for ids, spans in zip(chunk["tokens"], chunk["spans"], strict=True):
                is_answer = np.zeros(len(ids), bool)
                for begin, end in spans.reshape(-1, 2):
                    is_answer[begin:end] = True
                tokens.append(ids)
                answers.append(is_answer)
                count += len(ids)
        starts = np.array([0, *itertools.accumulate(map(len, tokens))], np.int64)
        return np.concatenate(tokens), starts, np.concatenate(answers)


class _Answers(Scores):
    """The scores of answers, after the model has written some."""

    def __init__(self, task: Chat):
        super().__init__(task)
        self._chat = task

    def predict(self, models, batch):
        self._model = models[MAIN]
        return super().predict(models, batch)

    def figures(self, predictions):
        self._chat.write_answers(self._model)
        return super().figures(predictions)
