"""What a text signature reads and answers, head by head, in TensorFlow's stock ops.

One class a head. `inputs` are names of strings [B]; `outputs` are {name: (dtype, axes)}, where "batch" stands for B;
`answer(texts, call)` gives the outputs, `call` being the model. golden.py says the same in Python, row by row.

Whatever the head, `truncated` bool [B] says which texts were longer than the export reads, and were cut there.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfzoo import generation, models, nn
from tfzoo.errors import UserError
from tfzoo.generation.decode import special_ids
from tfzoo.generation.texts import folder_options
from tfzoo.text import framing
from tfzoo.text.framing import PAIR, TEXT

TOP = 5  # Words for each mask, and answers to each question.
LONGEST_ANSWER = 30  # Tokens.
SPACE = r"[\s\p{Z}]+"
_UNUSED = re.compile(r"\[unused\d+\]")


@dataclasses.dataclass(frozen=True)
class Options:
    """How texts are read.

    sequence_length: tokens of the longest text, special ones included.
    text_pair: a classifier reads pairs of texts.
    long_texts: what becomes of longer ones: "truncate" or "refuse".
    pooling: of embeddings: mean, first, last or pooled.
    max_new_tokens: the most tokens that a language model writes.
    search: options of decoding by which it looks for the likeliest text: beams, penalties and what may not be written.
    """

    sequence_length: int
    text_pair: bool = False
    long_texts: str = "truncate"
    pooling: str = "mean"
    max_new_tokens: int = 64
    search: dict[str, Any] = dataclasses.field(default_factory=dict)


# Of a folder's generation_config.json what an export takes over. Not what draws, nor what compares strings.
_OF_BEAMS = ("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping")
_CONSTRAINTS = (*("min_new_tokens", "repetition_penalty", "presence_penalty", "no_repeat_ngram_size", "bad_words_ids"),)


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


def find(model: keras.Model, tokenizer: Any, options: Options) -> "Answer | None":
    """What the text signature of a model answers; None where it reads ids alone."""
    for head, kind in HEADS.items():
        if head in model.heads and not (head == "lm" and _generates(model)):
            return kind(model, tokenizer, options)
    if model.can_generate:
        return Continuations(model, tokenizer, options)
    return Embeddings(model, tokenizer, options) if not model.heads and not model.is_encoder_decoder else None


def _generates(model: keras.Model) -> bool:
    return model.is_encoder_decoder or model.is_causal


class Reader:
    """Texts to the inputs of a model.

    pieces: TEXT and PAIR -> the name of the input that goes there.
    """

    def __init__(self, model: keras.Model, tokenizer: Any, options: Options, pieces: Mapping[str, str]):
        self.model, self.tokenizer, self.options, self.pieces = model, tokenizer, options, pieces
        self.frame = framing.frame(model.family, tokenizer, PAIR in pieces)
        self.has_offsets = has_offsets(tokenizer)
        self.start_id = decoder_start_id(model, tokenizer) if model.is_encoder_decoder else None
        # Reformer's lengths are static.
        self.static = options.sequence_length if model.family == "reformer" else None
        if self.frame.room(options.sequence_length) < len(pieces):
            raise UserError(f"--sequence_length={options.sequence_length} leaves no room for text; name a larger one")

    def read(self, texts: Mapping[str, Any], special: tuple[str, ...] = (), offsets: bool = False) -> "Reading":
        """texts: strings [B] by name. special: tokens that are meant where they are written. offsets: give them, where
        the tokenizer has them."""
        offsets = offsets and self.has_offsets
        tokens: dict[str, tuple] = {}  # Piece -> ragged ids, and starts and ends.
        for piece, name in self.pieces.items():
            if offsets:
                tokens[piece] = self.tokenizer.tokenize_with_offsets(texts[name])
            else:
                tokens[piece] = (self.tokenizer.tokenize(texts[name], special=special),)
        lengths = {piece: tf.cast(ids.row_lengths(), tf.int32) for piece, (ids, *_) in tokens.items()}
        kept, truncated = self._cut(lengths)
        every = tf.range(tf.size(kept[TEXT]))  # Rows.
        # Every token's row and column. (Ragged operations would do the same with thousands of nodes.)
        end, rows, columns, parts = tf.zeros_like(every), [], [], []
        for part, segment in zip(self.frame.parts, self.frame.segments):
            if isinstance(part, str):
                row = tf.cast(tokens[part][0].value_rowids(), tf.int32)
                place = tf.range(tf.size(row)) - tf.gather(tf.cumsum(lengths[part], exclusive=True), row)
                keep = place < tf.gather(kept[part], row)
                row, place = tf.boolean_mask(row, keep), tf.boolean_mask(place, keep)
                values = [tf.boolean_mask(ragged.flat_values, keep) for ragged in tokens[part]]
                of, size = 1 + list(self.pieces).index(part), kept[part]
            else:
                row, place, size, of = every, tf.zeros_like(every), tf.ones_like(every), 0
                values = [tf.fill(tf.shape(every), part)] + [tf.zeros_like(every)] * (2 * offsets)
            rows.append(row)
            columns.append(tf.gather(end, row) + place)
            parts.append([*values, tf.fill(tf.shape(row), segment), tf.fill(tf.shape(row), of)])
            end += size
        indices = tf.stack([tf.concat(rows, 0), tf.concat(columns, 0)], 1)
        length = tf.maximum(tf.reduce_max(end), 1) if self.static is None else self.static
        shape = tf.stack([tf.size(every), length])

        def dense(values, fill=0):
            result = tf.tensor_scatter_nd_update(tf.fill(shape, fill), indices, tf.concat(values, 0))
            return tf.ensure_shape(result, [None, self.static])

        ids, *places, segments, pieces = zip(*parts)
        inputs = {
            "token_ids": dense(ids, pad_id(self.tokenizer)),
            "segment_ids": dense(segments),
            "padding_mask": tf.ensure_shape(tf.sequence_mask(end, length), [None, self.static]),
        }
        if self.start_id is not None:  # Both sides read the text, which the decoder sees a step late.
            late = tf.concat([tf.fill([shape[0], 1], self.start_id), inputs["token_ids"][:, :-1]], 1)
            inputs |= {"decoder_token_ids": late, "decoder_padding_mask": inputs["padding_mask"]}
        inputs = {name: value for name, value in inputs.items() if name in self.model.INPUTS}
        pieces = dense(pieces)
        starts, ends = map(dense, places) if places else (None, None)
        return Reading(inputs, truncated, {p: pieces == 1 + i for i, p in enumerate(self.pieces)}, starts, ends)

    def _cut(self, lengths):
        """Each of two texts may have half of the room, and what the other leaves."""
        room = self.frame.room(self.options.sequence_length)
        kept = {TEXT: tf.minimum(lengths[TEXT], room)}
        if PAIR in lengths:
            kept[TEXT] = tf.minimum(lengths[TEXT], tf.maximum(room - lengths[PAIR], (room + 1) // 2))
            kept[PAIR] = tf.minimum(lengths[PAIR], room - kept[TEXT])
        truncated = tf.reduce_any([kept[piece] < lengths[piece] for piece in lengths], axis=0)
        if self.options.long_texts == "refuse":
            bound = self.options.sequence_length
            check = require(
                ~tf.reduce_any(truncated), f"a text is longer than {bound} tokens; row", tf.where(truncated)
            )
            with tf.control_dependencies([check]):
                kept = {piece: tf.identity(length) for piece, length in kept.items()}
        return kept, truncated


@dataclasses.dataclass
class Reading:
    """A batch of texts as a model reads it.

    of: piece -> bool [B, L], which tokens are the text's. starts, ends: int32 [B, L], code points in their text; None
    for a tokenizer without offsets.
    """

    inputs: dict[str, Any]
    truncated: Any
    of: dict[str, Any]
    starts: Any
    ends: Any


def scatter(rows, values, counts):
    """values [N], in order, of rows int32 [N], counts [B] of each -> [B, max(counts)], filled up with "" or 0."""
    ranks = tf.range(tf.size(rows)) - tf.gather(tf.cumsum(counts, exclusive=True), rows)
    # Of no rows the maximum is the lowest integer.
    shape = tf.stack([tf.size(counts), tf.maximum(tf.reduce_max(counts), 0)])
    empty = tf.fill(shape, "") if values.dtype == tf.string else tf.zeros(shape, values.dtype)
    return tf.tensor_scatter_nd_update(empty, tf.stack([rows, ranks], 1), values)


def pad_id(tokenizer: Any) -> int:
    pad = getattr(tokenizer, "pad_id", None)
    return 0 if pad is None else pad


def has_offsets(tokenizer: Any) -> bool:
    """Whether `tokenize_with_offsets` knows where in a text its tokens are."""
    try:
        tokenizer.tokenize_with_offsets(tf.constant(["a"]))
    except UserError:
        return False
    return True


def decoder_start_id(model: keras.Model, tokenizer: Any) -> int:
    """What the decoder reads first: as the model's folder says; padding in a run, as tfzoo's objectives begin."""
    start = special_ids(model).get("decoder_start_token_id")
    if start is None and not hub_config(model):
        start = getattr(tokenizer, "pad_id", None)
    return models.page_of(model).new_config(model.config)["decoder_start_token_id"] if start is None else start


def hub_config(model: keras.Model) -> Mapping[str, Any]:
    """The config.json that a model was read with; {} for one of a run."""
    return model.record.config if model.record else {}


def require(holds, message: str, value):
    """An operation that fails, as INVALID_ARGUMENT, unless `holds`."""
    return tf.debugging.Assert(holds, [message, value], summarize=5)


class Answer:
    """What the heads' classes share."""

    pieces: Mapping[str, str] = {TEXT: "text"}
    outputs: dict[str, tuple[str, tuple[str | int, ...]]]

    def __init__(self, model: keras.Model, tokenizer: Any, options: Options):
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.reader = Reader(model, tokenizer, options, self.pieces)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.pieces.values())

    def answer(self, texts: Mapping[str, Any], call: Callable[[dict], dict]) -> dict:
        raise NotImplementedError


