"""The relation between two entities that are marked in a text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.export.answers.base import Answer, Row
from tfzoo.export.answers.labels import Labels
from tfzoo.text import marked
from tfzoo.text.framing import TEXT
from tfzoo.text.reader import Reader, Reading, pad_id

# The five parts of a text.
_PATTERN = r"(?s)^(.*?)<e[12]>(.*?)</e[12]>(.*?)<e[12]>(.*?)</e[12]>(.*)$"
_WHITE = r"\s\x0b\x1c-\x1f\x85\p{Z}"  # As str.isspace.
_MARKER = "</?e[12]>"


class Relations(Labels):
    """The likeliest `label`, string [B], of the relation between two entities, and the `scores`, float32 [B, C], of all
    `labels` [B, C]. The text marks the entities: "The <e1>child</e1> sat in the <e2>cradle</e2>.".

    A text that does not mark both entities, once each, is refused. Long texts are cut around the entities.
    """

    head = "relation"
    fills = ("<e1>a</e1>", "<e2>b</e2>")

    def __init__(self, model, tokenizer, options):
        if options.text_pair:
            raise UserError("text_pair: a relation is read from one text; omit it")
        super().__init__(model, tokenizer, options)
        self.problem_type = "single_label_classification"
        self.reader = MarkedReader(self, model.markers)

    def facts(self):
        return super().facts() | {"markers": list(self.model.markers)}

    def check(self, reading, checks, **more):
        checks.rows(~reading.is_marked, marked.UNMARKED)
        return super().check(reading, checks, **more)

    def row(self, texts, asked=None):
        return MarkedRow(self, texts, asked)

    def refusal(self, row):
        return super().refusal(row) or ("" if row.is_marked else marked.UNMARKED)


class MarkedReading(Reading):
    """A Reading, and `is_marked`, bool [B]: whether a text marks both entities."""

    is_marked: Any


class MarkedReader(Reader):
    """Reads texts with two marked entities as the task relation does.

    Args:
      answer: its reader, which is replaced, has the tokenizer, the frame and the lengths.
      markers: the tokens around the first entity and around the second one.
    """

    def __init__(self, answer: Answer, markers: Sequence[str]):
        reader = answer.reader
        super().__init__(
            reader.tokenizer,
            reader.frame,
            reader.inputs,
            answer.options.sequence_length,
            answer.model.fixed_length,
        )
        self.marker_ids = [reader.tokenizer.vocab.index(marker) for marker in markers]
        self.first = self.frame.parts.index(TEXT)  # The position of the text's first token.
        if self.room < 2:
            raise UserError("sequence_length leaves no room for two entities; use a larger value")

    def read(self, texts: Mapping[str, Any], special: Sequence[str] = (), offsets: bool = False) -> MarkedReading:
        text = tf.strings.unicode_transcode(texts[TEXT], "UTF-8", "UTF-8", errors="replace")
        turned, is_marked = _orders(text)
        before, earlier, between, later, after = (self.tokenizer.tokenize(part) for part in _parts(text))
        ids = [tf.where(turned, *self.marker_ids[::-1]), tf.where(turned, *self.marker_ids)]
        earlier, later = (
            tf.concat([marker[:, tf.newaxis], part, marker[:, tf.newaxis]], 1)
            for marker, part in zip(ids, (earlier, later), strict=True)
        )
        parts = [before, earlier, between, later, after]
        counts = [tf.cast(part.row_lengths(), tf.int32) for part in parts]
        kept = marked.kept(counts, self.room, tf.minimum, tf.maximum)
        none = tf.zeros_like(counts[0])
        chosen = [
            _slice(before, counts[0] - kept.before, kept.before),
            _slice(earlier, none, kept.earlier),
            _slice(between, none, kept.left),
            _slice(between, counts[2] - kept.right, kept.right),
            _slice(later, none, kept.later),
            _slice(after, none, kept.after),
        ]
        places = [self.first + kept.before, self.first + kept.before + kept.earlier + kept.left + kept.right]
        inputs, of = self._framed(tf.concat(chosen, 1))
        first, second = tf.where(turned, places[1], places[0]), tf.where(turned, places[0], places[1])
        inputs["entity_positions"] = tf.stack([first, second], 1)
        reading = MarkedReading(inputs, tf.add_n(list(kept)) < tf.add_n(counts), {TEXT: of}, None, None)
        reading.is_marked = is_marked
        return reading

    def _framed(self, ids: tf.RaggedTensor) -> tuple[dict[str, Any], Any]:
        """Returns the inputs for the token ids of texts, and which positions are those of the texts, bool [B, L]."""
        ones = tf.ones([ids.nrows(), 1], tf.int32)
        rows, segments, of = (
            tf.concat(columns, 1)
            for columns in zip(*(
                (ids, tf.ones_like(ids) * segment, tf.ones_like(ids))
                if part == TEXT
                else (ones * part, ones * segment, tf.zeros_like(ones))
                for part, segment in zip(self.frame.parts, self.frame.segments, strict=True)
            ), strict=True)
        )  # fmt: skip
        shape = [None, self.static]
        inputs = {
            "token_ids": rows.to_tensor(pad_id(self.tokenizer), shape=shape),
            "segment_ids": segments.to_tensor(0, shape=shape),
            "padding_mask": tf.ones_like(rows).to_tensor(0, shape=shape) > 0,
        }
        return {name: value for name, value in inputs.items() if name in self.inputs}, of.to_tensor(0, shape=shape) > 0


class MarkedRow(Row):
    """A Row whose text marks two entities."""

    def __init__(self, answer: Answer, texts: Sequence[str], asked: Mapping[str, Any] | None = None):
        super().__init__(answer, texts, asked)
        reader: Any = answer.reader
        self.truncated = self._cut
        self.inputs["entity_positions"] = np.array([self._places], np.int32) + reader.first

    def read(self, answer):
        reader: Any = answer.reader
        text = tf.constant(list(self.texts.values()))
        turned, self.is_marked = (bool(each) for each in _orders(text))
        pieces = reader.tokenizer.tokenize(tf.concat(_parts(text), 0)).to_list()
        made = marked.row(pieces, reader.marker_ids, turned, reader.room)
        self._places, self._cut = made.places, made.is_cut
        return {TEXT: [(i, 0, 0) for i in made.ids]}


def _orders(texts) -> tuple[Any, Any]:
    """Returns whether texts, strings [B], mark the second entity before the first one, and whether they mark both."""

    def has(first: str, second: str):
        return tf.strings.regex_full_match(
            texts, rf"(?s).*<{first}>.*[^{_WHITE}].*</{first}>.*<{second}>.*[^{_WHITE}].*</{second}>.*"
        )

    turned = has("e2", "e1")
    without = tf.strings.regex_replace(texts, _MARKER, "")
    markers = tf.strings.length(texts) - tf.strings.length(without)
    return turned, (turned | has("e1", "e2")) & (markers == len("<e1></e1><e2></e2>"))


def _parts(texts) -> list[Any]:
    """Returns the five parts of texts, strings [B], as tfzoo.text.marked.borders divides them: white space at the end
    of a part belongs to the next one. Of texts without markers they are of no use."""
    parts, space = [], tf.zeros_like(texts)
    for i in range(1, 1 + marked.PARTS):
        part = tf.strings.join([space, tf.strings.regex_replace(texts, _PATTERN, rf"\{i}")])
        if i < marked.PARTS:
            space = tf.strings.regex_replace(part, f"(?s)^.*?([{_WHITE}]*)$", r"\1")
            part = tf.strings.regex_replace(part, f"[{_WHITE}]*$", "")
        parts.append(part)
    return parts


def _slice(values: tf.RaggedTensor, begin, size) -> tf.RaggedTensor:
    """Returns `size` [B] values of each row from `begin` [B] on."""
    rows = values.value_rowids()
    place = tf.range(tf.size(rows)) - tf.cast(tf.gather(values.row_starts(), rows), tf.int32)
    first = tf.gather(begin, rows)
    chosen = (place >= first) & (place < first + tf.gather(size, rows))
    return tf.RaggedTensor.from_value_rowids(
        tf.boolean_mask(values.flat_values, chosen), tf.boolean_mask(rows, chosen), values.nrows(), validate=False
    )
