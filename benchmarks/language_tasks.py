"""Mixtures, dialogue, few-shot prompts and pre-training objectives on public data; writes their tables into
docs/results.md: `make results`, or

    TFZOO_DATA=... TFZOO_CHAT=... .venv/bin/python benchmarks/language_tasks.py [--only=mixture,chat]

    mixture   three sets of texts with labels, as text to text: each alone, and all three in one model
    chat      the English dialogues of PyPI's chatterbot-corpus (BSD licence), whose folder `data` TFZOO_CHAT names; the
              model of configs/gpt.cfg is fine-tuned
    few_shot  the model of configs/gpt.cfg, and random weights, asked with a few examples
    objectives
              four objectives, trained on wikitext-2 with equal sizes and updates, compared after fine-tuning

What docs/language_tasks.json records is not repeated, unless its flags have changed.
"""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import recipes
from finetuned import DATA, key_of, path_of
from recipes import ROOT, RUNS, write_between

from tfzoo.tasks.chat import Chat
from tfzoo.training import report

RECORDS = ROOT / "docs/language_tasks.json"
BEGIN, END = "<!-- language tasks: written by `make results` -->\n", "<!-- end of language tasks -->\n"
Rows = list[tuple[str, str]]

# ---------------------------------------------------------------- Several tasks in one model
_MIXED = ["--model=transformer_base", "--overrides=hidden_size=128,num_heads=2,intermediate_size=256,num_layers=2"]
_MIXED += ["--overrides=num_decoder_layers=2,max_positions=64,norm_first=true,initializer_range=0.07,dropout=0.2"]
_MIXED += ["--tokenizer=sentencepiece", "--vocab_size=4096", "--sequence_length=64", "--target_length=8"]
_MIXED += ["--batch_size=32", "--learning_rate=1e-3", "--log_every=50", "--epochs=12"]
_SENTIMENT = {"0": "negative", "1": "positive"}
_QUESTIONS = {"ABBR": "abbreviation", "DESC": "description", "ENTY": "entity", "HUM": "human", "LOC": "location"}


def _lines(path: str) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        if path.endswith(".csv"):
            return list(csv.reader(file))[1:]
        return [line.rstrip("\n").split("\t") for line in file]


def sst2(part: str) -> Rows:
    return [(text, _SENTIMENT[label]) for text, label in _lines(path_of(f"sst2/{part}.tsv"))]


def trec(part: str) -> Rows:
    name = "TREC.train" if part == "train" else "TREC.test"
    return [(text, _QUESTIONS.get(label, "number")) for text, label in _lines(path_of(f"trec/{name}"))]


def banking77(part: str) -> Rows:
    return [(text, label.replace("_", " ")) for text, label in _lines(path_of(f"banking77/{part}.csv"))]


MIXED: dict[str, tuple[Callable[[str], Rows], str]] = {
    "sst2": (sst2, "sentiment:"),
    "trec": (trec, "kind of question:"),
    "banking77": (banking77, "intent:"),
}


def run_mixture() -> dict[str, Any]:
    folder = RUNS / "data/mixture"
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        tasks = {}
        for name, (read, prefix) in MIXED.items():
            with open(folder / f"{name}.{part}.tsv", "w", encoding="utf-8", newline="") as file:
                csv.writer(file, delimiter="\t", lineterminator="\n").writerows(read(part))
            tasks[name] = {"task": "text_to_text", "file": f"{name}.{part}.tsv", "prefix": prefix}
        (folder / f"{part}.json").write_text(json.dumps(tasks))
    scores: dict[str, Any] = {}
    for name, (_, prefix) in MIXED.items():
        flags = ["--task=text_to_text", f"--prefix={prefix}", *_MIXED]
        found = fine_tune(f"text_to_text-{name}", flags, f"{name}.train.tsv", f"{name}.test.tsv", folder)
        scores[name] = {"alone": found["exact_match"]}
    together = fine_tune("mixture", ["--task=mixture", *_MIXED], "train.json", "test.json", folder)
    for name in MIXED:
        scores[name]["mixture"] = together[f"exact_match/{name}"]
    return scores