# Hugging Face's words for how a classifier's logits are read.
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")


class Labels(Answer):
    """Classification: `label` string [B], the likeliest, and `scores` float32 [B, C] with their `labels` [B, C].

    Scores are probabilities, together 1 unless several labels may hold at once (problem_type in config.json). With one
    class there is nothing to choose: `value` [B] is the model's number. A regression of several numbers gives
    `values` [B, C] with their `labels`.
    """

    head = "classify"

    def __init__(self, model, tokenizer, options):
        self.pieces = {TEXT: "text", PAIR: "text_pair"} if options.text_pair else {TEXT: "text"}
        super().__init__(model, tokenizer, options)
        self.labels = self.labels_of(model)
        count = len(self.labels)
        stated = hub_config(model).get("problem_type") or PROBLEMS[0]
        if stated not in PROBLEMS:
            raise UserError(f"config.json: problem_type is {stated!r}; it must be one of {', '.join(PROBLEMS)}")
        self.problem_type = "regression" if count == 1 else stated
        each = ("string", ("batch", count))
        if count == 1:
            self.outputs = {"value": ("float32", ("batch",))}
        elif self.problem_type == "regression":
            self.outputs = {"labels": each, "values": ("float32", ("batch", count))}
        else:
            self.outputs = {"label": ("string", ("batch",)), "labels": each, "scores": ("float32", ("batch", count))}
        self.outputs |= {"truncated": ("bool", ("batch",))}

    def labels_of(self, model: keras.Model) -> list[str]:
        return labels_of(model)

    def answer(self, texts, call):
        reading = self.reader.read(texts)
        logits = tf.cast(call(reading.inputs)[f"{self.head}_logits"], tf.float32)
        if len(self.labels) == 1:
            return {"value": logits[:, 0], "truncated": reading.truncated}
        labels = tf.constant(self.labels)
        found = {"labels": tf.tile(labels[tf.newaxis], [tf.shape(logits)[0], 1]), "truncated": reading.truncated}
        if self.problem_type == "regression":
            return found | {"values": logits}
        several = self.problem_type == "multi_label_classification"
        return found | {
            "label": tf.gather(labels, tf.argmax(logits, -1)),
            "scores": tf.sigmoid(logits) if several else tf.nn.softmax(logits),
        }


