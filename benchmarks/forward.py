"""BERT-base's forward pass compared with KerasHub, Model Garden and plain matrix products: `make bench`, or

    .venv-peers/bin/python benchmarks/forward.py [--contenders=tfzoo,kerashub,garden] [--batches=1,8]

Each contender runs in its own process with two threads, and they take turns. `products` multiplies square matrices and
does nothing else; its speed is the limit for a forward pass, most of which is matrix products. The pass: 12 layers of
width 768, 128 tokens per row, one padded row, float32, no heads.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from side_by_side import Worker, answer, ratio, turns

LENGTH, HIDDEN, LAYERS, INTERMEDIATE, VOCAB = 128, 768, 12, 3072, 30522
SIDE = 2048  # Rows and columns of the matrices of `products`.


def flops(batch: int) -> float:
    """Returns the FLOPs of products with weights, scores and weighted sums; 2 per multiplication."""
    tokens = batch * LENGTH
    layer = 2 * tokens * (4 * HIDDEN**2 + 2 * HIDDEN * INTERMEDIATE) + 4 * tokens * LENGTH * HIDDEN
    return LAYERS * layer + 2 * batch * HIDDEN**2


def inputs(batch: int):
    import numpy as np

    random = np.random.default_rng(0)
    padding_mask = np.ones([batch, LENGTH], np.int32)
    padding_mask[0, LENGTH * 3 // 4 :] = 0
    return random.integers(1000, VOCAB, [batch, LENGTH], np.int32), np.zeros([batch, LENGTH], np.int32), padding_mask


def with_tfzoo() -> Callable[[int], Any]:
    """tfzoo's encoder with its pooler."""
    import tensorflow as tf

    from tfzoo import models

    model = models.build("bert_base", heads=())
    run = tf.function(lambda features: model(features)["pooled"])

    def forward(batch):
        token_ids, segment_ids, padding_mask = map(tf.constant, inputs(batch))
        features = {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": tf.cast(padding_mask, tf.bool)}
        return lambda: run(features)

    return forward


def kerashub() -> Callable[[int], Any]:
    """KerasHub's BertBackbone."""
    import keras_hub
    import tensorflow as tf

    model = keras_hub.models.BertBackbone(
        vocabulary_size=VOCAB, num_layers=LAYERS, num_heads=12, hidden_dim=HIDDEN, intermediate_dim=INTERMEDIATE
    )
    run = tf.function(lambda features: model(features, training=False)["pooled_output"])

    def forward(batch):
        features = dict(zip(("token_ids", "segment_ids", "padding_mask"), map(tf.constant, inputs(batch))))
        return lambda: run(features)

    return forward


def garden() -> Callable[[int], Any]:
    """Model Garden's BertEncoder."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf
    from official.nlp.modeling import networks

    model = networks.BertEncoderV2(
        vocab_size=VOCAB, hidden_size=HIDDEN, num_layers=LAYERS, num_attention_heads=12, inner_dim=INTERMEDIATE
    )
    run = tf.function(lambda features: model(features, training=False)["pooled_output"])

    def forward(batch):
        names = ("input_word_ids", "input_type_ids", "input_mask")
        features = dict(zip(names, map(tf.constant, inputs(batch))))
        return lambda: run(features)

    return forward


def products() -> Callable[[int], Any]:
    """Square matrix products, with their own number of FLOPs."""
    import tensorflow as tf

    left, right = tf.random.normal([SIDE, SIDE]), tf.random.normal([SIDE, SIDE])
    run = tf.function(lambda: tf.matmul(left, right))
    return lambda batch: run


CONTENDERS = {"tfzoo": with_tfzoo, "kerashub": kerashub, "garden": garden, "products": products}


def work(name: str) -> Callable[[int, int], float]:
    """Returns a function: (batch, times) -> seconds per run."""
    if name == "garden":
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    make = CONTENDERS[name]()
    made: dict[int, Callable[[], Any]] = {}

    def seconds(batch: int, times: int) -> float:
        run = made.setdefault(batch, make(batch))
        start = time.perf_counter()
        for _ in range(times):
            result = run()
        result.numpy()
        return (time.perf_counter() - start) / times

    return seconds


def table(workers: list[Worker], batch: int) -> str:
    first, last = workers[0], workers[-1]
    lines = [
        f"| {batch} x {LENGTH} | ms | GFLOP/s | fraction of products | speedup of {first.name} |",
        "|---|---:|---:|---:|---:|",
    ]
    limits = [2 * SIDE**3 / seconds for seconds in last.answers]
    for worker in workers:
        work = 2 * SIDE**3 if worker is last else flops(batch)
        shares = [work / seconds / limit for seconds, limit in zip(worker.answers, limits)]
        seconds = statistics.median(worker.answers)
        lines.append(
            f"| {worker.name} | {1000 * seconds:.0f} | {work / seconds / 1e9:.0f} | {statistics.median(shares):.3f} | "
            f"{'' if worker is last else f'{ratio(worker.answers, first.answers):.3f}'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", default="tfzoo,kerashub,garden")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        answer(lambda: work(args.worker))
        return
    workers = [Worker(name, __file__, f"--worker={name}") for name in (*args.contenders.split(","), "products")]
    for batch in map(int, args.batches.split(",")):
        times = max(1, 16 // batch)
        for worker in workers:
            worker.answers = []
            worker.ask(batch, 3)
        for worker in turns(workers, args.rounds):
            worker.ask(batch, 1)  # Wakes the threads and fills the caches.
            worker.answers.append(worker.ask(batch, times))
        print(table(workers, batch), flush=True)
        print()
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
