"""What packing gains, in useful tokens per second: `make bench`, or

    TFZOO_DATA=FOLDER .venv-peers/bin/python benchmarks/packing.py [--rows=8] [--length=256]

Each line of wikitext-2, a paragraph or a heading, is a document. TFZOO_DATA names the folder with wikitext-2/valid.txt
and the released vocabularies in vocab/. Packed rows and rows with one document each train the same model (4 layers of
width 256) with the same number of rows per batch; useful tokens are those that are not padding. The contenders take
turns.
"""

import argparse
import os
import pathlib
import statistics
import time
from typing import Any

import history
from side_by_side import Worker, answer, markdown, ratio, ratios, turns

MODELS = {"causal": "gpt2", "masked_lm": "bert_small"}
BATCHES = 40


def work(objective: str, pack: bool, batch_size: int, length: int):
    """Returns a function: steps -> {"seconds": per step, "useful": tokens per step that are not padding}."""
    import keras
    import numpy as np
    import tensorflow as tf

    from tfzoo import models, text
    from tfzoo.data import pipeline, tokenized
    from tfzoo.data.documents import Document
    from tfzoo.objectives.causal import Causal
    from tfzoo.objectives.masked_lm import MaskedLM
    from tfzoo.text.wordpiece import WordPiece
    from tfzoo.training import distribution, optimizers
    from tfzoo.training import step as step_lib

    tf.config.threading.set_intra_op_parallelism_threads(2)
    data = pathlib.Path(os.environ["TFZOO_DATA"])
    lines = (data / "wikitext-2" / "valid.txt").read_text().splitlines()
    tokenizer: Any
    trained: Any
    if objective == "causal":
        tokenizer = text.load(data / "vocab" / "gpt2")
    else:
        tokenizer = WordPiece.from_file(data / "vocab" / "bert-base-uncased" / "vocab.txt", True)
    corpus = tokenized.tokenize([Document("wikitext-2", [line]) for line in lines if line.strip()], tokenizer)
    if objective == "causal":
        trained = Causal(tokenizer, length, pack=pack)
    else:
        trained = MaskedLM(tokenizer, length, pairs="none", pack=pack)

    keras.utils.set_random_seed(0)
    model = models.build(
        MODELS[objective],
        heads=("lm",),
        vocab_size=tokenizer.vocab_size,
        hidden_size=256,
        num_layers=4,
        num_heads=4,
        intermediate_size=1024,
        max_positions=length,
    )
    optimizer = optimizers.make_optimizer("adamw", 1e-4, model.trainable_variables, weight_decay=0.01)
    strategy = distribution.make_strategy("default")
    run_steps = step_lib.make_step(strategy, {"main": model}, optimizer, trained, clip_norm=1.0)
    rows = trained.rows(corpus)
    batches = pipeline.training_batches(rows, trained, batch_size=batch_size, seed=0, first_step=0, num_steps=BATCHES)
    real = "target_weights" if objective == "causal" else "padding_mask"
    useful = float(np.mean([np.count_nonzero(batch[real]) for batch in batches.as_numpy_iterator()]))
    iterator = iter(batches.cache().repeat())

    def measured(steps: int) -> dict[str, float]:
        start = time.perf_counter()
        run_steps(iterator, tf.constant(steps)).numpy()
        return {"seconds": (time.perf_counter() - start) / steps, "useful": useful}

    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="rows per batch")
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="steps per turn")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        objective, pack = args.work.split(",")
        answer(lambda: work(objective, pack == "packed", args.rows, args.length))
        return
    if "TFZOO_DATA" not in os.environ:
        print("packing.py is skipped: TFZOO_DATA does not name a folder with wikitext-2 and vocab")
        return
    sizes = [f"--rows={args.rows}", f"--length={args.length}"]
    workers = [
        Worker(f"{objective}, {how}", __file__, f"--work={objective},{how}", *sizes)
        for objective in MODELS
        for how in ("packed", "one per row")
    ]
    for worker in workers:
        worker.ask(2)
    for worker in turns(workers, args.rounds):
        worker.ask(1)  # Wakes the threads and fills the caches.
        worker.answers.append(worker.ask(args.steps))
    speeds = [[a["useful"] / a["seconds"] for a in worker.answers] for worker in workers]
    rows = []
    for i, worker in enumerate(workers):
        worker.close()
        useful = worker.answers[0]["useful"]
        rows.append(
            [
                worker.name,
                f"{1 - useful / args.rows / args.length:.1%}",
                f"{1000 * statistics.median(a['seconds'] for a in worker.answers):.0f}",
                f"{statistics.median(speeds[i]):,.0f}",
                f"{ratio(speeds[i], speeds[i // 2 * 2 + 1]):.2f}",
            ]
        )
    size = f"{args.rows} x {args.length}"
    for objective, packed, single in zip(MODELS, speeds[::2], speeds[1::2]):
        history.record("packing", f"{objective}, {size}", "packed", "one per row", ratios(packed, single))
    heads = [size, "padding", "ms per step", "useful tokens/s", "relative to one per row"]
    print(markdown(heads, rows))


if __name__ == "__main__":
    main()
