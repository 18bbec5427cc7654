"""Time and memory of each kind of attention by sequence length, forward and backward:

    .venv/bin/python benchmarks/attention.py [--kinds=full,lean] [--lengths=512,2048] [--plot=docs/attention.png]

Batch 1, 8 heads of 64, float32, no mask. Every cell is measured in its own process, so that it has its own peak memory;
the kinds take turns at each length, so that other load on the machine affects all of them equally. CPU time adds up the
threads and is less sensitive to other load than wall-clock time, so growth with the length is computed from it.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys
import time

import history
from side_by_side import Worker, answer, markdown, ratios, turns

HEADS, DEPTH = 8, 64
KINDS = {
    "full": "full",
    "lean": "memory-efficient, exact",
    "favor": "FAVOR+, 256 features",
    "favor_causal": "FAVOR+, causal",
    "lsh": "LSH, one round, chunks of 64",
}
# Copies of the scores in full attention: weights, their gradient, the gradient of the scores, and one in reserve.
COPIES = 4


def make_step(kind: str, length: int):
    """Returns a function without arguments that computes the gradient of attention for queries, keys and values."""
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
        # Queries and keys are equal, as in the Reformer.
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
    """Returns a function: steps -> seconds per step, CPU seconds per step, bytes added to the peak memory."""
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
    """Returns the bytes that are available to a new process."""
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def measure(kinds: list[str], length: int, rounds: int) -> dict[str, list[float]]:
    """Returns the medians of the answers of `work`, for each kind that fits into memory."""
    cells, steps = [], {}
    for kind in kinds:
        if kind == "full" and COPIES * HEADS * length**2 * 4 > free_memory():
            print(
                f"full: out of memory at length {length}; {free_memory() / 2**30:.1f} GiB are available",
                file=sys.stderr,
            )
            continue
        cell = Worker(kind, __file__, f"--work={kind},{length}")
        cell.ask(1)  # Traces.
        steps[kind] = max(1, min(50, round(0.5 / cell.ask(1)[0])))
        cells.append(cell)
    for cell in turns(cells, rounds):
        cell.answers.append(cell.ask(steps[cell.name]))
    seconds = {cell.name: [each[0] for each in cell.answers] for cell in cells}
    for kind in [kind for kind in seconds if kind != "full" and "full" in seconds]:
        history.record("attention", f"{length} tokens", kind, "full", ratios(seconds["full"], seconds[kind]))
    for cell in cells:
        cell.close()
    return {cell.name: [statistics.median(values) for values in zip(*cell.answers)] for cell in cells}


def table(results: dict[int, dict], kinds: list[str], head: str, which: int, unit: float, digits: int = 0) -> str:
    """Returns a Markdown table: rows are kinds, columns are lengths and the exponent of growth between lengths."""
    lengths = list(results)
    steps = list(zip(lengths, lengths[1:]))
    heads = [f"{n:,}" for n in lengths] + [f"{a:,} to {b:,}: L^" for a, b in steps]
    rows = []
    for kind in kinds:
        values = [results[n][kind][which] if kind in results[n] else None for n in lengths]
        row = [KINDS[kind]] + ["out of memory" if v is None else f"{v / unit:,.{digits}f}" for v in values]
        for (a, b), before, after in zip(steps, values, values[1:]):
            row.append("" if not before or not after else f"{math.log(after / before) / math.log(b / a):.2f}")
        rows.append(row)
    return markdown([head, *heads], rows)


def draw(results: dict[int, dict], kinds: list[str], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for which, (axis, label, unit) in zip((1, 2), zip(axes, ("CPU seconds per step", "peak memory, MiB"), (1, 2**20))):
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
    parser.add_argument("--plot", help="PNG file to write")
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
    print(table(results, kinds, "ms per step", 0, 1e-3), end="\n\n")
    print(table(results, kinds, "CPU ms per step", 1, 1e-3), end="\n\n")
    print(table(results, kinds, "peak memory, MiB", 2, 2**20))
    if args.plot:
        draw(results, kinds, args.plot)


if __name__ == "__main__":
    main()