def fine_tune(name: str, flags: list[str], train: str, test: str, folder: pathlib.Path) -> dict[str, Any]:
    """Trains, unless that is done, and returns the scores of the test file."""
    run_dir = RUNS / f"{name}-{key_of(flags)}"
    command("train", *flags, f"--train_file={folder / train}", f"--run_dir={run_dir}")
    return {figure: score["value"] for figure, score in evaluate(run_dir, folder / test).items()}


def mixture_lines(scores: dict[str, Any]) -> Iterator[str]:
    yield "### Several tasks in one model\n"
    yield f"    {' '.join(['python -m tfzoo.train --task=mixture', *_MIXED])}\n"
    yield "A small Transformer from scratch writes the label of a text. Exact matches on the test files, in percent:\n"
    yield "| set | trained alone | in the mixture | difference |"
    yield "|---|---:|---:|---:|"
    for name, found in scores.items():
        difference = found["mixture"] - found["alone"]
        yield f"| {name} | {found['alone']:.2f} | {found['mixture']:.2f} | {difference:+.2f} |"


# ---------------------------------------------------------------- Dialogue
_CHAT = ["--task=chat", "--sequence_length=128", "--batch_size=16", "--learning_rate=1e-3", "--epochs=10"]
_CHAT += ["--evaluate_every=50", "--warmup_steps=20", "--log_every=10"]


