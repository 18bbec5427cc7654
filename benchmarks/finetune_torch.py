"""Fine-tuning of a real encoder, compared with Hugging Face transformers and torch:

    TFZOO_DATA=FOLDER TFZOO_ENCODER=FOLDER .venv/bin/python benchmarks/finetune_torch.py [--set=trec] [--epochs=6]

tfzoo and transformers begin with the same weights, including those of the new head, and train on the same batches with
AdamW, the same learning rates and the same clipping, and without dropout. The program prints how much their losses
differ over the first 20 updates and over all, the scores of both on the test file, and the difference of the scores
with its interval and p by a paired bootstrap. It fails if one of the first losses differs by more than 1e-4, or if the
scores differ significantly.

torch and transformers are those of .venv-references (`make .venv-references/installed`), or of --python.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import types
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOSSES, TOLERANCE, LEVEL = 20, 1e-4, 0.05
EPSILON = 1e-8
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, LENGTH = 32, 1e-4, 0.01, 1.0, 128


# ---------------------------------------------------------------- transformers, in an environment with torch
def train_torch(folder: pathlib.Path) -> None:
    """Trains folder/start on folder/batches.npz; writes the losses and the test logits to folder/torch.npz."""
    import torch
    import transformers

    torch.set_num_threads(2)
    batches, given = np.load(folder / "batches.npz"), json.loads((folder / "batches.json").read_text())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "start", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model.train()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]  # Biases and norms.
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.999),
        eps=EPSILON,
    )
    steps, warmup = given["steps"], given["warmup_steps"]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup))
    )
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            # TensorFlow and Keras add epsilon before the correction of the bias (Kingma and Ba 2015, end of section 2).
            group["eps"] = EPSILON / math.sqrt(1 - 0.999 ** (step + 1))
        batch = rows_of(batches, "train", step, BATCH_SIZE)
        inputs = {name: torch.from_numpy(batch[name]).long() for name in ("input_ids", "attention_mask", "labels")}
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    logits = []
    with torch.no_grad():
        for step in range(given["test_batches"]):
            batch = rows_of(batches, "test", step, 64)
            inputs = {name: torch.from_numpy(batch[name]).long() for name in ("input_ids", "attention_mask")}
            logits.append(model(**inputs).logits.numpy())
    np.savez(folder / "torch.npz", losses=np.array(losses), logits=np.concatenate(logits))


def rows_of(batches: Any, part: str, step: int, batch_size: int) -> dict[str, np.ndarray]:
    """Returns a batch of folder/batches.npz, padded to its longest row."""
    starts = batches[f"{part}_starts"][step * batch_size : (step + 1) * batch_size + 1]
    lengths = np.diff(starts)
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int32)
    ids[mask] = batches[f"{part}_ids"][starts[0] : starts[-1]]
    labels = batches[f"{part}_labels"][step * batch_size : (step + 1) * batch_size]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# ---------------------------------------------------------------- tfzoo
def config_of(folder: pathlib.Path, args: argparse.Namespace, init_from: pathlib.Path):
    from finetuned import SETS, path_of

    from tfzoo.training.config import TrainConfig

    _, train, validation, _, _ = SETS[args.set]
    return TrainConfig(
        run_dir=str(folder / "run"),
        task="classify",
        train_file=path_of(train),
        validation_file=validation and path_of(validation),
        init_from=str(init_from),
        overrides=("dropout=0,attention_dropout=0",),
        cache_dir=str(folder / "cache"),
        epochs=args.epochs,
        batch_size=BATCH_SIZE,
        sequence_length=LENGTH,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        clip_norm=CLIP_NORM,
        log_every=1,
    )


def prepare(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Writes the weights that both begin with to folder/start, and the batches to folder/batches.npz."""
    import keras
    from finetuned import SETS, path_of

    from tfzoo.training import distribution, initialize, task_inputs
    from tfzoo.weights import huggingface

    encoder = pathlib.Path(os.environ["TFZOO_ENCODER"])
    (inputs,) = task_inputs.open_inputs(config_of(folder, args, encoder), False, 1)
    config, task = inputs.config, inputs.objective
    keras.utils.set_random_seed(0)
    models = task.build_models(inputs.page, inputs.model_config, "float32")
    initialize.initialize_all(models, encoder, inputs.tokenizer)
    huggingface.save(models["main"], folder / "start", inputs.tokenizer)
    batches = distribution.spread(
        distribution.make_strategy("default"),
        lambda context: inputs.training_batches(context, first_step=0, passed_over=0, places={}),
    )
    rows: dict[str, Any] = {}
    for part, source in (("train", batches), ("test", test_batches(config, task, path_of(SETS[args.set][3])))):
        ids, labels = [], []
        for batch in source:
            mask = np.asarray(batch["padding_mask"])
            ids += [row[real] for row, real in zip(np.asarray(batch["token_ids"]), mask)]
            labels.append(np.asarray(batch["label"]))
        rows |= {
            f"{part}_ids": np.concatenate(ids),
            f"{part}_starts": np.concatenate([[0], np.cumsum([len(row) for row in ids])]),
            f"{part}_labels": np.concatenate(labels),
        }
    np.savez(folder / "batches.npz", **rows)
    counts = {"steps": config.steps, "warmup_steps": config.warmup_steps}
    (folder / "batches.json").write_text(json.dumps(counts | {"test_batches": -(-len(rows["test_labels"]) // 64)}))


def test_batches(config, task, path: str):
    """Yields batches of the rows of a test file, in their order."""
    from tfzoo.training import task_inputs

    file = task.open_file(config.objective_options, path, "test_file", "strict")
    rows = task_inputs.read_rows(config, task, file, "test_file")
    for start in range(0, len(rows), 64):
        yield rows.batch(np.arange(start, min(start + 64, len(rows))), LENGTH)


def test_answers(folder: pathlib.Path, args: argparse.Namespace):
    """Returns the right labels, the probabilities of the run's last checkpoint, and the names of the labels."""
    from finetuned import SETS, path_of

    from tfzoo.training import evaluating
    from tfzoo.training.config import TrainConfig

    run_dir = folder / "run"
    last = max(path for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit())
    how = types.SimpleNamespace(
        model_dir=str(run_dir),
        checkpoint=str(last),
        test_file=path_of(SETS[args.set][3]),
        bad_rows="strict",
        batch_size=64,
    )
    found = evaluating.evaluate(run_dir, TrainConfig.read(run_dir / "flags.cfg", str(run_dir)), how, {})
    return found.outcome["label"], found.outcome["answer"], found.task.labels


def compare(folder: pathlib.Path, args: argparse.Namespace) -> bool:
    """Prints the differences; returns whether the first losses and the scores agree."""
    from tfzoo.evaluation import intervals, scores
    from tfzoo.training import report

    metrics = report.read_metrics(folder / "run/metrics.jsonl")
    own = np.array([record["loss"] for record in metrics if "loss" in record])
    other = np.load(folder / "torch.npz")
    differences = np.abs(own - other["losses"])
    print(f"{args.set}, {args.epochs} epochs, {len(own):,} updates, dropout 0")
    print(f"losses of the first {LOSSES} updates: differ by at most {differences[:LOSSES].max():.1e}")
    print(f"losses of all updates: differ by at most {differences.max():.1e}, median {np.median(differences):.1e}")
    gold, answer, labels = test_answers(folder, args)
    assert np.array_equal(gold, np.load(folder / "batches.npz")["test_labels"])
    mine = scores.classification_rows(gold, answer.argmax(-1), labels)
    theirs = scores.classification_rows(gold, other["logits"].argmax(-1), labels)
    found = intervals.paired(mine, theirs, len(gold))["accuracy"]
    print(f"test accuracy: tfzoo {mine()['accuracy']:.4f}, transformers {theirs()['accuracy']:.4f}")
    print(f"difference {found.value:+.4f}, 95% interval {found.low:+.4f} to {found.high:+.4f}, p {found.p:.3f}")
    print(f"rows with the same answer: {np.mean(answer.argmax(-1) == other['logits'].argmax(-1)):.4f}")
    return differences[:LOSSES].max() <= TOLERANCE and found.p > LEVEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="trec", help="a set of benchmarks/finetuned.py with the task classify")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--python", default=str(ROOT / ".venv-references/bin/python"))
    parser.add_argument("--torch", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.torch:
        train_torch(args.torch)
        return
    for name in ("TFZOO_DATA", "TFZOO_ENCODER"):
        if not os.environ.get(name):
            sys.exit(f"{name} is not set; see the beginning of this file")
    if not pathlib.Path(args.python).exists():
        sys.exit(f"--python={args.python}: does not exist; run make .venv-references/installed")
    from side_by_side import environment, processor

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        prepare(folder, args)
        config = config_of(folder, args, folder / "start")
        given = {name: value for name, value in config.given().items() if value not in (None, False)}
        flags = [f"--{name}={','.join(value) if isinstance(value, tuple) else value}" for name, value in given.items()]
        command = [sys.executable, "-m", "tfzoo.train", f"--run_dir={config.run_dir}", *flags]
        subprocess.run(command, check=True, env=environment(), stdout=subprocess.DEVNULL)
        subprocess.run([args.python, __file__, f"--torch={folder}"], check=True)
        print(processor())
        if not compare(folder, args):
            sys.exit(f"the first losses differ by more than {TOLERANCE:g}, or the scores differ significantly")


if __name__ == "__main__":
    main()