class NextSentence(Labels):
    """Does text_pair follow text? The labels are "follows" and "does not follow"."""

    head = "next_sentence"

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, dataclasses.replace(options, text_pair=True))

    def labels_of(self, model):
        return ["follows", "does not follow"]


class Entities(Answer):
    """Named things: of the N of each text `types`, `texts`, `scores` [B, N], and, where the tokenizer knows them,
    `starts` and `ends` in code points of the text. `num_entities` [B] is N; what follows is "" and 0.

    A word's label is that of its first token. B-X begins an entity of type X; I-X, or a label X without such a letter,
    continues one, or begins one where none of its type comes right before. O is none. The score is the words' mean.
    """

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, options)
        self.tags = Tags(labels_of(model))
        self.continues, self.ends_word = word_tables(tokenizer, model.config.vocab_size)
        axes = ("batch", "entities")
        self.outputs = {"types": ("string", axes), "texts": ("string", axes), "scores": ("float32", axes)}
        if self.reader.has_offsets:
            self.outputs |= {"starts": ("int32", axes), "ends": ("int32", axes)}
        self.outputs |= {"num_entities": ("int32", ("batch",)), "truncated": ("bool", ("batch",))}

    def answer(self, texts, call):
        reading = self.reader.read(texts, offsets=True)
        probabilities = tf.nn.softmax(tf.cast(call(reading.inputs)["tag_logits"], tf.float32))
        places = tf.where(reading.of[TEXT])  # Of the texts' tokens, one after another.
        rows = places[:, 0]
        ids = tf.gather_nd(reading.inputs["token_ids"], places)
        # Words: where one begins, and what its first token says.
        before = tf.concat([ids[:1], ids[:-1]], 0)
        inside = tf.gather(tf.constant(self.continues), ids) & tf.gather(tf.constant(self.ends_word), before)
        begins = ~(inside & _same_as_before(rows))
        word = tf.cumsum(tf.cast(begins, tf.int32)) - 1
        chances = tf.boolean_mask(tf.gather_nd(probabilities, places), begins)
        label = tf.argmax(chances, -1)
        word_rows = tf.boolean_mask(rows, begins)
        kind = tf.gather(tf.constant(self.tags.kinds, tf.int32), label)
        opens = tf.gather(tf.constant(self.tags.opens), label)
        # Entities: words of one type, -1 being none.
        named = kind >= 0
        opens = named & (opens | ~_same_as_before(word_rows) | ~_same_as_before(kind))
        entity = tf.where(named, tf.cumsum(tf.cast(opens, tf.int32)) - 1, -1)
        entity_rows = tf.boolean_mask(word_rows, opens)
        total = tf.size(entity_rows)
        score = tf.math.segment_mean(tf.boolean_mask(tf.reduce_max(chances, -1), named), tf.boolean_mask(entity, named))
        of_token = tf.gather(entity, word)
        mine = of_token >= 0
        tokens_of = tf.boolean_mask(of_token, mine)
        found = {
            "types": tf.gather(tf.constant(self.tags.names), tf.boolean_mask(kind, opens)),
            "scores": score,
        }
        if reading.starts is not None:
            first = tf.math.segment_min(tf.boolean_mask(tf.gather_nd(reading.starts, places), mine), tokens_of)
            last = tf.math.segment_max(tf.boolean_mask(tf.gather_nd(reading.ends, places), mine), tokens_of)
            found |= dict(zip(("texts", "starts", "ends"), cut(tf.gather(texts["text"], entity_rows), first, last)))
        else:
            pieces = tf.RaggedTensor.from_value_rowids(tf.boolean_mask(ids, mine), tokens_of, tf.cast(total, tf.int32))
            found["texts"] = tf.strings.strip(self.tokenizer.detokenize(pieces))
        entity_rows = tf.cast(entity_rows, tf.int32)
        counts = tf.math.unsorted_segment_sum(tf.ones_like(entity_rows), entity_rows, tf.size(texts["text"]))
        dense = {name: scatter(entity_rows, values, counts) for name, values in found.items()}
        return dense | {"num_entities": counts, "truncated": reading.truncated}


