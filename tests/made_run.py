"""Folders that look like those of runs, made of small files without training; does not import TensorFlow."""

import json
import math
import pathlib
import random

LABELS = ("negative", "neutral", "positive")
_WORDS = "the a film plot actor scene is was not very good bad slow bright dull long short funny and but with".split()


def write_lines(path: pathlib.Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _config(model: str, heads: list[str], labels: list[str]) -> dict:
    sizes = {"vocab_size": 8192, "hidden_size": 256, "num_layers": 4, "num_heads": 4, "rotary_scaling": {"factor": 8}}
    entry = {"model": model, "heads": heads, "num_labels": len(labels), "labels": labels, "pool": None, "config": sizes}
    return {"models": {"main": entry}, "tokenizer": "0" * 64}


def results(labels=LABELS, rows: int = 872, accuracy: float = 0.86, linear: float = 0.824, seed: int = 0) -> dict:
    """Returns the content of an evaluation.json with random figures that agree with each other."""
    draw = random.Random(seed)
    counts = [[0] * len(labels) for _ in labels]
    for _ in range(rows):
        gold = draw.randrange(len(labels))
        predicted = gold if draw.random() < accuracy else draw.randrange(len(labels))
        counts[gold][predicted] += 1
    right = sum(counts[i][i] for i in range(len(labels)))
    classes = []
    for i, label in enumerate(labels):
        support, predicted = sum(counts[i]), sum(row[i] for row in counts)
        precision, recall = counts[i][i] / max(predicted, 1), counts[i][i] / max(support, 1)
        f1 = 2 * precision * recall / ((precision + recall) or 1)
        classes.append({"label": label, "precision": precision, "recall": recall, "f1": f1, "support": support})
    value, half = right / rows, 1.96 * math.sqrt(0.25 / rows)
    macro = sum(entry["f1"] for entry in classes) / len(labels)
    mistakes = [
        {
            "where": f"dev.tsv:{draw.randrange(2, rows + 2)}",
            "text": " ".join(draw.choices(_WORDS, k=draw.randint(4, 60))).capitalize() + ".",
            "gold": labels[i % len(labels)],
            "predicted": labels[(i + 1) % len(labels)],
            "score": 1 - (i + 1) / 100,
        }
        for i in range(12)
    ]
    return {
        "task": "classify",
        "file": "dev.tsv",
        "rows": rows,
        "step": 600,
        "best_metric": "accuracy",
        "scores": {
            "accuracy": {"value": value, "low": value - half, "high": value + half},
            "macro_f1": {"value": macro, "low": macro - half, "high": macro + half},
            "matthews": {"value": 2 * value - 1},
        },
        "baselines": {
            "majority": {"accuracy": 0.348, "macro_f1": 0.172, "matthews": 0.0},
            "linear": {"accuracy": linear, "macro_f1": linear - 0.01},
        },
        "beaten": value > linear,
        "classes": classes,
        "confusion": {"labels": list(labels), "counts": counts},
        "mistakes": mistakes,
    }


def fine_tuning(folder: pathlib.Path, evaluation: dict | None = None, seed: int = 0, **flags: str) -> pathlib.Path:
    """Writes the folder of a fine-tuning run whose curves diverge at step 600."""
    folder.mkdir(parents=True, exist_ok=True)
    evaluation = results(seed=seed) if evaluation is None else evaluation
    given = {"task": "classify", "train_file": "/data/train.tsv", "validation_file": "/data/dev.tsv"}
    given |= {"init_from": "hf://owner/encoder@0123456789", "steps": "1500", "learning_rate": "5e-05"}
    given |= {"model": "bert_small", "batch_size": "32", "seed": "0"}
    lines = [f"--{name}={value}" for name, value in sorted((given | flags).items())]
    (folder / "flags.cfg").write_text("# Every flag of a run.\n" + "\n".join([*lines, "--lowercase", "--noresume\n"]))
    labels = [entry["label"] for entry in evaluation["classes"]]
    (folder / "config.json").write_text(json.dumps(_config("bert_small", ["classify"], labels or ["LABEL_0"])))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "corpus.json").write_text(json.dumps({"report": {"train": {"rows": 12000}}}))
    draw, records = random.Random(seed), []
    for step in range(10, 1501, 10):
        loss = 0.05 + 1.05 * math.exp(-step / 350) + draw.gauss(0, 0.05) * math.exp(-step / 900)
        records.append({"step": step, "loss": loss, "learning_rate": 5e-5 * (1 - step / 1500)})
        if step % 100 == 0:
            validation = 0.42 + 0.6 * math.exp(-step / 180) + max(step - 600, 0) * 3e-4
            records.append({"step": step, "validation_loss": validation, "accuracy": 0.86, "macro_f1": 0.85})
    write_lines(folder / "metrics.jsonl", records)
    return folder


def pre_training(folder: pathlib.Path) -> pathlib.Path:
    """Writes the folder of a pre-training run in two stages, which was evaluated four times."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--model=bert_small", "--objective=masked_lm", "--corpus=docstrings", "--steps=2000", "--lowercase"]
    stages = "--stages=1000:sequence_length=256,batch_size=16"
    (folder / "flags.cfg").write_text("\n".join([*flags, stages, "--optimizer=muon"]) + "\n")
    (folder / "config.json").write_text(json.dumps(_config("bert_small", ["lm", "next_sentence"], ["LABEL_0"])))
    (folder / "corpus.json").write_text(json.dumps({"report": {"train": {"documents": 3046, "words": 900737}}}))
    baselines = {
        "frequency": {"masked_lm_loss": 6.48, "masked_lm_accuracy": 0.062},
        "neighbour": {"masked_lm_loss": 5.37, "masked_lm_accuracy": 0.165},
    }
    (folder / "baselines.json").write_text(json.dumps(baselines))
    records = []
    for step in range(50, 2001, 50):
        place = {"sequence_length": 128 if step <= 1000 else 256, "batch_size": 32 if step <= 1000 else 16}
        loss = 3.2 + 5.5 * math.exp(-step / 400) + (float("nan") if step == 50 else 0)
        records.append({"step": step, **place, "loss": loss})
        if step % 500 == 0:
            held_out = 3.0 + 5.5 * math.exp(-step / 400)
            figures = {"masked_lm_loss": held_out, "masked_lm_accuracy": 0.5 - held_out / 20}
            figures |= {"masked_lm_perplexity": math.exp(held_out), "next_sentence_accuracy": 0.81}
            records.append({"step": step, **place, **figures})
    write_lines(folder / "metrics.jsonl", records)
    return folder
