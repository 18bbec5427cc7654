"""Entities and the relations between them: a run of --task=tag and one of --task=relation, one after the other.

    "Ada works for Acme in Köln."

    {"entities": [{"type": "PER", "text": "Ada", "start": 0, "end": 3, "score": 0.99}, ...],
     "triples": [{"head": {"type": "PER", "text": "Ada", "start": 0, "end": 3}, "relation": "Works-For",
                  "tail": {"type": "ORG", "text": "Acme", "start": 14, "end": 18}, "score": 0.97}]}

The relation model reads every pair of entities as it does in training, with both of them marked: "<e1>Ada</e1> works
for <e2>Acme</e2> in Köln.". The direction at the end of its label, (e1,e2) or (e2,e1), tells which entity is the head.
A model whose labels have directions is asked once for each pair, with the entity that comes first in the text as e1;
any other model is asked in both orders, and e1 is the head.

A pair is omitted if the relation model cannot read both entities and all of the text between them, or if `max_pairs`
pairs of the text are closer to each other; the record then has "omitted_pairs", their number.
"""

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tfzoo.errors import UserError
from tfzoo.evaluation.relations import OTHER, relation_of
from tfzoo.prediction import folders
from tfzoo.prediction.answers import Record
from tfzoo.prediction.predictor import Predictor
from tfzoo.prediction.stream import TRUNCATE, Stream

NO_RELATION = frozenset({OTHER.lower(), "no_relation", "na", "none"})
"""The labels, in lower case, of pairs without a relation."""
MAX_PAIRS = 100
_TURNED = "(e2,e1)"
_MARKER = re.compile(r"<(/?e[12]>)")
# More characters per token than in any text: what is further away than this from both entities is not read.
_CHARACTERS_PER_TOKEN = 16


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """Which pairs of entities are asked about, and which answers are kept.

    max_pairs: the number of pairs per text, those closest to each other.
    ordered_pairs: whether each pair is asked about in both orders; None means: if no label has a direction.
    keep_no_relation: whether the triples without a relation (NO_RELATION) are kept.
    """

    max_pairs: int = MAX_PAIRS
    ordered_pairs: bool | None = None
    keep_no_relation: bool = False