class Spans(Answer):
    """Answers to `question` that stand in `context`: the TOP likeliest `answers` [B, TOP] with `scores`, and, where the
    tokenizer knows them, `starts` and `ends` in code points of the context; the likeliest first.

    A score is the product of the probabilities of its first and last token, taken over the context's tokens and the
    [CLS] before them, if there is one; `no_answer` [B] is that of [CLS] itself, 0 without one (Devlin et al. 2019,
    section 4.3). Answers are of at most LONGEST_ANSWER tokens; where there are fewer of them, "" and 0 follow.
    """

    pieces = {TEXT: "question", PAIR: "context"}

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, options)
        axes = ("batch", TOP)
        self.outputs = {"answers": ("string", axes), "scores": ("float32", axes)}
        if self.reader.has_offsets:
            self.outputs |= {"starts": ("int32", axes), "ends": ("int32", axes)}
        self.outputs |= {"no_answer": ("float32", ("batch",)), "truncated": ("bool", ("batch",))}
        self.null_first = isinstance(self.reader.frame.parts[0], int)

    def answer(self, texts, call):
        reading = self.reader.read(texts, offsets=True)
        logits = tf.cast(call(reading.inputs)["span_logits"], tf.float32)
        context, length = reading.of[PAIR], tf.shape(logits)[1]
        asked = context
        if self.null_first:
            asked = tf.concat([tf.ones_like(context[:, :1]), context[:, 1:]], 1)
        chances = tf.nn.log_softmax(tf.where(asked[..., tf.newaxis], logits, -1e9), axis=1)
        null = tf.exp(tf.reduce_sum(chances[:, 0], -1)) if self.null_first else tf.zeros_like(logits[:, 0, 0])
        first, last = tf.unstack(tf.where(context[..., tf.newaxis], chances, -1e9), axis=-1)
        # Every first token with each of the last ones that are not too far behind it.
        reach = tf.range(length)[:, tf.newaxis] + tf.range(LONGEST_ANSWER)
        last = tf.pad(last, [[0, 0], [0, LONGEST_ANSWER]], constant_values=-1e9)
        both = first[..., tf.newaxis] + tf.gather(last, reach, axis=1)
        score, which = tf.math.top_k(tf.reshape(both, [-1, length * LONGEST_ANSWER]), TOP)
        begin, end = which // LONGEST_ANSWER, which // LONGEST_ANSWER + which % LONGEST_ANSWER
        there = score > -1e8
        found: dict[str, Any] = {"scores": tf.where(there, tf.exp(score), 0.0)}
        flat = tf.boolean_mask(tf.repeat(tf.range(tf.shape(logits)[0]), TOP), tf.reshape(there, [-1]))
        begin, end = (tf.boolean_mask(x, there) for x in (begin, end))
        if reading.starts is not None:
            starts = tf.gather_nd(reading.starts, tf.stack([flat, begin], 1))
            ends = tf.gather_nd(reading.ends, tf.stack([flat, end], 1))
            parts = dict(zip(("answers", "starts", "ends"), cut(tf.gather(texts["context"], flat), starts, ends)))
        else:
            ids = tf.gather(reading.inputs["token_ids"], flat)
            within = (tf.range(length) >= begin[:, tf.newaxis]) & (tf.range(length) <= end[:, tf.newaxis])
            parts = {"answers": tf.strings.strip(self.tokenizer.detokenize(tf.ragged.boolean_mask(ids, within)))}
        at, shape = tf.where(there), tf.shape(there, tf.int64)
        for name, values in parts.items():
            fill = tf.fill(shape, "") if values.dtype == tf.string else tf.zeros(shape, values.dtype)
            found[name] = tf.tensor_scatter_nd_update(fill, at, values)
        found = {name: tf.ensure_shape(value, [None, TOP]) for name, value in found.items()}
        return found | {"no_answer": null, "truncated": reading.truncated}


