"""Time and memory of each kind of attention as sequences grow, forward and backward:

    .venv/bin/python benchmarks/attention.py [--kinds=full,lean] [--lengths=512,2048] [--plot=docs/attention.png]

Batch 1, 8 heads of 64, float32, no mask. Every cell is a process of its own, so that its peak is its own; those of one
length take turns, so that what else the machine does meets them all alike. CPU time adds up the threads, and tells on a
busy machine what the clock does not: growth with the length is best read from it.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys
import time

from side_by_side import Worker, answer, markdown, turns

HEADS, DEPTH = 8, 64
KINDS = {
    "full": "full",
    "lean": "memory-lean, exact",
    "favor": "FAVOR+, 256 features",
    "favor_causal": "FAVOR+, causal",
    "lsh": "LSH, one round, chunks of 64",
}
# How many times the scores full attention needs at once: weights, their gradient, that of the scores, and one to spare.
COPIES = 4


def make_step(kind: str, length: int):
    """A function of no arguments: the gradient of attention for queries, keys and values."""
    import tensorflow as tf

    from tfzoo import nn
    from tfzoo.nn.kernel import draw_features, favor_attention
    from tfzoo.nn.lean import lean_attention
    from tfzoo.nn.lsh import Chunks, bucket_factors, hash_buckets, lsh_attention

    def normal(*shape, seed):
        return tf.random.stateless_normal(shape, [seed, 0])

    query, key, value, upstream = (normal(1, HEADS, length, DEPTH, seed=i) for i in range(4))
    features = draw_features(256, DEPTH, tf.constant([4, 0]))
    factors = bucket_factors(length, 64, length)
    rotations = normal(HEADS, DEPTH, 1, sum(factors) // 2, seed=5)
    scale = 1 / math.sqrt(DEPTH)
    attend = {
        "full": lambda q, k, v: nn.dot_product_attention(q, k, v),
        "lean": lambda q, k, v: lean_attention(q, k, v, nn.Mask(), scale),
        "favor": lambda q, k, v: favor_attention(q, k, v, features, nn.Mask(), scale),
        "favor_causal": lambda q, k, v: favor_attention(q, k, v, features, nn.Mask(causal=True), scale),
        # Queries and keys are the same here, as the Reformer has it.
        "lsh": lambda q, k, v: lsh_attention(q, v, hash_buckets(q, rotations, factors), Chunks(64)),
    }[kind]

    @tf.function
    def step(query, key, value, upstream):
        inputs = [query, value] if kind == "lsh" else [query, key, value]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            result = attend(query, key, value)
        return tape.gradient(result, inputs, output_gradients=upstream)

    return lambda: step(query, key, value, upstream)[0].numpy()


def work(kind: str, length: int):
    """steps -> a step's seconds, CPU seconds, and bytes added to the peak."""
    import resource

    step = make_step(kind, length)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def measured(steps: int) -> tuple[float, float, int]:
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step()
        seconds, cpu = (time.perf_counter() - begin) / steps, (time.process_time() - cpu) / steps
        return seconds, cpu, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024

    return measured


def free_memory() -> int:
    """Bytes that a new process may take."""
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def measure(kinds: list[str], length: int, rounds: int) -> dict[str, list[float]]:
    """Of each kind that fits the medians of `work`'s answers."""
    cells, steps = [], {}
    for kind in kinds:
        if kind == "full" and COPIES * HEADS * length**2 * 4 > free_memory():
            print(f"full does not fit at {length}: {free_memory() / 2**30:.1f} GiB are free", file=sys.stderr)
            continue
        cell = Worker(kind, __file__, f"--work={kind},{length}")
        cell.ask(1)  # Traces.
        steps[kind] = max(1, min(50, round(0.5 / cell.ask(1)[0])))
        cells.append(cell)
    for cell in turns(cells, rounds):
        cell.answers.append(cell.ask(steps[cell.name]))
    for cell in cells:
        cell.close()
    return {cell.name: [statistics.median(values) for values in zip(*cell.answers)] for cell in cells}


def table(results: dict[int, dict], kinds: list[str], head: str, which: int, unit: float, digits: int = 0) -> str:
    """A Markdown table: a kind a row, a length a column, and the exponent of growth from each length to the next."""
    lengths = list(results)
    steps = list(zip(lengths, lengths[1:]))
    heads = [f"{n:,}" for n in lengths] + [f"{a:,} to {b:,}: L^" for a, b in steps]
    rows = []
    for kind in kinds:
        values = [results[n][kind][which] if kind in results[n] else None for n in lengths]
        row = [KINDS[kind]] + ["does not fit" if v is None else f"{v / unit:,.{digits}f}" for v in values]
        for (a, b), before, after in zip(steps, values, values[1:]):
            row.append("" if not before or not after else f"{math.log(after / before) / math.log(b / a):.2f}")
        rows.append(row)
    return markdown([head, *heads], rows)


def draw(results: dict[int, dict], kinds: list[str], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for which, (axis, label, unit) in zip((1, 2), zip(axes, ("CPU seconds a step", "peak memory, MiB"), (1, 2**20))):
        for marker, kind in zip("osD^v", kinds):
            points = [(n, results[n][kind][which] / unit) for n in results if kind in results[n]]
            axis.loglog(*zip(*points), marker=marker, label=KINDS[kind])
        axis.set_xticks(list(results), [f"{n:,}" for n in results])
        axis.minorticks_off()
        axis.set(xlabel="length", title=label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle("Attention forward and backward: batch 1, 8 heads of 64")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--lengths", default="512,2048,8192,16384")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plot", help="a PNG file")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        kind, length = args.work.split(",")
        answer(lambda: work(kind, int(length)))
        return
    kinds, results = args.kinds.split(","), {}
    for length in map(int, args.lengths.split(",")):
        results[length] = measure(kinds, length, args.rounds)
        print(length, json.dumps(results[length]), file=sys.stderr, flush=True)
    print(table(results, kinds, "ms a step", 0, 1e-3), end="\n\n")
    print(table(results, kinds, "CPU ms a step", 1, 1e-3), end="\n\n")
    print(table(results, kinds, "peak, MiB", 2, 2**20))
    if args.plot:
        draw(results, kinds, args.plot)


if __name__ == "__main__":
    main()
