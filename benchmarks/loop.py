"""The training loop beside Keras's `fit` on the same model, and on two devices beside one: `make bench`, or

    .venv/bin/python benchmarks/loop.py [--sizes=small,middle] [--contenders=ours,fit] [--threads=2]

Every contender trains tfzoo's GPT-2 of one size by AdamW with clipping on the same batches from memory, and begins with
the same weights, so that all report the same losses.

    ours       tfzoo.train's step, ten updates a call
    mirrored   the same on two virtual CPUs at the same global batch: what reducing and applying twice costs
    fit        Keras's `fit` as it comes, which compiles by XLA
    fit:plain  without XLA
    fit:10     without XLA, ten updates a call (steps_per_execution)

All have two threads to run operations side by side, and --threads that share one operation: a small model's are over
before a second one has woken up, so that one is better for everybody.
"""

import argparse
import pathlib
import statistics
import time
from typing import Any

from side_by_side import Worker, answer, markdown, ratio, turns

CONTENDERS = ("ours", "fit", "fit:plain", "fit:10", "mirrored")
SIZES: dict[str, dict[str, Any]] = {
    "small": dict(batch_size=8, length=32, vocab_size=1000, hidden_size=64, num_layers=2, num_heads=2),
    "middle": dict(batch_size=16, length=128, vocab_size=8192, hidden_size=192, num_layers=3, num_heads=3),
}
STEPS_A_CALL, LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 10, 1e-3, 0.01, 1.0


def work(contender: str, size: str, threads: str):
    """steps, a multiple of STEPS_A_CALL -> {"seconds": of a step, "loss": their mean}"""
    import keras
    import numpy as np
    import tensorflow as tf

    from tfzoo import models
    from tfzoo.objectives import shared
    from tfzoo.training import optimizers
    from tfzoo.training import step as step_lib

    tf.config.threading.set_intra_op_parallelism_threads(int(threads))
    if contender == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
    else:
        strategy = tf.distribute.get_strategy()

    sizes = dict(SIZES[size])
    batch_size, length = sizes.pop("batch_size"), sizes.pop("length")
    tokens = np.random.default_rng(0).integers(0, sizes["vocab_size"], [4 * batch_size, length + 1], np.int32)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = models.build(
            "gpt2",
            intermediate_size=4 * sizes["hidden_size"],
            max_positions=length,
            dropout=0.0,
            attention_dropout=0.0,
            **sizes,
        )
        if not contender.startswith("fit"):
            optimizer = optimizers.make_optimizer(
                "adamw", LEARNING_RATE, model.trainable_variables, weight_decay=WEIGHT_DECAY
            )
    if contender.startswith("fit"):
        train = fit(model, contender.partition(":")[2], tokens, batch_size)
    else:
        features = {
            "token_ids": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "target_weights": np.ones_like(tokens[:, 1:], np.float32),
        }
        dataset = tf.data.Dataset.from_tensor_slices(features).batch(batch_size, drop_remainder=True).cache().repeat()
        iterator = iter(strategy.experimental_distribute_dataset(dataset))
        run_steps = step_lib.make_step(
            strategy, {"main": model}, optimizer, shared.TokenTargets(None, 0), clip_norm=CLIP_NORM
        )

        def train(steps: int) -> tuple[float, Any]:
            start, calls = time.perf_counter(), range(0, steps, STEPS_A_CALL)
            losses = [run_steps(iterator, tf.constant(STEPS_A_CALL)).numpy() for _ in calls]
            return time.perf_counter() - start, np.mean(losses)

    def measured(steps: int) -> dict[str, float]:
        seconds, loss = train(steps)
        return {"seconds": seconds / steps, "loss": float(loss)}

    return measured


def fit(model, way: str, tokens, batch_size: int):
    """steps -> seconds and mean loss of an epoch of so many."""
    import keras
    import tensorflow as tf

    from tfzoo.training import optimizers

    class Logits(keras.Model):
        def __init__(self):
            super().__init__()
            self.model = model

        def call(self, token_ids, training=False):
            return self.model({"token_ids": token_ids}, training=training)["logits"]

    optimizer = keras.optimizers.AdamW(
        LEARNING_RATE, weight_decay=WEIGHT_DECAY, epsilon=1e-8, global_clipnorm=CLIP_NORM
    )
    optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if not optimizers.decays(v)])
    whole = Logits()
    whole.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False if way else "auto",
        steps_per_execution=STEPS_A_CALL if way == "10" else 1,
    )
    dataset = tf.data.Dataset.from_tensor_slices((tokens[:, :-1], tokens[:, 1:]))
    dataset = dataset.batch(batch_size, drop_remainder=True).cache().repeat()

    class Clock(keras.callbacks.Callback):
        """The epoch alone: to end its iterator `fit` may wait a second or two for tf.data's tuner to wake up."""

        def on_epoch_begin(self, epoch, logs=None):
            self.seconds = -time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds += time.perf_counter()

    def train(steps: int) -> tuple[float, Any]:
        clock = Clock()
        history = whole.fit(dataset, steps_per_epoch=steps, verbose=0, callbacks=[clock])
        return clock.seconds, history.history["loss"][0]

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--threads", default="2,1", help="that share an operation")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--beside", help="another checkout, whose loop is the contender `beside`")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        answer(lambda: work(*args.work.split(",")))
        return
    for size in args.sizes.split(","):
        for threads in args.threads.split(","):
            contenders = [*args.contenders.split(","), *(["beside"] if args.beside else [])]
            compare(size, threads, contenders, args.rounds, args.beside)


def compare(size: str, threads: str, contenders: list[str], rounds: int, beside: str | None) -> None:
    workers = [
        Worker(
            name,
            str(pathlib.Path(str(beside), "benchmarks", "loop.py")),
            f"--work=ours,{size},{threads}",
            PYTHONPATH=str(beside),
        )
        if name == "beside"
        else Worker(name, __file__, f"--work={name},{size},{threads}")
        for name in contenders
    ]
    first_losses = [worker.ask(STEPS_A_CALL)["loss"] for worker in workers]
    seconds = statistics.median(worker.ask(STEPS_A_CALL)["seconds"] for worker in workers)
    steps = STEPS_A_CALL * max(1, round(1 / seconds / STEPS_A_CALL))  # About a second a turn.
    for worker in turns(workers, rounds):
        worker.ask(STEPS_A_CALL)  # Wakes its threads and fills the caches.
        worker.answers.append(worker.ask(steps)["seconds"])
    rows = []
    for worker, loss in zip(workers, first_losses):
        worker.close()
        milliseconds = 1000 * statistics.median(worker.answers)
        faster = ratio(worker.answers, workers[0].answers)
        rows.append([worker.name, f"{milliseconds:.1f}", f"{loss:.4f}", f"{faster:.2f}"])
    title = f"{size}, {threads} thread{'s' if threads != '1' else ''} an operation"
    print(markdown([title, "ms a step", f"loss, first {STEPS_A_CALL}", f"{workers[0].name} is faster by"], rows))
    print(flush=True)


if __name__ == "__main__":
    main()
