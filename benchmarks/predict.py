"""Speed of python -m tfzoo.predict, relative to the bare forward pass on the same batches: `make bench`, or

    TFZOO_DATA=FOLDER python benchmarks/predict.py [--rows=20000] [--part=4096]

TFZOO_DATA names the folder with sst2/ and vocab/. A classifier of the shape of bert_small with random weights answers
sst2's sentences, repeated up to --rows, from a .txt file to a .jsonl file. The bare forward pass computes the logits of
the same batches of token ids, which were made beforehand. Both take turns on parts of --part rows in one process, so
that other load on the machine affects them equally; the ratio is the median over the parts. The gain of batches with
similar length is shown by the bare forward pass on batches in the order of the file.
"""

import argparse
import contextlib
import functools
import io
import itertools
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from unittest import mock

import history
from side_by_side import ROOT, ratios

sys.path.insert(0, str(ROOT))


def texts_of(folder: pathlib.Path, count: int) -> list[str]:
    """Returns `count` sentences."""
    lines = (folder / "sst2" / "train.tsv").read_text().splitlines()
    return list(itertools.islice(itertools.cycle(line.rpartition("\t")[0] for line in lines), count))


def measure(data: pathlib.Path, folder: pathlib.Path, count: int, part: int) -> list[tuple[float, float, float]]:
    """Returns for each part the seconds of predict, of the forward pass, and of the latter in the file's order."""
    import tensorflow as tf

    import tfzoo
    from tfzoo import cli, predict
    from tfzoo.prediction import folders
    from tfzoo.prediction.stream import Stream
    from tfzoo.text.wordpiece import WordPiece

    tokenizer = WordPiece.from_file(data / "vocab" / "bert-base-uncased" / "vocab.txt", True)
    built = tfzoo.build("bert_small", heads=("classify",), vocab_size=tokenizer.vocab_size)
    tfzoo.save(built, folder / "model", tokenizer)
    model, _ = tfzoo.load(folder / "model")
    predictor = folders.open_folder(folder / "model")
    reader = tfzoo.Preprocessor(model, tokenizer)
    forward = tf.function(lambda inputs: model(inputs, training=False)["classify_logits"], reduce_retracing=True)

    seconds = []
    texts = texts_of(data, count)
    for number, first in enumerate(range(-part, count, part)):  # The first part warms up.
        rows = texts[max(0, first) : max(0, first) + part]
        batches: list[list[tuple[str]]] = []
        with Stream(predictor) as stream, mock.patch.object(stream, "_answer", batches.append):
            for block in range(0, len(rows), 2048):
                for _, future in stream._submit([(row,) for row in rows[block : block + 2048]]):
                    future.result()
        shuffled = [rows[i : i + 32] for i in range(0, len(rows), 32)]
        (folder / "in.txt").write_text("".join(f"{row}\n" for row in rows))

        def answered() -> None:
            arguments = [f"--model_dir={folder / 'model'}", f"--input={folder / 'in.txt'}"]
            with (
                mock.patch.object(folders, "open_folder", lambda *_, **__: predictor),
                contextlib.redirect_stderr(io.StringIO()) as err,
            ):
                code = cli.run(predict.main, predict.define_flags, [*arguments, f"--output={folder / 'out.jsonl'}"])
            assert code == 0, err.getvalue()

        def computed(batches) -> None:
            for inputs in batches:
                forward(inputs).numpy()

        bare = [reader(tf.constant([text for (text,) in batch])) for batch in batches]
        plain = [reader(tf.constant(batch)) for batch in shuffled]
        turns: list[Callable[[], None]] = [
            answered,
            functools.partial(computed, bare),
            functools.partial(computed, plain),
        ]
        taken = [0.0] * len(turns)
        for turn in range(len(turns)) if number % 2 else reversed(range(len(turns))):
            begin = time.perf_counter()
            turns[turn]()
            taken[turn] = time.perf_counter() - begin
        if first >= 0:
            seconds.append((taken[0], taken[1], taken[2]))
            print(
                f"rows {first:,}-{first + len(rows):,}: predict {taken[0]:.1f} s, forward {taken[1]:.1f} s",
                file=sys.stderr,
            )
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--part", type=int, default=4096, help="rows of a turn")
    args = parser.parse_args()
    if "TFZOO_DATA" not in os.environ:
        print("predict.py is skipped: TFZOO_DATA does not name a folder with sst2 and vocab")
        return
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(pathlib.Path(os.environ["TFZOO_DATA"]), pathlib.Path(folder), args.rows, args.part)
    predict, forward, plain = zip(*seconds)
    speeds, gains, total = ratios(forward, predict), ratios(plain, forward), sum(predict)
    history.record("predict", "bert_small, sst2", "predict", "forward pass", speeds)
    history.record("predict", "bert_small, sst2", "similar length", "the file's order", gains)
    ratio, gain = statistics.median(speeds), statistics.median(gains)
    print(f"{args.rows:,} sentences: predict {args.rows / total:,.0f} rows/s")
    print(f"speed of predict relative to the bare forward pass on the same batches: {ratio:.2f} (median of the parts)")
    print(f"speed of the forward pass on these batches relative to batches in the file's order: {gain:.2f}")


if __name__ == "__main__":
    main()
