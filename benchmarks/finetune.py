"""Fine-tuning on sst2 from text, compared with KerasHub's BertTextClassifier.fit: `make bench`, or

    TFZOO_DATA=FOLDER .venv-peers/bin/python benchmarks/finetune.py [--contenders=fixed,length,fit] [--rounds=5]

BERT-small (4 layers of width 512, 8 heads, the 30,522 tokens of bert-base-uncased) is trained with dropout 0. All
contenders begin with the weights of one KerasHub preset, and have AdamW with the same settings, schedule and clipping.

    fixed      the input pipeline and step of `tfzoo.train --task=classify --nolength_batches`: rows of --length tokens
    length     the same as it is by default: rows of similar length together, padded to the longest
    fit        BertTextClassifier.fit, with rows of --length tokens in the order in which `fixed` reads them
    fit:plain  the same without XLA, which `fit` uses by default
    fit:dense  as fit:plain, with dense gradients

Rows per second include reading and tokenizing: KerasHub tokenizes in every epoch; tfzoo once, which is measured with
an empty cache and added as if it trained for a single epoch. A turn of `length` is as long as a window of batches
(tfzoo.data.by_length), which contains rows of every length; a turn of the others is --steps updates.

Before that, the losses of the first 20 updates of `fixed` and `fit:dense` are compared; if one differs by more than
1e-4, the program fails. Those of `fit` are printed too, but differ: the gradient of an embedding has an entry for every
occurrence of a token, and Keras's AdamW and clipping add up the squares of these entries instead of squaring their sum.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import history
from side_by_side import Clock, Worker, answer, environment, markdown, processor, ratio, ratios, turns

CONTENDERS = ("fixed", "length", "fit", "fit:plain")
LOSSES, TOLERANCE = 20, 1e-4  # The first losses, and how much they may differ.
GOALS = {"fixed": 1.1, "length": 2.0}  # Rows/s, relative to the fastest KerasHub.
GAIN = 0.9  # The gain of `length` over `fixed`, relative to the gain in positions.
BATCH_SIZE, SEED, CALL = 32, 0, 10  # The defaults of tfzoo.train; CALL is --steps_per_call.
LEARNING_RATE, WARMUP, WEIGHT_DECAY, CLIP_NORM, EPOCHS = 1e-4, 10, 0.01, 1.0, 20
SIZES = dict(num_layers=4, num_heads=8, hidden_dim=512, intermediate_dim=2048, max_sequence_length=512)


def data() -> pathlib.Path:
    return pathlib.Path(os.environ["TFZOO_DATA"])


def prepare(folder: pathlib.Path, length: int) -> None:
    """Writes a KerasHub preset with random weights to folder/preset, and the same model to folder/hugging_face."""
    import keras
    from keras_hub import models

    keras.utils.set_random_seed(SEED)
    vocabulary = data() / "vocab/bert-base-uncased/vocab.txt"
    size = len(vocabulary.read_text().splitlines())
    tokenizer = models.BertTokenizer(vocabulary=str(vocabulary), lowercase=True)
    preprocessor = models.BertTextClassifierPreprocessor(tokenizer, sequence_length=length)
    backbone = models.BertBackbone(vocabulary_size=size, dropout=0.0, **SIZES)
    classifier = models.BertTextClassifier(backbone, num_classes=2, preprocessor=preprocessor, dropout=0.0)
    classifier.save_to_preset(str(folder / "preset"))
    command = [sys.executable, "-m", "tfzoo.convert", f"--from={folder / 'preset'}", f"--to={folder / 'hugging_face'}"]
    subprocess.run(command, check=True, env=environment())
    # The preset does not name its classes; with those of sst2, the classifier's weights are read too.
    config = folder / "hugging_face/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"id2label": {"0": "0", "1": "1"}}))


def config_of(folder: pathlib.Path, length: int, contender: str):
    from tfzoo.training.config import TrainConfig

    return TrainConfig(
        run_dir=str(folder / "runs" / contender),
        task="classify",
        train_file=str(data() / "sst2/train.tsv"),
        validation_file=str(data() / "sst2/dev.tsv"),
        init_from=str(folder / "hugging_face"),
        cache_dir=str(folder / "cache" / contender),
        length_batches=contender == "length",
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        sequence_length=length,
        learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP,
        weight_decay=WEIGHT_DECAY,
        clip_norm=CLIP_NORM,
        seed=SEED,
        steps_per_call=CALL,
    )


def schedule_of(config):
    """Returns the learning-rate schedule of a run, as tfzoo.training.loop creates it."""
    from tfzoo.training import optimizers

    return optimizers.WarmUp(
        config.learning_rate, warmup_steps=config.warmup_steps, total_steps=config.steps, schedule=config.schedule
    )


def work(contender: str, folder: pathlib.Path, length: int):
    """Returns a function: steps -> {"seconds", "cpu", "losses", "tokens", "positions"} of the next steps; for 0 steps,
    what the contender has read."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    return (kerashub if contender.startswith("fit") else tfzoo)(contender, folder, length)


