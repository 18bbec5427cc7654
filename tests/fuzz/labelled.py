"""Labelled files: tables, JSON lines, columns of words, SQuAD, relations, choices, conversations and preferences."""

import json
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzz.harness import Kind
from tests.fuzz.mutations import damage_bytes, damage_json
from tfzoo.data.choices import ChoiceFile
from tfzoo.data.labelled import LabelledFile
from tfzoo.data.messages import ConversationFile, PreferenceFile
from tfzoo.data.relations import RelationFile
from tfzoo.data.squad import QuestionFile
from tfzoo.data.tagged import TaggedFile

_CHAT = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello."}]
_QUESTION = {"id": "q0", "question": "Who sings?", "answers": [{"text": "A man", "answer_start": 0}]}
# name -> a reader of the file, and its content: text, or objects for lines of JSON.
FILES: dict[str, tuple[Callable[..., Any], str | list[dict]]] = {
    "labels.tsv": (LabelledFile, "label\ttext\nyes\tA man sings.\nno\tIt is late.\nyes\tThe dog runs.\n"),
    "quoted.csv": (LabelledFile, 'text,pair,label\n"A man, singing.","He ""sings"".",1\nIt is\u00e9 late.,No.,0\n'),
    "labels.jsonl": (LabelledFile, [{"text": "A man sings.", "label": "yes"}, {"text": "It is late.", "label": 3}]),
    "words.conll": (TaggedFile, "John B-PER\nSmith I-PER\nsings O\n\nIn O\nParis B-LOC\n. O\n"),
    "spans.jsonl": (
        TaggedFile,
        [
            {"text": "John sings in Paris.", "spans": [{"start": 0, "end": 4, "label": "PER"}]},
            {"text": "No", "spans": []},
        ],
    ),
    "squad.json": (
        QuestionFile,
        json.dumps({"data": [{"paragraphs": [{"context": "A man sings. It is late.", "qas": [_QUESTION]}]}]}),
    ),
    "relations.txt": (
        RelationFile,
        '1\t"The <e1>child</e1> sat in <e2>it</e2>."\nContent\nComment:\n\n2\t"<e1>I</e1> <e2>am</e2>"\nOther\n\n',
    ),
    "choices.jsonl": (
        ChoiceFile,
        [{"context": "A man", "ending0": "sings.", "ending1": "is green.", "label": i} for i in range(2)],
    ),
    "chats.jsonl": (ConversationFile, [{"messages": _CHAT}, {"messages": [*_CHAT, *_CHAT]}]),
    "preferences.jsonl": (PreferenceFile, [{"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}]),
}


def _make(folder: pathlib.Path) -> None:
    for name, (_, content) in FILES.items():
        if isinstance(content, list):
            content = "".join(json.dumps(record) + "\n" for record in content)
        (folder / name).write_text(content)


def _damage(folder: pathlib.Path, draw: random.Random) -> str:
    name = draw.choice(sorted(FILES))
    path, content = folder / name, FILES[name][1]
    if isinstance(content, list) and draw.random() < 0.7:
        records = damage_json(content, draw)
        lines = records if isinstance(records, list) else [records]
        path.write_text("".join(json.dumps(record) + "\n" for record in lines))
        return f"{name}: values"
    if name == "squad.json" and draw.random() < 0.7:
        path.write_text(json.dumps(damage_json(json.loads(path.read_text()), draw)))
        return f"{name}: values"
    path.write_bytes(damage_bytes(path.read_bytes(), draw))
    return f"{name}: bytes"


def _rows(folder: pathlib.Path, policy: str) -> list[str]:
    return [*_lines(folder, policy)]


def _lines(folder: pathlib.Path, policy: str) -> Iterator[str]:
    for name, (reader, _) in FILES.items():
        file = reader(folder / name, flag="train_file", policy=policy)
        yield file.describe()
        yield from map(repr, file.rows())


KINDS = {
    # What is accepted row by row must be the same if unsuitable rows are skipped, because there are none.
    "labelled": Kind(_make, _damage, lambda folder: _rows(folder, "strict"), lambda folder: _rows(folder, "skip")),
}