class Triples:
    """A predictor of entities and a predictor of relations; `TripleStream` answers with them.

    Args:
      predictors: the two of them, in either order.
      names: their folders, for messages.
      options: see PairOptions.

    Raises:
      UserError: they are not one of entities and one of relations, or the entities have no offsets.
    """

    task = "triples"
    inputs = ("text",)
    may_pair = reads_lists = False

    def __init__(self, predictors: Sequence[Predictor], names: Sequence[str], options: PairOptions):
        tasks = [predictor.task for predictor in predictors]
        if sorted(tasks) != ["relation", "tag"]:
            raise UserError(
                f"--model_dir={','.join(names)}: the tasks of these models are {', '.join(tasks)}; specify one run of "
                "--task=tag and one of --task=relation"
            )
        self.tag, self.relation = (predictors[tasks.index(name)] for name in ("tag", "relation"))
        if not self.tag.has_offsets:
            raise UserError(
                f"--model_dir={names[tasks.index('tag')]}: its tokenizer cannot locate entities in a text; use another "
                "model"
            )
        if options.max_pairs < 1:
            raise UserError(f"max_pairs={options.max_pairs}: must be at least 1")
        self.options, self.length = options, self.tag.length
        labels = self.relation.answer([("<e1>a</e1> <e2>b</e2>",)])[0]["scores"]
        has_directions = any(relation_of(label) != label for label in labels)
        self.ordered = not has_directions if options.ordered_pairs is None else options.ordered_pairs

    def problem(self, row: Sequence[Any]) -> str:
        """See Predictor.problem."""
        return ""

    def fingerprint(self) -> str:
        """Returns a SHA-256 in hexadecimal of both models and the options."""
        parts = (self.tag.fingerprint(), self.relation.fingerprint(), repr(self.options))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def open_folders(model_dirs: Sequence[str | os.PathLike], options: PairOptions, **more: Any) -> Triples:
    """Returns the models of two folders.

    Args:
      model_dirs: a run or artifact that finds entities and one that finds relations, in either order.
      options: see PairOptions.
      **more: options of tfzoo.prediction.folders.open_folder, for both.

    Raises:
      UserError: a folder cannot be read, or the two do not find entities and relations.
    """
    names = [os.fspath(each) for each in model_dirs]
    if len(names) != 2:
        raise UserError(
            f"--model_dir={','.join(names)}: names {len(names)} folders; specify one, or a run of --task=tag and one "
            "of --task=relation"
        )
    if more.get("checkpoint") is not None:
        raise UserError(
            f"--checkpoint={more['checkpoint']}: does not apply to two models; omit it to read the best of each"
        )
    return Triples([folders.open_folder(name, **more) for name in names], names, options)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Two entities of a text: `row` is the number of the text, `first` and `second` are the entities e1 and e2."""

    row: int
    text: str
    first: Record
    second: Record

    def marked(self, context: int) -> str:
        """Returns the text with both entities marked, and at most `context` characters before and after them."""
        opening = sorted([(self.first, "e1"), (self.second, "e2")], key=lambda each: each[0]["start"])
        (earlier, name), (later, other) = opening
        parts = [
            (None, self.text[max(0, earlier["start"] - context) : earlier["start"]]),
            (name, self.text[earlier["start"] : earlier["end"]]),
            (None, self.text[earlier["end"] : later["start"]]),
            (other, self.text[later["start"] : later["end"]]),
            (None, self.text[later["end"] : later["end"] + context]),
        ]
        # A marker that the text itself contains is not one: tokenizers read "< e1>" as they read "<e1>".
        parts = [(marker, _MARKER.sub(r"< \1", part)) for marker, part in parts]
        return "".join(part if marker is None else f"<{marker}>{part}</{marker}>" for marker, part in parts)


class TripleStream(Stream):
    """Answers rows with the triples of their texts; see the module's docstring.

    Args:
      predictor: the two models.
      batch_size: the number of texts, or of marked pairs, of a batch.
      block_rows: the number of texts, or of marked pairs, among which batches of similar length are formed.
    """

    def __init__(self, predictor: Triples, batch_size: int = 32, block_rows: int = 2048):
        super().__init__(predictor.tag, batch_size, block_rows)
        self._triples, self._pairs_per_block = predictor, block_rows
        self._relations = Stream(predictor.relation, batch_size, block_rows)

    def __exit__(self, *exception) -> None:
        self._relations.__exit__(*exception)
        super().__exit__(*exception)

    def _records(self, texts, batches):
        records = super()._records(texts, batches)
        for record in records:
            record["triples"] = []
        pairs = self._pairs(texts, records)
        while block := list(itertools.islice(pairs, self._pairs_per_block)):
            self._add_triples(records, block)
        for record in records:
            record["triples"] = _distinct(record["triples"])
        return records

    def _pairs(self, texts: Sequence[tuple[str, ...]], records: Sequence[Record]) -> Iterator[_Pair]:
        """Yields the pairs of the entities of each text; counts those that are omitted in the records."""
        options, reach = self._triples.options, self._triples.relation.length * _CHARACTERS_PER_TOKEN
        for row, ((text,), record) in enumerate(zip(texts, records, strict=True)):
            entities = sorted(record["entities"], key=lambda entity: entity["start"])
            pairs = list(itertools.combinations(entities, 2))
            near = [pair for pair in pairs if _distance(pair) <= reach]
            near = sorted(near, key=lambda pair: (_distance(pair), pair[0]["start"]))[: options.max_pairs]
            _omit(record, len(pairs) - len(near))
            for first, second in sorted(near, key=lambda pair: (pair[0]["start"], pair[1]["start"])):
                yield _Pair(row, text, first, second)
                if self._triples.ordered:
                    yield _Pair(row, text, second, first)

    def _add_triples(self, records: list[Record], pairs: list[_Pair]) -> None:
        """Adds the triples of pairs to the records of their texts."""
        context = self._triples.relation.length * _CHARACTERS_PER_TOKEN
        found = self._relations.answer([(pair.marked(context),) for pair in pairs])
        # Of a text that was cut, or refused because it is too long, the part with both entities may fit.
        long = [i for i, answer in enumerate(found) if "truncated" in answer]
        for i, shorter in zip(long, self._relations.answer([(pairs[i].marked(0),) for i in long])):
            if "truncated" in shorter:
                found[i] = {}
            elif "error" in found[i]:
                found[i] = shorter
        for pair, answer in zip(pairs, found, strict=True):
            if not answer:
                # Both orders of a pair are too long or neither is: they have the same tokens.
                _omit(records[pair.row], int(pair.first["start"] < pair.second["start"]))
            elif self._triples.options.keep_no_relation or answer["label"].lower() not in NO_RELATION:
                records[pair.row]["triples"].append(_triple(pair, answer))


def open_stream(predictor: Predictor | Triples, batch_size: int, block_rows: int = 2048, long_texts: str = TRUNCATE):
    """Returns a stream of answers: see Stream and TripleStream."""
    if isinstance(predictor, Triples):
        return TripleStream(predictor, batch_size, block_rows)
    return Stream(predictor, batch_size, block_rows, long_texts)


def _distance(pair: tuple[Record, Record]) -> int:
    return pair[1]["start"] - pair[0]["end"]


def _omit(record: Record, count: int) -> None:
    if count:
        record["omitted_pairs"] = record.get("omitted_pairs", 0) + count


def _triple(pair: _Pair, answer: Record) -> Record:
    head, tail = (pair.second, pair.first) if answer["label"].endswith(_TURNED) else (pair.first, pair.second)
    places = [{name: entity[name] for name in ("type", "text", "start", "end")} for entity in (head, tail)]
    relation = relation_of(answer["label"])
    return {"head": places[0], "relation": relation, "tail": places[1], "score": answer["score"]}


def _distinct(triples: Iterable[Record]) -> list[Record]:
    """Returns the triples without repetitions, which the two orders of a pair can give: the likelier one remains."""
    best: dict[tuple, Record] = {}
    for triple in triples:
        key = (triple["head"]["start"], triple["tail"]["start"], triple["relation"])
        if key not in best or triple["score"] > best[key]["score"]:
            best[key] = triple
    return list(best.values())