def tfzoo(contender: str, folder: pathlib.Path, length: int):
    import keras
    import tensorflow as tf

    from tfzoo.data.by_length import BatchOrder
    from tfzoo.training import distribution, initialize, optimizers, task_inputs
    from tfzoo.training import step as step_lib

    config = config_of(folder, length, contender)
    (inputs,) = task_inputs.open_inputs(config, False, 1)
    config = inputs.config
    fresh, clock = config.replace(cache_dir=str(folder / "fresh" / contender)), Clock()
    task_inputs.read_rows(fresh, inputs.objective, inputs.files.train, "train_file")
    reading = clock.read()

    keras.utils.set_random_seed(config.seed)
    strategy = distribution.make_strategy("default")
    models = inputs.objective.build_models(inputs.page, inputs.model_config, "float32")
    loaded = initialize.initialize_all(models, folder / "hugging_face", inputs.tokenizer)
    assert not (loaded.new or loaded.resized), loaded
    variables = step_lib.trainable_variables(models)
    optimizer = optimizers.make_optimizer(
        config.optimizer, schedule_of(config), variables, weight_decay=config.weight_decay
    )
    run_steps = step_lib.make_step(strategy, models, optimizer, inputs.objective, clip_norm=config.clip_norm)
    places: dict[int, tuple[int, int]] = {}
    batches = distribution.spread(
        strategy, lambda context: inputs.training_batches(context, first_step=0, passed_over=0, places=places)
    )
    iterator, done = iter(batches), 0

    def train(steps: int) -> dict[str, Any]:
        nonlocal done
        if not steps:
            order = BatchOrder(inputs.train_rows.lengths, config.batch_size, config.seed, config.length_batches)
            return {"rows": len(inputs.train_rows), "reading": reading, "window": order.window}
        losses: list[float] = []
        clock = Clock()
        while len(losses) < steps:
            losses += run_steps(iterator, tf.constant(min(CALL, steps - len(losses)))).numpy().tolist()
        measured = clock.read()
        tokens, positions = map(sum, zip(*(places.pop(step) for step in range(done, done + steps))))
        done += steps
        return measured | {"losses": losses, "tokens": tokens, "positions": positions}

    return train


