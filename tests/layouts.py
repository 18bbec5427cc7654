"""Tests the folder layouts of transformers: python -m tests.layouts FOLDER [--output=docs/layouts.md] [--export]

tests/assets/layouts.py writes the layouts FOLDER/VERSION/NAME. For each layout, token ids, decoded texts, logits and
generated texts are compared with the recorded answers of transformers; the model is saved as NAME.again next to the
layout, loaded and compared once more; and, with --export, the answers of a SavedModel that reads text are compared.
--output writes the table.
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
COLUMNS = ("ids", "decoded", "logits", "generated", "saved again", "exported")
TITLE = "Folder layouts of transformers"


def lines() -> list[str]:
    from tests.text.varied import CHINESE, CODE, MORE, SENTENCES

    return [*SENTENCES, *CHINESE, *CODE, *MORE, *TEXTS, "", " ", "<think>ok</think>  Yes COVID-19"]


def compare(folder: pathlib.Path, answers: pathlib.Path) -> tuple[dict[str, str], tuple]:
    """Returns column -> "equal" or a description of the difference, and (model, tokenizer)."""
    record, arrays = json.loads((answers / "answers.json").read_text()), np.load(answers / "answers.npz")
    model, tokenizer = tfzoo.load(folder)
    if tokenizer is None:
        return {"ids": "no tokenizer"}, (model, None)
    found = {"ids": _ids(tokenizer, record), "decoded": _decoded(tokenizer, record)}
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
    # transformers also omits the unknown and the mask token.
    keep = [[i for i in ids if i not in tokenizer.special_ids] for ids in record["ids"]]
    texts = tokenizer.detokenize(tf.ragged.constant(keep, dtype=tf.int32, ragged_rank=1)).numpy()
    wrong = [i for i, (text, wanted) in enumerate(zip(texts, record["decoded"])) if text.decode() != wanted]
    return f"line {wrong[0]} differs" if wrong else "equal"


def exported(model, tokenizer, answers: pathlib.Path) -> str:
    """Compares the answers of an exported SavedModel that reads text with the reference."""
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
    """Returns the columns of one layout."""
    again = folder.with_name(f"{folder.name}.again")
    shutil.rmtree(again, ignore_errors=True)
    try:
        found, (model, tokenizer) = compare(folder, folder)
        tfzoo.save(model, again, tokenizer)
        second, _ = compare(again, folder)
        found["saved again"] = "equal" if set(second.values()) == {"equal"} else str(second)
        if export:
            found["exported"] = exported(model, tokenizer, folder)
    except UserError as error:
        return {"ids": f"refused: {error}"}
    return found


def table(rows: dict[tuple[str, str], dict[str, str]]) -> str:
    """Returns the page with the table of all layouts."""
    head = [
        f"# {TITLE}",
        "",
        "`make layouts` writes this page. Each folder contains a tiny random model that transformers saved, at the",
        "version shown. tfzoo loads it, saves it again and exports it as a SavedModel that reads text; transformers",
        "loads the folder that tfzoo saved. Compared are:",
        "",
        f"- ids: the token ids of {len(lines())} lines in many scripts, with special tokens recognized and as plain",
        "  text, and of a pair of texts",
        "- decoded: the texts of these ids",
        f"- logits: equal within {TOLERANCE} x max(1, largest absolute value)",
        f"- generated: {NEW_TOKENS} tokens of greedy decoding; a dash where the model does not generate",
        "- saved again: all of these, for the folder that tfzoo saved",
        "- exported: the scores or the generated text of the SavedModel",
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
    parser.add_argument("--output", type=pathlib.Path, help="the page to write")
    parser.add_argument("--layouts", help="names of layouts, comma-separated; all by default")
    parser.add_argument("--export", action="store_true", help="also export each layout")
    arguments = parser.parse_args()
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for answers in sorted(arguments.folder.glob("*/*/answers.json")):
        folder = answers.parent
        if arguments.layouts and folder.name not in arguments.layouts.split(","):
            continue
        record = json.loads(answers.read_text())
        keras.backend.clear_session()  # Otherwise the graphs of all layouts stay in memory.
        gc.collect()
        found = row(folder, arguments.export)
        wrong = {name: value for name, value in found.items() if value != "equal"}
        print(f"{record['transformers']} {folder.name}: {wrong or 'equal'}", flush=True)
        config = json.loads((folder / "config.json").read_text())
        columns = found | {"kind": config["model_type"], "class": record["class"], "version": record["transformers"]}
        folder.with_name(f"{folder.name}.columns.json").write_text(json.dumps(columns))
    for path in sorted(arguments.folder.glob("*/*.columns.json")):  # Including those of earlier calls.
        columns = json.loads(path.read_text())
        rows[columns["version"], path.name.removesuffix(".columns.json")] = columns
    if arguments.output:
        arguments.output.write_text(table(rows))
    bad = sum(any(columns.get(name, "equal") != "equal" for name in COLUMNS) for columns in rows.values())
    print(f"{len(rows)} folders, {len({row['kind'] for row in rows.values()})} model types, {bad} with differences")
    return bool(bad) * 4


if __name__ == "__main__":
    sys.exit(main())
