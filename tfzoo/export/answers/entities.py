"""Named entities in a text."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfzoo.export import vocabulary
from tfzoo.export.answers.base import Answer, cut, part_of, scatter, softmax
from tfzoo.export.answers.words import pieces_of
from tfzoo.export.interface import Tensor
from tfzoo.export.vocabulary import Tags
from tfzoo.text.framing import TEXT


class Entities(Answer):
    """Named entities: `types`, `texts` and `scores` [B, N] and, if the tokenizer supports offsets, `starts` and `ends`
    in code points of the text. A text has `num_entities` [B] of them; the rest is filled up with "" and 0.

    The label of a word is that of its first token. B-X begins an entity of type X; I-X, or a label X without such a
    prefix, continues an entity of type X, or begins one if none comes immediately before. O is no entity. The score is
    the mean over the words of the entity.
    """

    offsets = True

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, options)
        self.tags = Tags(list(model.labels))
        self.continues, self.ends_word = word_tables(tokenizer, model.config.vocab_size)
        axes = ("batch", "entities")
        self.outputs = {
            "types": Tensor("string", axes),
            "texts": Tensor("string", axes),
            "scores": Tensor("float32", axes),
        }
        if self.reader.has_offsets:
            self.outputs |= {"starts": Tensor("int32", axes), "ends": Tensor("int32", axes)}
        self.outputs |= {"num_entities": Tensor("int32", ("batch",))}

    def answer_reading(self, reading, texts, call):
        probabilities = tf.nn.softmax(tf.cast(call(reading.inputs)["tag_logits"], tf.float32))
        places = tf.where(reading.of[TEXT])  # The (row, position) of all tokens of the texts, in order.
        rows = places[:, 0]
        ids = tf.gather_nd(reading.inputs["token_ids"], places)
        # Words: where they begin, and the label of the first token.
        before = tf.concat([ids[:1], ids[:-1]], 0)
        inside = tf.gather(tf.constant(self.continues), ids) & tf.gather(tf.constant(self.ends_word), before)
        begins = ~(inside & _same_as_before(rows))
        word = tf.cumsum(tf.cast(begins, tf.int32)) - 1
        chances = tf.boolean_mask(tf.gather_nd(probabilities, places), begins)
        label = tf.argmax(chances, -1)
        word_rows = tf.boolean_mask(rows, begins)
        kind = tf.gather(tf.constant(self.tags.kinds, tf.int32), label)
        opens = tf.gather(tf.constant(self.tags.opens), label)
        # Entities: consecutive words of one type; -1 is no entity.
        named = kind >= 0
        opens = named & (opens | ~_same_as_before(word_rows) | ~_same_as_before(kind))
        entity = tf.where(named, tf.cumsum(tf.cast(opens, tf.int32)) - 1, -1)
        entity_rows = tf.boolean_mask(word_rows, opens)
        total = tf.size(entity_rows)
        score = tf.math.segment_mean(tf.boolean_mask(tf.reduce_max(chances, -1), named), tf.boolean_mask(entity, named))
        of_token = tf.gather(entity, word)
        in_entity = of_token >= 0
        tokens_of = tf.boolean_mask(of_token, in_entity)
        columns = {
            "types": tf.gather(tf.constant(self.tags.names), tf.boolean_mask(kind, opens)),
            "scores": score,
        }
        if reading.starts is not None:
            first = tf.math.segment_min(tf.boolean_mask(tf.gather_nd(reading.starts, places), in_entity), tokens_of)
            last = tf.math.segment_max(tf.boolean_mask(tf.gather_nd(reading.ends, places), in_entity), tokens_of)
            columns |= dict(zip(("texts", "starts", "ends"), cut(tf.gather(texts["text"], entity_rows), first, last)))
        else:
            ids = tf.boolean_mask(ids, in_entity)
            pieces = tf.RaggedTensor.from_value_rowids(ids, tokens_of, tf.cast(total, tf.int32))
            columns["texts"] = tf.strings.strip(self.tokenizer.detokenize(pieces))
        entity_rows = tf.cast(entity_rows, tf.int32)
        counts = tf.math.unsorted_segment_sum(tf.ones_like(entity_rows), entity_rows, tf.size(texts["text"]))
        dense = {name: scatter(entity_rows, values, counts) for name, values in columns.items()}
        return dense | {"num_entities": counts}

    def expected_of_rows(self, rows, limits):
        tags, margin = self.tags, limits.margin
        entities_by_row: list[list[dict]] = []
        decided = []
        for row in rows:
            places = row.places(TEXT)
            logits = row.outputs("tag_logits")
            chances = softmax(logits)
            words: list[list[int]] = []
            for i in places:
                joins = words and self.continues[row.ids[i]] and self.ends_word[row.ids[i - 1]]
                words[-1].append(i) if joins else words.append([i])
            entities: list[dict] = []
            previous, sure = -1, True
            for word in words:
                label = int(chances[word[0]].argmax())
                best, second = np.sort(logits[word[0]])[::-1][:2] if logits.shape[-1] > 1 else (1.0, 0.0)
                sure = sure and best - second > margin * max(1, np.abs(logits).max())
                kind = tags.kinds[label]
                if kind >= 0:
                    if tags.opens[label] or kind != previous:
                        entities.append({"type": tags.names[kind], "tokens": [], "scores": []})
                    entities[-1]["tokens"] += word
                    entities[-1]["scores"].append(chances[word[0]].max())
                previous = kind
            for entity in entities:
                first, last = entity["tokens"][0], entity["tokens"][-1]
                entity["span"] = part_of(self, row, first, last, row.texts["text"])
            entities_by_row.append(entities)
            decided.append(sure)
        shape = (len(rows), max(map(len, entities_by_row), default=0))

        def table(value, dtype):
            values = np.zeros(shape, dtype)
            for i, entities in enumerate(entities_by_row):
                values[i, : len(entities)] = [value(entity) for entity in entities]
            return values

        sure_at = np.repeat(np.array(decided, bool)[:, None], shape[1], axis=1)
        longest = max((len(entity["span"][0]) for entities in entities_by_row for entity in entities), default=1) or 1
        outputs: dict[str, Any] = {
            "types": {"values": table(lambda e: e["type"], np.array([*tags.names, ""]).dtype), "decided": sure_at},
            "texts": {"values": table(lambda e: e["span"][0], f"U{longest}"), "decided": sure_at},
            "scores": table(lambda e: np.mean(e["scores"]), np.float32),
            "num_entities": {
                "values": np.array([len(e) for e in entities_by_row], np.int32),
                "decided": np.array(decided, bool),
            },
        }
        for i, name in enumerate(("starts", "ends") if self.reader.has_offsets else ()):
            outputs[name] = {"values": table(lambda e, i=i: e["span"][1 + i], np.int32), "decided": sure_at}
        return outputs


def word_tables(tokenizer: Any, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which tokens form words together.

    WordPiece marks each piece that continues a word (##). With other tokenizers a piece that does not begin with a
    space continues a word if there is a letter, digit or mark on both sides of the boundary.

    Returns:
      bool [V]: whether a token can continue the word of the token before it; bool [V]: whether the token after it can
      continue the word.
    """
    continues, ends = np.zeros(vocab_size, bool), np.zeros(vocab_size, bool)
    size = tokenizer.vocab_size
    if hasattr(tokenizer, "continues"):
        continues[:size], ends[:size] = tokenizer.continues, True
        return continues, ends
    continues[:size], ends[:size] = vocabulary.boundaries(tokenizer.vocab, pieces_of(tokenizer))
    return continues, ends


def _same_as_before(values):
    """Returns bool [N]: whether each value equals the one before it; False for the first."""
    return tf.concat([tf.zeros_like(values[:1], tf.bool), values[1:] == values[:-1]], 0)