class Words(Answer):
    """For each mask in a text the TOP likeliest `words` and their `probabilities` [B, M, TOP], the likeliest first.

    Text i has `num_masks[i]` of them; what follows is "" and 0. The probabilities are the model's own, over the whole
    vocabulary. Masks beyond where a text was cut are not counted.
    """

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, options)
        self.mask = mask_token(tokenizer)
        self.vocab, self.readable = readable(tokenizer, model.config.vocab_size)
        self.top = min(TOP, int(self.readable.sum()))
        if not self.top:
            raise UserError("the tokenizer's vocabulary holds no whole word, only special tokens and pieces")
        axes = ("batch", "masks", self.top)
        self.outputs = {
            "words": ("string", axes),
            "probabilities": ("float32", axes),
            "num_masks": ("int32", ("batch",)),
            "truncated": ("bool", ("batch",)),
        }

    def answer(self, texts, call):
        reading = self.reader.read(texts, special=(self.mask,))
        token_ids = reading.inputs["token_ids"]
        is_mask = token_ids == self.tokenizer.mask_id
        num_masks = tf.reduce_sum(tf.cast(is_mask, tf.int32), axis=1)
        rows, columns = tf.unstack(tf.cast(tf.where(is_mask), tf.int32), num=2, axis=1)
        positions = scatter(rows, columns, num_masks)
        logits = call(reading.inputs | masked_inputs(self.model, positions, is_mask))["logits"]
        chances = tf.where(tf.constant(self.readable), tf.nn.softmax(tf.cast(logits, tf.float32)), -1.0)
        likeliest, which = tf.math.top_k(chances, self.top)
        present = tf.sequence_mask(num_masks, tf.shape(positions)[1])[:, :, tf.newaxis]
        vocab = tf.constant([word.encode() for word in self.vocab])
        return {
            "words": tf.where(present, tf.gather(vocab, which), ""),
            "probabilities": tf.where(present, likeliest, 0.0),
            "num_masks": num_masks,
            "truncated": reading.truncated,
        }


