"""Throughput of the input pipeline compared with the training step of train_step.py: `make bench`, or

    .venv-peers/bin/python benchmarks/input.py

The pipeline is that of `tfzoo.train`: rows of the docstring corpus in shuffled order, cut into pairs, masked, padded to
128, in batches of 16. The two are measured in turns, never at the same time.
"""

import os
import pathlib
import resource
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import history
import peers
import tensorflow as tf
from side_by_side import ratios

from tfzoo.data import pipeline, tokenized
from tfzoo.data.corpus import load_corpus
from tfzoo.data.pairs import PairRows
from tfzoo.objectives.masked_lm import MaskedLM

ROUNDS, BATCHES, STEPS = 5, 400, 3


def main() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(2)
    cache_dir = os.path.expanduser("~/.cache/tfzoo")
    corpus = load_corpus("docstrings", cache_dir=cache_dir)
    tokenizer = tokenized.cached_tokenizer(corpus, "wordpiece", 8192, True, cache_dir)
    objective = MaskedLM(tokenizer, peers.SEQUENCE_LENGTH["bert"])
    rows = PairRows(
        tokenized.cached(corpus.train, tokenizer, corpus.fingerprint + "train", cache_dir), objective.row_tokens
    )
    batch_size = peers.BATCH_SIZE["bert"]
    batches = iter(
        pipeline.training_batches(rows, objective, batch_size=batch_size, seed=0, first_step=0, num_steps=1 << 30)
    )
    train, _ = peers.with_tfzoo("bert", "float32", "train")
    train(2)
    delivered, consumed = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(BATCHES):
            next(batches)
        delivered.append(BATCHES * peers.tokens("bert") / (time.perf_counter() - start))
        start = time.perf_counter()
        float(train(STEPS))
        consumed.append(STEPS * peers.tokens("bert") / (time.perf_counter() - start))
    history.record("input", "masked_lm, 16 x 128", "pipeline", "training step", ratios(delivered, consumed))
    ratio = statistics.median(ratios(delivered, consumed))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print("| input | tokens/s |\n| --- | ---: |")
    print(f"| the pipeline delivers | {statistics.median(delivered):,.0f} |")
    print(f"| the float32 step consumes | {statistics.median(consumed):,.0f} |")
    print(f"\nThe pipeline delivers {ratio:.1f} times what the step consumes; peak memory {peak / 2**30:.2f} GiB.")


if __name__ == "__main__":
    main()
