"""Folders as transformers lays them out, read: python -m tests.layouts FOLDER [--output=docs/layouts.md] [--export]

FOLDER/VERSION/NAME are layouts of tests/assets/layouts.py. For each: ids, decoded texts, logits and generated texts are
compared with what transformers answered; the folder is written again beside itself, as NAME.again, and read once more;
and, with --export, a SavedModel that reads text answers the same. --output writes the table.
"""

import argparse
import gc
import json
import pathlib
import shutil
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf

import tfzoo
from tfzoo import progress
from tfzoo.errors import UserError
from tfzoo.export import interface, savedmodel
from tfzoo.export.answers import Options
from tfzoo.text.framing import PAIR, TEXT

TOLERANCE = 1e-4  # Times max(1, max|reference|).
TEXTS = ["The quick brown fox, doesn't it?", "人工智能和机器学习 in 2024", "a"]
NEW_TOKENS = 8
LENGTH = 96
COLUMNS = ("ids", "texts of ids", "logits", "generated", "written again", "exported")
TEXT_OF = "What transformers lays out, and what tfzoo makes of it"


def lines() -> list[str]:
    from tests.text.varied import CHINESE, CODE, MORE, SENTENCES

    return [*SENTENCES, *CHINESE, *CODE, *MORE, *TEXTS, "", " ", "<think>ok</think>  Yes COVID-19"]


def compare(folder: pathlib.Path, answers: pathlib.Path) -> tuple[dict[str, str], tuple]:
    """Column -> "equal", or what differs; and the model and the tokenizer."""
    record, arrays = json.loads((answers / "answers.json").read_text()), np.load(answers / "answers.npz")
    model, tokenizer = tfzoo.load(folder)
    if tokenizer is None:
        return {"ids": "no tokenizer"}, (model, None)
    found = {"ids": _ids(tokenizer, record), "texts of ids": _decoded(tokenizer, record)}
    worst = 0.0
    for i, text in enumerate(TEXTS):
        inputs = tokenizer(text)
        if record["head"] == "Seq2SeqLM":
            start = tf.constant([[model.record.config["decoder_start_token_id"]]])
            inputs |= {"decoder_token_ids": start, "decoder_padding_mask": tf.ones_like(start, tf.bool)}
        outputs = model({name: value for name, value in inputs.items() if name in interface.inputs_of(model)})
        logits = outputs["classify_logits" if "classify_logits" in outputs else "logits"]
        wanted = arrays[f"logits_{i}"]
        worst = max(worst, float(np.abs(logits - wanted).max() / max(1.0, np.abs(wanted).max())))
    found["logits"] = "equal" if worst <= TOLERANCE else f"differ by {worst:.1e}"
    if record["texts"]:
        texts = [tfzoo.generate_text(model, text, tokenizer, max_new_tokens=NEW_TOKENS)[0] for text in TEXTS]
        found["generated"] = "equal" if texts == record["texts"] else f"{texts} instead of {record['texts']}"
    return found, (model, tokenizer)


def _ids(tokenizer, record) -> str:
    for i, (line, wanted) in enumerate(zip(lines(), record["ids"])):
        ids = _framed(tokenizer, tokenizer.frames[0], {TEXT: line}, special=True)
        if ids != wanted:
            return f"line {i} ({line[:20]!r}) differs"
    plain = tokenizer.tokenize(lines()).to_list()
    wrong = [i for i, (ids, wanted) in enumerate(zip(plain, record["plain"])) if ids != wanted]
    if wrong:
        return f"line {wrong[0]} as plain text differs"
    pair = _framed(tokenizer, tokenizer.frames[1], {TEXT: "a text", PAIR: "two words"})
    if record["pair"] and pair != record["pair"]:
        return "a pair differs"
    return "equal" if tokenizer.vocab_size == record["size"] else "the vocabulary's size differs"


def _framed(tokenizer, frame, texts, special: bool = False) -> list[int]:
    names = [token.content for token in tokenizer.added_tokens if token.special] if special else []
    ids = {piece: tokenizer.tokenize([text], special=names).to_list()[0] for piece, text in texts.items()}
    return [i for part in frame.parts for i in (ids[part] if isinstance(part, str) else [part])]


def _decoded(tokenizer, record) -> str:
    # transformers drops the tokens for unknown and masked words as well.
    keep = [[i for i in ids if i not in tokenizer.special_ids] for ids in record["ids"]]
    texts = tokenizer.detokenize(tf.ragged.constant(keep, dtype=tf.int32, ragged_rank=1)).numpy()
    wrong = [i for i, (text, wanted) in enumerate(zip(texts, record["decoded"])) if text.decode() != wanted]
    return f"line {wrong[0]} differs" if wrong else "equal"