class Embeddings(Answer):
    """One vector a text: `embeddings` float32 [B, E], the mean of its tokens' last states unless asked otherwise."""

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, options)
        if options.pooling == "pooled" and getattr(model, "pooler", None) is None:
            raise UserError("--pooling=pooled: this model has no pooler; choose mean, first or last")
        self.outputs = {
            "embeddings": ("float32", ("batch", sequence_size(model))),
            "truncated": ("bool", ("batch",)),
        }

    def answer(self, texts, call):
        reading = self.reader.read(texts)
        pooled = nn.pool(self.options.pooling, call(reading.inputs), reading.inputs["padding_mask"])
        return {"embeddings": tf.cast(pooled, tf.float32), "truncated": reading.truncated}


class Continuations(Answer):
    """What a language model writes, the likeliest by options.search: `generated_text` string [B], of `num_tokens` int32
    [B].

    A decoder goes on behind `text`, an encoder-decoder answers it. A text of no tokens cannot be gone on from.
    """

    # What the signature `generate` reads beside the text, a number for each row. Rows of temperature 0 get the
    # likeliest text, as without these numbers; the others are drawn, token by token, whatever the number of beams.
    ROWS = {
        name: np.dtype(generation.ROWS[name][0]).name
        for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    }

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
        self.outputs = {
            "generated_text": ("string", ("batch",)),
            "num_tokens": ("int32", ("batch",)),
            "truncated": ("bool", ("batch",)),
        }

    def answer(self, texts, call, rows=None):
        """rows: tensors [B] by ROWS; None looks for the likeliest text."""
        reading = self.reader.read(texts)
        mask = reading.inputs["padding_mask"]
        empty = tf.where(~tf.reduce_any(mask, 1))
        checks = [require(tf.size(empty) == 0, "there is nothing to go on from in row", empty)]
        if rows is not None:
            most = self.options.max_new_tokens
            asked = rows["max_new_tokens"]
            holds = tf.reduce_all((1 <= asked) & (asked <= most))
            checks.append(require(holds, f"max_new_tokens must be from 1 to {most}, and is", asked))
        with tf.control_dependencies(checks):
            token_ids = tf.identity(reading.inputs["token_ids"])
        written, lengths = self._write(token_ids, mask, rows)
        ids = tf.RaggedTensor.from_tensor(written, tf.cast(lengths, tf.int64))
        return {
            "generated_text": self.tokenizer.detokenize(ids),
            "num_tokens": lengths,
            "truncated": reading.truncated,
        }

    def _write(self, token_ids, mask, rows):
        """(ids [B, max_new_tokens], lengths [B])."""

        def decode(rows, **options):
            static, fixed = generation.read_options(**options, **self.ids)
            each = {name: tf.fill(tf.shape(mask)[:1], value) for name, value in fixed.items()}
            found = generation.decode(self.model, static, token_ids, mask, each | rows, self.options.max_new_tokens)
            return found["token_ids"], found["lengths"]

        def nothing():
            return tf.zeros([tf.shape(mask)[0], self.options.max_new_tokens], tf.int32), tf.zeros_like(
                mask[:, 0], tf.int32
            )

        search = self.options.search
        if rows is None:
            return decode({}, **search)
        drawing = without_beams(search)
        if "num_beams" not in search:  # Drawn at temperature 0, the likeliest token is the one.
            return decode(rows, do_sample=True, **drawing)
        likeliest = rows["temperature"] == 0
        most = {"max_new_tokens": rows["max_new_tokens"]}
        found = tf.cond(tf.reduce_any(likeliest), lambda: decode(most, **search), nothing)
        drawn = tf.cond(tf.reduce_all(likeliest), nothing, lambda: decode(rows, do_sample=True, **drawing))
        return tf.where(likeliest[:, tf.newaxis], found[0], drawn[0]), tf.where(likeliest, found[1], drawn[1])


