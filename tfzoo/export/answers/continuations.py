"""What a language model writes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfzoo import generation
from tfzoo.errors import CheckFailed, UserError
from tfzoo.export.answers.base import Answer, Row
from tfzoo.export.interface import Signature, Tensor
from tfzoo.generation import options as decoding
from tfzoo.generation.folder import folder_options, special_ids
from tfzoo.generation.texts import decode_text
from tfzoo.text.reader import pad_id

# Of a folder's generation_config.json what an export takes over. Not what draws, nor what compares strings.
_OF_BEAMS = (
    *("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "renormalize_logits"),
)
_CONSTRAINTS = (
    *("min_new_tokens", "repetition_penalty", "presence_penalty", "no_repeat_ngram_size", "bad_words_ids"),
    *("encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "sequence_bias", "suppress_tokens"),
    *("begin_suppress_tokens", "exponential_decay_length_penalty"),
)
_NOTHING = "there is nothing to go on from"


class Continuations(Answer):
    """What a language model writes, the likeliest by options.search: `generated_text` string [B], of `num_tokens` int32
    [B].

    A decoder goes on behind `text`, an encoder-decoder answers it. A text of no tokens cannot be gone on from.
    """

    # What the signature `generate` reads beside the text, a number for each row, and one that does no harm. Rows of
    # temperature 0 get the likeliest text, as without these numbers; the others are drawn, token by token, whatever the
    # number of beams.
    ROWS = {"max_new_tokens": 1, "temperature": 0, "top_k": 0, "top_p": 1, "seed": 0}

    def __init__(self, model, tokenizer, options):
        if not model.is_encoder_decoder:  # Both share the positions.
            options = dataclasses.replace(options, sequence_length=options.sequence_length - options.max_new_tokens)
            if options.sequence_length < 1:
                raise UserError(f"--max_new_tokens={options.max_new_tokens} leaves no room for text; name fewer")
        super().__init__(model, tokenizer, options)
        ids = special_ids(model)
        end = ids.get("eos_token_id", getattr(tokenizer, "eos_id", None))
        ids |= dict(eos_token_id=end, pad_token_id=pad_id(tokenizer), decoder_start_token_id=self.reader.start_id)
        self.ids = {name: value for name, value in ids.items() if value is not None}
        self.outputs = {"generated_text": Tensor("string", ("batch",)), "num_tokens": Tensor("int32", ("batch",))}

    def facts(self):
        return super().facts() | {"generation": self.ids}

    def functions(self, call):
        rows = {name: Tensor(np.dtype(decoding.ROWS[name][0]).name, ("batch",)) for name in self.ROWS}
        asking = Signature({**self.signature.inputs, **rows}, self.signature.outputs)
        return super().functions(call) | {
            "generate": (asking, lambda text, **rows: self.answer({"text": text}, call, **rows))
        }

    def check(self, reading, checks, **rows):
        checks.rows(~tf.reduce_any(reading.inputs["padding_mask"], 1), _NOTHING)
        safe = {}
        for name, value in rows.items():
            bounds = decoding.BOUNDS[name]
            if name == "max_new_tokens":
                bounds = dataclasses.replace(bounds, high=self.options.max_new_tokens)
            bad = ~bounds.hold(value)
            checks.rows(bad, f"{name} {bounds}", value)
            safe[name] = checks.safe(value, bad, self.ROWS[name])
        return safe

    def answer_reading(self, reading, texts, call, **rows):
        written, lengths = self._write(reading.inputs["token_ids"], reading.inputs["padding_mask"], rows)
        ids = tf.RaggedTensor.from_tensor(written, tf.cast(lengths, tf.int64))
        return {"generated_text": self._text(reading.inputs, ids), "num_tokens": lengths}

    def _text(self, inputs, ids: tf.RaggedTensor) -> tf.Tensor:
        """The text of what was written: behind a text that a decoder goes on from, what it adds to it. (Some tokenizers
        drop the space that a text begins with.)"""
        alone = self.tokenizer.detokenize(ids)
        if self.model.is_encoder_decoder:
            return alone
        before = tf.ragged.boolean_mask(inputs["token_ids"], inputs["padding_mask"]).with_row_splits_dtype(tf.int64)
        start = self.tokenizer.detokenize(before)
        whole = self.tokenizer.detokenize(tf.concat([before, ids], 1))
        size = tf.strings.length(start)
        goes_on = tf.strings.substr(whole, tf.zeros_like(size), size) == start
        behind = tf.strings.substr(whole, tf.minimum(size, tf.strings.length(whole)), tf.strings.length(whole))
        return tf.where(goes_on, behind, alone)

    def _write(self, token_ids, mask, rows):
        """(ids [B, max_new_tokens], lengths [B]). Without rows the likeliest text is looked for."""

        def decode(rows, **options):
            static, fixed = generation.read_options(**options, **self.ids)
            each = {name: tf.fill(tf.shape(mask)[:1], value) for name, value in fixed.items()}
            found = generation.decode(self.model, static, token_ids, mask, each | rows, self.options.max_new_tokens)
            return found["token_ids"], found["lengths"]

        def nothing():
            count = tf.shape(mask)[0]
            return tf.zeros([count, self.options.max_new_tokens], tf.int32), tf.zeros([count], tf.int32)

        search = self.options.search
        if not rows:
            return decode({}, **search)
        drawing = without_beams(search)
        if "num_beams" not in search:  # Drawn at temperature 0, the likeliest token is the one.
            return decode(rows, do_sample=True, **drawing)
        likeliest = rows["temperature"] == 0
        most = {"max_new_tokens": rows["max_new_tokens"]}
        found = tf.cond(tf.reduce_any(likeliest), lambda: decode(most, **search), nothing)
        drawn = tf.cond(tf.reduce_all(likeliest), nothing, lambda: decode(rows, do_sample=True, **drawing))
        return tf.where(likeliest[:, tf.newaxis], found[0], drawn[0]), tf.where(likeliest, found[1], drawn[1])

    def refusal(self, row):
        return super().refusal(row) or ("" if row.ids else _NOTHING)

    def more_cases(self, cases, limits):
        """Of `generate` one: so many tokens a row, the likeliest text, the likeliest token each time, and tokens that
        are drawn, in turns."""
        (texts,) = cases["4"]["inputs"].values()
        count, most = len(texts), self.options.max_new_tokens
        way = np.arange(count) % 3
        asked = {
            "max_new_tokens": 1 + np.arange(count) * 3 % most,
            "temperature": np.array([0, 1, 0.8])[way],
            "top_k": np.array([0, 1, 5])[way],
            "top_p": np.array([1, 1, 0.9])[way],
            "seed": np.arange(count),
        }
        asked = {name: values.astype(decoding.ROWS[name][0]) for name, values in asked.items()}
        rows = [dict(zip(asked, values)) for values in zip(*(values.tolist() for values in asked.values()))]
        outputs = self.expected({"text": texts.tolist()}, limits, rows)
        return {"generate": {"4": {"inputs": {"text": texts, **asked}, "outputs": outputs}}}

    def expected_of_rows(self, rows, limits):
        forced = any(name.startswith("forced") for name in self.ids)
        noises = _noises(limits.margin)
        texts, lengths, decided = [], [], []
        for row in rows:
            search = self.options.search
            own = row.asked or {"max_new_tokens": self.options.max_new_tokens}
            drawn = own.get("top_k", 0) > 1
            if own.get("temperature", 0) > 0:
                search = without_beams(search)
            own = {**own, "do_sample": True} if drawn else {"max_new_tokens": own["max_new_tokens"]}
            options = search | own
            ids = self._written(row, **options)
            if search or forced or drawn:  # No single logit decides: does a little noise change it?
                again = [self._written(row, **options, logits_processor=noise) for noise in noises]
                decided.append(all(np.array_equal(others, ids) for others in again))
            else:  # Read again as a whole.
                logits = self._next_logits(row, ids)
                second, largest = np.sort(logits, -1)[:, -2:].T
                sure = largest - second > limits.margin * max(1.0, np.abs(logits).max())
                if (sure & (logits.argmax(-1) != ids)).any():
                    raise CheckFailed(
                        f"{self.model.name} writes with its cache what it does not write without it: {row.texts}"
                    )
                decided.append(bool(sure.all()))
            before = [] if self.model.is_encoder_decoder else row.ids
            texts.append(decode_text(self.tokenizer, ids.tolist(), before))
            lengths.append(len(ids))
        sure_at = np.array(decided, bool)
        return {
            "generated_text": {"values": np.array(texts, "U"), "decided": sure_at},
            "num_tokens": {"values": np.array(lengths, np.int32), "decided": sure_at},
        }

    def _written(self, row: Row, **options) -> np.ndarray:
        written = generation.generate_ids(self.model, [row.ids], return_scores=True, **self.ids, **options)
        return np.asarray(written.token_ids)[0, : int(written.lengths[0])]

    def _next_logits(self, row: Row, ids: np.ndarray) -> np.ndarray:
        """[N, V]: what the model gives for each of `ids`, reading all before it at once."""
        if self.reader.start_id is None:
            whole = np.array([[*row.ids, *ids[:-1]]], np.int32)
            return np.asarray(self.model({"token_ids": whole})["logits"], np.float64)[0, len(row.ids) - 1 :]
        decoder = np.array([[self.reader.start_id, *ids[:-1]]], np.int32)
        inputs = {"token_ids": np.array([row.ids], np.int32), "decoder_token_ids": decoder}
        return np.asarray(self.model(inputs)["logits"], np.float64)[0]


@functools.cache  # Decoding is compiled for each.
def _noises(margin: float) -> list[Callable]:
    """Logits processors that add what rounding may."""

    def noise(seed, history, logits):
        largest = tf.reduce_max(tf.where(tf.math.is_finite(logits), tf.abs(logits), 1.0))
        return logits + margin * tf.maximum(1.0, largest) * tf.random.stateless_normal(tf.shape(logits), [seed, 0])

    return [functools.partial(noise, seed) for seed in (1, 2)]


def search_of(model: keras.Model, num_beams: int | None = None) -> dict[str, Any]:
    """Options.search as the model's folder has it, or with another number of beams."""
    found = folder_options(model)
    beams = found.get("num_beams", 1) if num_beams is None else num_beams
    if num_beams is not None and beams % found.get("num_beam_groups", 1):
        raise UserError(f"--num_beams={beams}: must be a multiple of the folder's num_beam_groups; name another")
    names = (*_OF_BEAMS, *_CONSTRAINTS) if beams > 1 else _CONSTRAINTS
    found = {name: found[name] for name in names if name in found}
    return found | ({"num_beams": beams} if beams > 1 else {})


def without_beams(search: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in search.items() if name not in _OF_BEAMS}
