"""What `--remat=block` saves and costs: time per step and peak memory, with and without it.

    .venv/bin/python benchmarks/remat.py [--layers=12] [--rounds=3]

Each variant runs in its own processes, in turns, with the same GPT-2, weights and batches, so the printed losses are
equal. Medians, and ratios within a round.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time

from side_by_side import environment, markdown, ratio

WIDTH, ROWS, LENGTH, WORDS, STEPS = 256, 8, 256, 1000, 4


def peak_memory() -> float:
    """Returns the peak memory of this process in megabytes; unlike ru_maxrss, without that of its parent."""
    with open("/proc/self/status") as status:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    assert found
    return int(found[1]) / 1024


def work(remat: bool, layers: int) -> dict[str, float]:
    """Returns the megabytes that training adds to the peak, CPU seconds per step, and the last loss."""
    import keras
    import numpy as np
    import tensorflow as tf

    from tfzoo import models
    from tfzoo.objectives import shared
    from tfzoo.training import optimizers
    from tfzoo.training import step as step_lib

    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tokens = np.random.default_rng(0).integers(0, WORDS, [ROWS, LENGTH + 1], np.int32)
    keras.utils.set_random_seed(0)
    model = models.build(
        "gpt2",
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_layers=layers,
        num_heads=4,
        intermediate_size=4 * WIDTH,
        max_positions=LENGTH,
    )
    if remat:
        model.recompute_blocks()
    optimizer = optimizers.make_optimizer("adamw", 1e-3, model.trainable_variables, weight_decay=0.01)
    features = {"token_ids": tokens[:, :-1], "targets": tokens[:, 1:], "target_weights": np.ones([ROWS, LENGTH], "f4")}
    iterator = iter(tf.data.Dataset.from_tensors(features).repeat())
    run = step_lib.make_step(
        tf.distribute.get_strategy(), {"main": model}, optimizer, shared.TokenTargets(None, 0), clip_norm=1.0
    )
    before = peak_memory()
    run(iterator, tf.constant(1))
    began = time.process_time()
    loss = run(iterator, tf.constant(STEPS)).numpy()[-1]
    seconds = (time.process_time() - began) / STEPS
    return {"memory": peak_memory() - before, "seconds": seconds, "loss": float(loss)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--remat", choices=("none", "block"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.remat:
        print(json.dumps(work(arguments.remat == "block", arguments.layers)))
        return
    found: dict[str, list[dict[str, float]]] = {"none": [], "block": []}
    for number in range(arguments.rounds):
        for remat in list(found)[:: 1 if number % 2 == 0 else -1]:
            command = [sys.executable, __file__, f"--layers={arguments.layers}", f"--remat={remat}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment())
            found[remat].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{arguments.layers} layers of width {WIDTH}, {ROWS} rows of {LENGTH} tokens, dropout 0.1\n")
    rows = []
    for remat, measured in found.items():
        row = [remat]
        for name, form in (("memory", "{:,.0f}"), ("seconds", "{:.2f}")):
            values, plain = ([each[name] for each in some] for some in (measured, found["none"]))
            row += [form.format(statistics.median(values)), f"{ratio(values, plain):.2f}"]
        rows.append([*row, f"{measured[0]['loss']:.6f}"])
    print(markdown(["--remat", "MB added by training", "ratio", "CPU seconds per step", "ratio", "loss"], rows))


if __name__ == "__main__":
    main()