# The first of these that a model has is what its text signature is about.
HEADS: dict[str, type[Answer]] = {
    "classify": Labels,
    "tag": Entities,
    "span": Spans,
    "lm": Words,
    "next_sentence": NextSentence,
}


def labels_of(model: keras.Model) -> list[str]:
    """The names of a model's classes."""
    return list(model.labels)


class Tags:
    """What labels say: `kinds[i]`, the number of label i's type in `names`, -1 for none; `opens[i]`: it begins one."""

    def __init__(self, labels: list[str]):
        parts = [(label[0], label[2:]) if re.match("[BI]-.", label) else ("I", label) for label in labels]
        self.names = sorted({name for _, name in parts} - {"O"})
        self.kinds = [self.names.index(name) if name in self.names else -1 for _, name in parts]
        self.opens = [letter == "B" for letter, _ in parts]


def word_tables(tokenizer: Any, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """bool [V] twice: a token can continue the word of the one before it; the one after it can continue its.

    WordPiece says it of each piece (##). Elsewhere a piece that does not begin with a space continues a word where a
    letter, digit or mark stands on both sides.
    """
    continues, ends = np.zeros(vocab_size, bool), np.zeros(vocab_size, bool)
    size = tokenizer.vocab_size
    if hasattr(tokenizer, "continues"):
        continues[:size], ends[:size] = tokenizer.continues, True
        return continues, ends
    for i, (piece, text) in enumerate(zip(tokenizer.vocab, pieces_of(tokenizer))):
        spaced = piece[:1] in ("Ġ", "▁") or text[:1].isspace()
        continues[i] = not spaced and _in_word(text[:1])
        ends[i] = _in_word(text[-1:])
    return continues, ends


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "�"  # Half a character, too.


def pieces_of(tokenizer: Any) -> list[str]:
    """What each token is as text; "" for special ones."""
    ids = tf.range(tokenizer.vocab_size)[:, tf.newaxis]
    return [text.decode(errors="replace") for text in tokenizer.detokenize(ids).numpy()]


def readable(tokenizer: Any, vocab_size: int) -> tuple[list[str], np.ndarray]:
    """Each token as one would read it, and bool [V]: whether one would. Not special tokens, nor what continues a word,
    nor [unused1]."""
    words = np.zeros(vocab_size, bool)
    size = tokenizer.vocab_size
    if hasattr(tokenizer, "continues"):
        texts = list(tokenizer.vocab)
        words[:size] = [not (c or _UNUSED.fullmatch(t)) for t, c in zip(texts, tokenizer.continues)]
    else:
        texts = [text.strip() for text in pieces_of(tokenizer)]
        marked = any(piece.startswith(("Ġ", "▁")) for piece in tokenizer.vocab)
        words[:size] = [
            bool(text) and "�" not in text and (not marked or piece.startswith(("Ġ", "▁")))
            for piece, text in zip(tokenizer.vocab, texts)
        ]
    words[tokenizer.special_ids] = False
    return texts + [""] * (vocab_size - size), words


def mask_token(tokenizer: Any) -> str:
    """The text that stands for a word to be found."""
    if getattr(tokenizer, "mask_id", None) is None:
        raise UserError("the tokenizer has no mask token, which a masked language model reads")
    return tokenizer.vocab[tokenizer.mask_id]


def masked_inputs(model: keras.Model, positions, is_mask) -> dict:
    """What asks a model for the words at positions [B, M], where is_mask [B, L] is True."""
    if "target_mapping" in model.INPUTS:  # In two streams no token sees what is to be found.
        mapping = tf.one_hot(positions, tf.shape(is_mask)[1])
        seen = tf.repeat(~is_mask[:, tf.newaxis], tf.shape(is_mask)[1], axis=1)
        return {"target_mapping": mapping, "permutation_mask": seen}
    return {"masked_positions": positions}


def sequence_size(model: keras.Model) -> int:
    """E of `sequence`; Reformer's two streams stand side by side."""
    return model.config.hidden_size * (2 if model.family == "reformer" else 1)


def cut(texts, starts, ends):
    """texts: strings [N], starts and ends int32 [N] in code points -> the parts, without spaces around them, and where
    these start and end."""
    texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
    parts = tf.strings.substr(texts, starts, ends - starts, unit="UTF8_CHAR")
    left = tf.strings.regex_replace(parts, f"^{SPACE}", "")
    bare = tf.strings.regex_replace(left, f"{SPACE}$", "")
    starts += tf.strings.length(parts, unit="UTF8_CHAR") - tf.strings.length(left, unit="UTF8_CHAR")
    return bare, starts, starts + tf.strings.length(bare, unit="UTF8_CHAR")


def _same_as_before(values):
    """bool [N]: the value is that of the element before; False for the first."""
    return tf.concat([tf.zeros_like(values[:1], tf.bool), values[1:] == values[:-1]], 0)