def dialogues() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yields the part, train or validation, and the messages of each dialogue; its first message decides the part."""
    import yaml

    for path in sorted(pathlib.Path(os.environ["TFZOO_CHAT"], "english").glob("*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            turns = [str(turn).strip() for turn in turns][: len(turns) // 2 * 2]  # The last turn is an answer.
            if not turns or not all(turns):
                continue
            part = "validation" if zlib.crc32(turns[0].lower().encode()) % 10 == 0 else "train"
            yield part, [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def run_chat() -> dict[str, Any]:
    folder = RUNS / "data/chat"
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {"train": [], "validation": []}
    for part, messages in dialogues():
        parts[part].append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    for part, lines in parts.items():
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    run_dir = RUNS / f"chat-{key_of(_CHAT)}"
    files = [f"--train_file={folder / 'train.jsonl'}", f"--validation_file={folder / 'validation.jsonl'}"]
    command("train", *_CHAT, *files, f"--init_from={gpt()}", f"--run_dir={run_dir}")
    evaluations = [each for each in report.read_metrics(run_dir / "metrics.jsonl") if "loss" not in each]
    asked = folder / "asked.jsonl"
    questions = ["Hello", "What is your name?", "Do you like pizza?", "Tell me a joke"]
    asked.write_text("".join(json.dumps({"messages": question}) + "\n" for question in questions))
    answers = RUNS / "data/chat/answers.jsonl"
    answers.unlink(missing_ok=True)
    command("predict", f"--model_dir={run_dir}", f"--input={asked}", f"--output={answers}")
    spoken = [json.loads(line)["answer"] for line in answers.read_text().splitlines()]
    return {
        "rows": {part: len(lines) for part, lines in parts.items()},
        "evaluations": evaluations,
        "baselines": json.loads((run_dir / "baselines.json").read_text()),
        "answers": list(zip(questions, spoken)),
    }


def chat_lines(found: dict[str, Any]) -> Iterator[str]:
    rows = found["rows"]
    yield "### Dialogue\n"
    yield f"    {' '.join(['python -m tfzoo.train --init_from=runs/gpt', *_CHAT])}\n"
    yield (
        f"{rows['train']:,} English dialogues of chatterbot-corpus; {rows['validation']:,} others are held out, whose "
        "first messages are not among those of training.\n"
    )
    first, best = found["evaluations"][0], min(found["evaluations"], key=lambda each: each["answer_perplexity"])
    yield f"| held out | step {first['step']:,} | step {best['step']:,} | most frequent token | 5-gram model |"
    yield "|---|---:|---:|---:|---:|"
    for label, name, form in Chat.FIGURES:
        values = [first[name], best[name], *(found["baselines"][each].get(name) for each in ("frequency", "n-gram"))]
        yield f"| {label} | {' | '.join('-' if value is None else form.format(value) for value in values)} |"
    yield ""
    yield from (f"    {question} -> {json.dumps(answer, ensure_ascii=False)}" for question, answer in found["answers"])


# ---------------------------------------------------------------- Few-shot prompts
_PROMPTS = {
    "sst2": ["--template=Review: {text}\\nSentiment: {label}", "--label_words=0=negative,1=positive"],
    "trec": [
        "--template=Question: {text}\\nType: {label}",
        "--label_words=" + ",".join(f"{label}={word}" for label, word in (_QUESTIONS | {"NUM": "number"}).items()),
    ],
}
_ASK = ["--shots=0,2,4", "--seeds=3", "--max_rows=200", "--calibrate", "--random_baseline"]


def run_few_shot() -> dict[str, Any]:
    found = {}
    for name, flags in _PROMPTS.items():
        train, test = (("train.tsv", "test.tsv"), ("TREC.train", "TREC.test"))[name == "trec"]
        output = RUNS / f"data/few_shot-{name}.json"
        files = [f"--train_file={path_of(f'{name}/{train}')}", f"--test_file={path_of(f'{name}/{test}')}"]
        command("few_shot", f"--model_dir={gpt()}", *files, *flags, *_ASK, f"--output={output}")
        record = json.loads(output.read_text())
        found[name] = {key: record[key] for key in ("rows", "majority", "results")}
    return found


def few_shot_lines(found: dict[str, Any]) -> Iterator[str]:
    yield "### Few-shot prompts\n"
    yield f"    {' '.join(['python -m tfzoo.few_shot --model_dir=runs/gpt', *_ASK])}\n"
    yield "The GPT of configs/gpt.cfg, which has read docstrings alone; the examples were drawn three times.\n"
    yield "| set | model | examples | accuracy | macro F1 |"
    yield "|---|---|---:|---:|---:|"
    for name, record in found.items():
        yield f"| {name} | majority class | - | {100 * record['majority']['accuracy']:.1f}% | - |"
        for row in record["results"]:
            cells = [of_draws(row[figure]) for figure in ("accuracy", "macro_f1")]
            yield f"| {name} | {row['model']} | {row['shots']} | {' | '.join(cells)} |"


def of_draws(figure: dict[str, Any]) -> str:
    deviation = "" if figure["deviation"] is None else f" ± {100 * figure['deviation']:.1f}"
    return f"{100 * figure['mean']:.1f}%{deviation}"


# ---------------------------------------------------------------- Objectives
# Objective -> the flags of its recipe that differ. An encoder-decoder of equal size has fewer layers on each side.
_OBJECTIVES = {
    "masked_lm": ["--flagfile=configs/bert_fast.cfg"],
    "replaced_token": ["--flagfile=configs/electra.cfg", "--overrides=embedding_size=0"],
    "permutation": ["--flagfile=configs/xlnet.cfg"],
    "denoise": ["--flagfile=configs/bart.cfg"],
}
_WIKITEXT = ["--corpus=$TFZOO_DATA/wikitext-2/valid.txt,$TFZOO_DATA/wikitext-2/test.txt"]
_WIKITEXT += ["--steps=1600", "--decay_steps=600", "--evaluate_every=800"]
_TUNED = ["--task=classify", "--learning_rate=3e-4", "--epochs=4", "--overrides=dropout=0.1"]
_TUNED_SETS = {"sst2": ("sst2/train.tsv", "sst2/test.tsv"), "trec": ("trec/TREC.train", "trec/TREC.test")}


def run_objectives() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, flags in {**_OBJECTIVES, "none": []}.items():
        if flags:
            run_dir = RUNS / f"wikitext-{name}-{key_of([*flags, *_WIKITEXT])}"
            command("train", *flags, *map(os.path.expandvars, _WIKITEXT), f"--run_dir={run_dir}")
            start = [f"--init_from={run_dir}"]
        else:  # The model of masked_lm with initial weights.
            start = ["--model=bert_tiny", "--overrides=num_layers=3,hidden_size=192,num_heads=3,intermediate_size=768"]
            start += ["--overrides=norm_first=true,initializer_range=0.07"]
        found[name] = {}
        for task, (train, test) in _TUNED_SETS.items():
            tuned = [*(start if name == "none" else [name, *flags, *_WIKITEXT]), *_TUNED]
            run_dir = RUNS / f"wikitext-{name}-{task}-{key_of(tuned)}"
            command("train", *start, *_TUNED, f"--train_file={path_of(train)}", f"--run_dir={run_dir}")
            found[name][task] = evaluate(run_dir, path_of(test))["accuracy"]
    return found


def objectives_lines(found: dict[str, Any]) -> Iterator[str]:
    yield "### Objectives compared after fine-tuning\n"
    for flags in _OBJECTIVES.values():
        yield f"    {' '.join(['python -m tfzoo.train', *flags, *_WIKITEXT])}"
    yield f"    {' '.join(['python -m tfzoo.train --init_from=RUN', *_TUNED])}\n"
    yield (
        "Models of 3 layers of width 192 (denoise: 2 + 2), trained for the same number of updates on the validation "
        "and test parts of wikitext-2, then fine-tuned. Accuracy on the test files, with 95% intervals:\n"
    )
    yield f"| objective | {' | '.join(_TUNED_SETS)} |"
    yield f"|---|{'---:|' * len(_TUNED_SETS)}"
    for name, scores in found.items():
        cells = [f"{100 * s['value']:.1f}% ({100 * s['low']:.1f} - {100 * s['high']:.1f})" for s in scores.values()]
        yield f"| {'not pre-trained' if name == 'none' else name} | {' | '.join(cells)} |"


# ---------------------------------------------------------------- All
def gpt() -> str:
    """Returns the folder of the run of configs/gpt.cfg, which is trained if it is not there."""
    run_dir = RUNS / f"gpt-{recipes.key_of(recipes.config_of('gpt'))}"
    if not (run_dir / "best").exists():
        command("train", *recipes.flags_of("gpt"), f"--run_dir={run_dir}")
    return str(run_dir)


def evaluate(run_dir: pathlib.Path, test: str | pathlib.Path) -> dict[str, dict[str, float]]:
    """Returns the scores of a test file: {figure: {"value", "low", "high"}}."""
    command("evaluate", f"--model_dir={run_dir}", f"--test_file={test}")
    return json.loads((run_dir / f"evaluation-{pathlib.Path(test).stem}.json").read_text())["scores"]


def command(name: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", f"tfzoo.{name}", *arguments], cwd=ROOT, check=True)


PARTS: dict[str, tuple[list[str], Callable[[], Any], Callable[[Any], Iterator[str]]]] = {
    "mixture": (_MIXED, run_mixture, mixture_lines),
    "chat": (_CHAT, run_chat, chat_lines),
    "objectives": ([str(_OBJECTIVES), *_WIKITEXT, *_TUNED], run_objectives, objectives_lines),
    "few_shot": ([*_PROMPTS["sst2"], *_PROMPTS["trec"], *_ASK], run_few_shot, few_shot_lines),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    options = parser.parse_args()
    if not str(DATA) or not DATA.is_absolute():
        print("skipped; set TFZOO_DATA to the folder of the data sets (docs/data.md)")
        return
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    for name in options.only.split(","):
        flags, run, _ = PARTS[name]
        if records.get(name, {}).get("key") == key_of(flags):
            print(f"{name}: is recorded")
            continue
        if name == "chat" and not os.environ.get("TFZOO_CHAT"):
            print("chat: skipped; set TFZOO_CHAT to the folder data of chatterbot-corpus")
            continue
        records[name] = {"key": key_of(flags), "figures": run()}
        RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
        write_page(records)


def write_page(records: dict[str, Any]) -> None:
    """Writes the sections of all recorded parts."""
    recorded = [(lines, records[name]["figures"]) for name, (_, _, lines) in PARTS.items() if name in records]
    write_between(BEGIN, END, "\n\n".join("\n".join(lines(figures)) for lines, figures in recorded) + "\n")


if __name__ == "__main__":
    main()