def exported(model, tokenizer, answers: pathlib.Path) -> str:
    """What a SavedModel with text in answers, beside the reference."""
    record, arrays = json.loads((answers / "answers.json").read_text()), np.load(answers / "answers.npz")
    with tempfile.TemporaryDirectory() as folder, progress.quiet():
        savedmodel.save(model, tokenizer, folder, Options(sequence_length=LENGTH, max_new_tokens=NEW_TOKENS))
        found = tf.saved_model.load(folder).signatures["serving_default"](text=tf.constant(TEXTS))
    if "generated_text" in found:
        texts = [text.decode() for text in found["generated_text"].numpy()]
        return "equal" if texts == record["texts"] else f"{texts} instead of {record['texts']}"
    wanted = np.stack([tf.nn.softmax(arrays[f"logits_{i}"][0]).numpy() for i in range(len(TEXTS))])
    return "equal" if np.abs(found["scores"].numpy() - wanted).max() <= TOLERANCE else "differs"


def row(folder: pathlib.Path, export: bool) -> dict[str, str]:
    """The columns of one layout."""
    again = folder.with_name(f"{folder.name}.again")
    shutil.rmtree(again, ignore_errors=True)
    try:
        found, (model, tokenizer) = compare(folder, folder)
        tfzoo.save(model, again, tokenizer)
        second, _ = compare(again, folder)
        found["written again"] = "equal" if set(second.values()) == {"equal"} else str(second)
        if export:
            found["exported"] = exported(model, tokenizer, folder)
    except UserError as error:
        return {"ids": f"refused: {error}"}
    return found


def table(rows: dict[tuple[str, str], dict[str, str]]) -> str:
    """The page that shows them."""
    head = [
        f"# {TEXT_OF}",
        "",
        "Written by `make layouts`: folders of tiny random models, saved by transformers at the versions named, read",
        "by tfzoo, written again and read by both, and exported as a SavedModel that reads text. Ids are those of",
        f"{len(lines())} lines in many scripts, with special tokens recognised and as plain text, and of a pair of",
        f"texts; logits agree to {TOLERANCE} of the largest; generated texts have {NEW_TOKENS} tokens, always the",
        "likeliest; a dash stands where a model writes none.",
        "",
        f"| transformers | folder | model_type | tokenizer | {' | '.join(COLUMNS)} |",
        f"|{'---|' * (4 + len(COLUMNS))}",
    ]
    body = []
    for (version, name), columns in sorted(rows.items()):
        cells = [columns.get(column, "-") for column in ("kind", "class", *COLUMNS)]
        body.append(f"| {version} | {name} | {' | '.join(cells)} |")
    return "\n".join([*head, *body, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, help="page to write")
    parser.add_argument("--layouts", help="which of them, comma-separated; all where it is not given")
    parser.add_argument("--export", action="store_true", help="export each as well")
    arguments = parser.parse_args()
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for answers in sorted(arguments.folder.glob("*/*/answers.json")):
        folder = answers.parent
        if arguments.layouts and folder.name not in arguments.layouts.split(","):
            continue
        record = json.loads(answers.read_text())
        keras.backend.clear_session()  # Or the graphs of all of them stay in memory.
        gc.collect()
        found = row(folder, arguments.export)
        wrong = {name: value for name, value in found.items() if value != "equal"}
        print(f"{record['transformers']} {folder.name}: {wrong or 'equal'}", flush=True)
        config = json.loads((folder / "config.json").read_text())
        columns = found | {"kind": config["model_type"], "class": record["class"], "version": record["transformers"]}
        folder.with_name(f"{folder.name}.columns.json").write_text(json.dumps(columns))
    for path in sorted(arguments.folder.glob("*/*.columns.json")):  # Of earlier calls, too.
        columns = json.loads(path.read_text())
        rows[columns["version"], path.name.removesuffix(".columns.json")] = columns
    if arguments.output:
        arguments.output.write_text(table(rows))
    bad = sum(any(columns.get(name, "equal") != "equal" for name in COLUMNS) for columns in rows.values())
    print(f"{len(rows)} folders, {len({row['kind'] for row in rows.values()})} model types, {bad} with differences")
    return bool(bad) * 4


if __name__ == "__main__":
    sys.exit(main())