def kerashub(contender: str, folder: pathlib.Path, length: int):
    import keras
    import numpy as np
    import tensorflow as tf
    from keras_hub import models

    from tfzoo.data.by_length import BatchOrder
    from tfzoo.data.labelled import LabelledFile

    config = config_of(folder, length, contender)
    rows = list(LabelledFile(config.train_file, flag="train_file").rows())
    config = config.for_rows(len(rows))
    keras.utils.set_random_seed(config.seed)
    classifier = models.BertTextClassifier.from_preset(str(folder / "preset"))

    class DenseAdamW(keras.optimizers.AdamW):
        def apply(self, grads, trainable_variables=None):
            super().apply([tf.convert_to_tensor(gradient) for gradient in grads], trainable_variables)

    way = contender.partition(":")[2]
    optimizer = (DenseAdamW if way == "dense" else keras.optimizers.AdamW)(
        schedule_of(config), weight_decay=config.weight_decay, epsilon=1e-8, global_clipnorm=config.clip_norm
    )
    kept = [v for v in classifier.trainable_variables if v.name in ("bias", "gamma", "beta")]
    optimizer.exclude_from_weight_decay(var_list=kept)
    classifier.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[],
        jit_compile=False if way else "auto",
    )
    order = BatchOrder(np.zeros(len(rows)), config.batch_size, config.seed, by_length=False)
    texts, labels = np.array([row.texts[0] for row in rows]), np.array([row.label for row in rows]).astype(int)
    done = 0

    class Watch(keras.callbacks.Callback):
        """Measures from the first batch to the last, because at both ends of an epoch `fit` waits for tf.data, and
        collects the first losses one by one, because Keras reports the mean since the beginning of the epoch."""

        def __init__(self, collects: bool):
            super().__init__()
            self.collects, self.clocks, self.losses = collects, list[Clock](), list[float]()

        def on_train_batch_begin(self, batch, logs=None):
            self.clocks = self.clocks or [Clock()]
            if self.collects:
                self.model.reset_metrics()

        def on_train_batch_end(self, batch, logs=None):
            self.measured = self.clocks[0].read()
            if self.collects:
                self.losses.append(float(logs["loss"]))

    def train(steps: int) -> dict[str, Any]:
        nonlocal done
        if not steps:
            return {"rows": len(rows), "reading": {"seconds": 0.0, "cpu": 0.0}, "window": 1}
        chosen = np.stack([order.rows_of(step) for step in range(done, done + steps)])
        watch = Watch(collects=done == 0)
        done += steps
        batches = tf.data.Dataset.from_tensor_slices((texts[chosen], labels[chosen]))
        classifier.fit(batches, verbose=0, callbacks=[watch])
        masks = classifier.preprocessor(texts[chosen.ravel()])["padding_mask"]
        tokens, positions = int(np.sum(masks)), int(np.size(masks))
        return watch.measured | {"losses": watch.losses, "tokens": tokens, "positions": positions}

    return train


def speeds(worker: Worker, steps: int, information: dict[str, Any], key: str = "seconds") -> list[float]:
    """Returns the rows per second of each turn, with the turn's share of reading the file."""
    count = steps * BATCH_SIZE
    share = information["reading"][key] * count / information["rows"]
    return [count / (turn[key] + share) for turn in worker.answers]


def compare(contenders: list[str], folder: pathlib.Path, args: argparse.Namespace) -> bool:
    """Measures and prints; returns whether the first losses agree."""
    options = [f"--folder={folder}", f"--length={args.length}"]
    workers, steps, information = list[Worker](), dict[str, int](), dict[str, Any]()
    losses: dict[str, list[float]] = {}
    for name in dict.fromkeys([*contenders, "fit:dense"]):  # One at a time: tracing and compiling are not measured.
        worker = Worker(name, __file__, f"--work={name}", *options)
        information[name] = worker.ask(0)
        steps[name] = information[name]["window"] if name == "length" else args.steps
        losses[name] = worker.ask(LOSSES)["losses"]
        if name == "length":
            worker.ask(steps[name] - LOSSES)  # Prepares for every length.
        if name in contenders:
            workers.append(worker)
        else:
            worker.close()
    print(processor(), flush=True)
    agree = print_losses(losses)
    for worker in turns(workers, args.rounds):
        worker.ask(1)  # Wakes the threads and fills the caches.
        worker.answers.append(worker.ask(steps[worker.name]))
        if args.verbose:
            print(worker.name, worker.answers[-1] | {"losses": "..."}, flush=True)
    for worker in workers:
        worker.close()
    print_speeds(workers, steps, information)
    print(processor())
    return agree


