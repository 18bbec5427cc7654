"""How long a step waits for its checkpoint, compared with copying the variables and with a synchronous save.

    .venv/bin/python benchmarks/checkpoint.py [--sizes=small,middle] [--folder=/tmp]

GPT-2 of two sizes with AdamW's moments. Each round measures, in alternating order: the copy of the variables; a
synchronous `Checkpoints.save`; an asynchronous one (wait=False), from the call to its return, after the previous one
has been written; and the steps that run while such a checkpoint is written.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

from side_by_side import ROOT, markdown, ratio

sys.path.insert(0, str(ROOT))

SIZES: dict[str, dict[str, Any]] = {
    "small": dict(batch_size=8, length=32, vocab_size=1000, hidden_size=64, num_layers=2, num_heads=2),
    "middle": dict(batch_size=8, length=64, vocab_size=16384, hidden_size=384, num_layers=6, num_heads=6),
}
STEPS = 2


def measure(size: str, folder: pathlib.Path, rounds: int) -> None:
    """Measures one size and prints a table."""
    import keras
    import numpy as np
    import tensorflow as tf

    from tfzoo import models
    from tfzoo.objectives import shared
    from tfzoo.training import checkpoint, optimizers
    from tfzoo.training import step as step_lib

    tf.config.threading.set_intra_op_parallelism_threads(2)
    sizes = dict(SIZES[size])
    rows, length = sizes.pop("batch_size"), sizes.pop("length")
    keras.utils.set_random_seed(0)
    model = models.build("gpt2", intermediate_size=4 * sizes["hidden_size"], max_positions=length, **sizes)
    optimizer = optimizers.make_optimizer("adamw", 1e-3, model.trainable_variables)
    variables = checkpoint.model_variables(model, optimizer)
    tokens = np.random.default_rng(0).integers(0, sizes["vocab_size"], [rows, length + 1], np.int32)
    features = {"token_ids": tokens[:, :-1], "targets": tokens[:, 1:], "target_weights": np.ones([rows, length], "f4")}
    iterator = iter(tf.data.Dataset.from_tensors(features).repeat())
    run = step_lib.make_step(tf.distribute.get_strategy(), {"main": model}, optimizer, shared.TokenTargets(None, 0))
    checkpoints = checkpoint.Checkpoints(folder / size, keep=1)
    saved = 0

    def copy():
        return [variable.value.numpy() for variable in variables.values()]  # numpy() copies.

    def save(wait):
        nonlocal saved
        saved += 1
        checkpoints.save(saved, variables, {}, wait=wait)

    def steps():
        run(iterator, tf.constant(STEPS)).numpy()

    def timed(function, *arguments) -> float:
        began = time.perf_counter()
        function(*arguments)
        return 1000 * (time.perf_counter() - began)

    def during_save():
        save(False)
        seconds = timed(steps)
        checkpoints.wait()
        return seconds

    def asynchronous():
        milliseconds = timed(save, False)
        checkpoints.wait()
        return milliseconds

    ways = {
        "copying the variables": lambda: timed(copy),
        "synchronous save": lambda: timed(save, True),
        "asynchronous save, until the call returns": asynchronous,
        f"{STEPS} steps": lambda: timed(steps),
        f"{STEPS} steps during an asynchronous save": during_save,
    }
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(ways[name]())
    size_mb = sum(np.asarray(v.value).nbytes for v in variables.values()) / 1e6
    copied = found["copying the variables"]
    table = [[name, f"{statistics.median(times):.1f}", f"{ratio(times, copied):.2f}"] for name, times in found.items()]
    print(markdown([f"{size}: {size_mb:,.1f} MB in {len(variables)} variables", "ms", "relative to the copy"], table))
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--folder", help="parent folder of the checkpoints, on the disk to measure")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for size in arguments.sizes.split(","):
            measure(size, pathlib.Path(folder), arguments.rounds)


if __name__ == "__main__":
    main()
