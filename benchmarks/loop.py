"""The training loop compared with Keras's `fit` on the same model, and two devices compared with one: `make bench`, or

    .venv/bin/python benchmarks/loop.py [--sizes=small,middle] [--contenders=tfzoo,fit] [--threads=2]

Every contender trains tfzoo's GPT-2 of one size with AdamW and clipping on the same batches from memory, from the same
initial weights, so that all report the same losses.

    tfzoo      the step of tfzoo.train, ten updates per call
    mirrored   the same on two virtual CPUs with the same global batch: the cost of reducing and applying twice
    fit        Keras's `fit` with its defaults, which compile with XLA
    fit:plain  without XLA
    fit:10     without XLA, ten updates per call (steps_per_execution)

All contenders have two inter-op threads, and --threads intra-op threads: the operations of a small model finish
before a second thread has woken up, so one thread is faster for all contenders.
"""

import argparse
import pathlib
import statistics
import time
from typing import Any

import history
from side_by_side import Worker, answer, markdown, ratio, ratios, turns

CONTENDERS = ("tfzoo", "fit", "fit:plain", "fit:10", "mirrored")
SIZES: dict[str, dict[str, Any]] = {
    "small": dict(batch_size=8, length=32, vocab_size=1000, hidden_size=64, num_layers=2, num_heads=2),
    "middle": dict(batch_size=16, length=128, vocab_size=8192, hidden_size=192, num_layers=3, num_heads=3),
}
STEPS_A_CALL, LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 10, 1e-3, 0.01, 1.0


def work(contender: str, size: str, threads: str):
    """Returns a function: steps, a multiple of STEPS_A_CALL -> {"seconds": per step, "loss": mean}."""
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
    """Returns a function: steps -> (seconds, mean loss) of an epoch with so many steps."""
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
        """Measures the epoch only: at its end, `fit` may wait a second or two for the autotuner of tf.data."""

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
    parser.add_argument("--threads", default="2,1", help="numbers of intra-op threads")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--beside", help="another checkout, measured as the contender `beside`")
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
            f"--work=tfzoo,{size},{threads}",
            PYTHONPATH=str(beside),
        )
        if name == "beside"
        else Worker(name, __file__, f"--work={name},{size},{threads}")
        for name in contenders
    ]
    first_losses = [worker.ask(STEPS_A_CALL)["loss"] for worker in workers]
    seconds = statistics.median(worker.ask(STEPS_A_CALL)["seconds"] for worker in workers)
    steps = STEPS_A_CALL * max(1, round(1 / seconds / STEPS_A_CALL))  # About one second per turn.
    for worker in turns(workers, rounds):
        worker.ask(STEPS_A_CALL)  # Wakes the threads and fills the caches.
        worker.answers.append(worker.ask(steps)["seconds"])
    rows = []
    for worker, loss in zip(workers, first_losses):
        worker.close()
        milliseconds = 1000 * statistics.median(worker.answers)
        faster = ratio(worker.answers, workers[0].answers)
        rows.append([worker.name, f"{milliseconds:.1f}", f"{loss:.4f}", f"{faster:.2f}"])
    title = f"{size}, {threads} intra-op thread{'s' if threads != '1' else ''}"
    for rival in workers[1:]:
        history.record("loop", title, workers[0].name, rival.name, ratios(rival.answers, workers[0].answers))
    print(markdown([title, "ms per step", f"loss, first {STEPS_A_CALL}", f"speedup of {workers[0].name}"], rows))
    print(flush=True)


if __name__ == "__main__":
    main()
