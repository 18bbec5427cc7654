"""What `--remat=block` saves and costs: a step's time and the process's largest memory, with it and without.

    .venv/bin/python benchmarks/remat.py [--layers=12]

Each in a process of its own, the same GPT-2, weights and batches: the losses printed are the same.
"""

import argparse
import re
import subprocess
import sys
import time

WIDTH, ROWS, LENGTH, WORDS, STEPS = 256, 8, 256, 1000, 4


def peak_memory() -> float:
    """Megabytes that this process has held at most; of its own program, unlike ru_maxrss."""
    with open("/proc/self/status") as status:
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
    assert found
    return int(found[1]) / 1024


def work(remat: bool, layers: int) -> str:
    """A row of the table."""
    import keras
    import numpy as np
    import tensorflow as tf

    from tfzoo import models, optim, train
    from tfzoo.objectives import shared

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
    optimizer = optim.make_optimizer("adamw", 1e-3, model.trainable_variables, weight_decay=0.01)
    features = {"token_ids": tokens[:, :-1], "targets": tokens[:, 1:], "target_weights": np.ones([ROWS, LENGTH], "f4")}
    iterator = iter(tf.data.Dataset.from_tensors(features).repeat())
    run = train.make_step(tf.distribute.get_strategy(), model, optimizer, shared.TokenTargets(), clip_norm=1.0)
    before = peak_memory()
    run(iterator, tf.constant(1))
    began = time.process_time()
    loss = run(iterator, tf.constant(STEPS)).numpy()[-1]
    seconds = (time.process_time() - began) / STEPS
    return f"| {'block' if remat else 'none'} | {peak_memory() - before:,.0f} | {seconds:.2f} | {loss:.6f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--remat", choices=("none", "block"))
    arguments = parser.parse_args()
    if arguments.remat:
        print(work(arguments.remat == "block", arguments.layers))
        return
    print(f"{arguments.layers} layers of {WIDTH}, {ROWS} rows of {LENGTH} tokens, dropout 0.1\n")
    print("| --remat | MB that training adds at most | CPU seconds a step | loss |\n|---|---:|---:|---:|")
    for remat in ("none", "block"):
        command = [sys.executable, __file__, f"--layers={arguments.layers}", f"--remat={remat}"]
        print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="", flush=True)


if __name__ == "__main__":
    main()