def print_losses(losses: dict[str, list[float]]) -> bool:
    """Prints how much the first losses of KerasHub differ from those of `fixed`; returns whether they agree."""
    if "fixed" not in losses:
        return True
    own, largest = losses["fixed"], dict[str, float]()
    print(f"The first {LOSSES} losses of `fixed`: {own[0]:.6f}, {own[1]:.6f}, ..., {own[-1]:.6f}.")
    for name in losses:
        if name.startswith("fit"):
            largest[name] = max(abs(a - b) for a, b in zip(own, losses[name], strict=True))
            print(f"Those of `{name}` differ by at most {largest[name]:.1e}.", flush=True)
    return largest["fit:dense"] <= TOLERANCE


def print_speeds(workers: list[Worker], steps: dict[str, int], information: dict[str, Any]) -> None:
    rates = {worker.name: speeds(worker, steps[worker.name], information[worker.name]) for worker in workers}
    busy = {worker.name: speeds(worker, steps[worker.name], information[worker.name], "cpu") for worker in workers}
    fits = [name for name in rates if name.startswith("fit")]
    fastest = max(fits, key=lambda name: statistics.median(rates[name]), default=workers[0].name)
    per_row, rows = {}, []
    for worker in workers:
        name, taken, count = worker.name, worker.answers, steps[worker.name]
        tokens, positions = (sum(turn[key] for turn in taken) for key in ("tokens", "positions"))
        per_row[name] = positions / len(taken) / count / BATCH_SIZE
        rows.append(
            [
                name,
                f"{statistics.median(rates[name]):.1f}",
                f"{1000 * statistics.median(turn['seconds'] / count for turn in taken):.0f}",
                f"{1000 * statistics.median(turn['cpu'] / count for turn in taken):.0f}",
                f"{1 - tokens / positions:.1%}",
                f"{ratio(rates[name], rates[fastest]):.2f}, {ratio(busy[name], busy[fastest]):.2f}",
            ]
        )
    print(markdown(["sst2", "rows/s", "ms per step", "CPU ms", "padding", f"speed of {fastest} = 1"], rows))
    for name, goal in GOALS.items():
        for rival in fits if name in rates else ():
            history.record("finetune", "sst2", name, rival, ratios(rates[name], rates[rival]))
        if fits and name in rates:
            reached = ratio(rates[name], rates[fastest])
            print(
                f"{name}: {reached:.2f} times KerasHub's rows/s; {'reached' if reached >= goal else 'missed'}: {goal}"
            )
    if {"fixed", "length"} <= {*rates}:
        history.record("finetune", "sst2", "length", "fixed", ratios(rates["length"], rates["fixed"]))
        expected, gain = per_row["fixed"] / per_row["length"], ratio(rates["length"], rates["fixed"])
        outcome = "reached" if gain >= GAIN * expected else "missed"
        print(
            f"length batches have {expected:.2f} times fewer positions and are {gain:.2f} times as fast as fixed ones "
            f"({ratio(busy['length'], busy['fixed']):.2f} by CPU time): {gain / expected:.2f} of the padding saved; "
            f"{outcome}: {GAIN}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--length", type=int, default=64, help="tokens per row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="steps per turn, except for `length`")
    parser.add_argument("--verbose", action="store_true", help="print every turn")
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work == "prepare":
        prepare(args.folder, args.length)
        return
    if args.work:
        answer(lambda: work(args.work, args.folder, args.length))
        return
    if "TFZOO_DATA" not in os.environ:
        print("finetune.py is skipped: TFZOO_DATA does not name a folder with sst2 and vocab")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        command = [sys.executable, __file__, "--work=prepare", f"--folder={folder}", f"--length={args.length}"]
        subprocess.run(command, check=True, env=environment())
        if not compare(args.contenders.split(","), folder, args):
            sys.exit(f"the first losses of `fixed` and `fit:dense` differ by more than {TOLERANCE:g}")


if __name__ == "__main__":
    main()
