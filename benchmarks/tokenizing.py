"""Tokens per second in a graph, compared with the `tokenizers` library, one thread each, in turns:

    .venv/bin/python benchmarks/tokenizing.py

With TFZOO_DATA the texts are wikitext-2 (English), XQuAD (German, Chinese) and Tang poems, and the vocabularies those
of BERT, T5 and GPT-2. Without it, the texts are the docstrings of the installed packages, and the vocabularies are
trained on them. Times are CPU time, which is less sensitive to other load than wall-clock time; the last column is
the ratio of the medians. (A script named tokenize.py would shadow the module of the standard library.)

The last line is the time to load BERT's tokenizer from a folder: the first time, with its verification, and again,
compared with transformers' AutoTokenizer.from_pretrained if .venv-references exists.
"""

import argparse
import functools
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import tensorflow as tf
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from tfzoo.text import cache, load, training
from tfzoo.text.byte_level import ByteLevelBPE
from tfzoo.text.sentencepiece import SentencePiece
from tfzoo.text.sentencepiece_proto import parse
from tfzoo.text.wordpiece import WordPiece

MAX_CHARACTERS = 500_000
REFERENCES = pathlib.Path(__file__).resolve().parents[1] / ".venv-references" / "bin" / "python"


def texts() -> dict[str, list[str]]:
    if "TFZOO_DATA" not in os.environ:
        from tfzoo.data.corpus import load_corpus

        corpus = load_corpus("docstrings", cache_dir=os.path.expanduser("~/.cache/tfzoo"))
        found = {"docstrings": ["\n".join(document.sentences) for document in itertools.islice(corpus.train, 5000)]}
    else:
        data = pathlib.Path(os.environ["TFZOO_DATA"])

        def xquad(language: str) -> list[str]:
            content = json.loads((data / "xquad" / f"xquad.{language}.json").read_text(encoding="utf-8"))
            parts = [part for article in content["data"] for part in article["paragraphs"]]
            return [s for part in parts for s in (part["context"], *(qa["question"] for qa in part["qas"]))]

        found = {
            # The library's T5 treats <unk> in a text as a token.
            "wikitext-2": (data / "wikitext-2" / "valid.txt").read_text("utf-8").replace("<unk>", "unk").split("\n"),
            "xquad de": xquad("de"),
            "xquad zh": xquad("zh"),
            "poems zh": (data / "chinese-poetry" / "tang.txt").read_text(encoding="utf-8").split("\n"),
        }
    result = {}
    for name, lines in found.items():
        ends = itertools.accumulate(len(line) for line in lines)
        result[name] = [
            line.strip() for line, end in zip(lines, ends, strict=True) if line.strip() and end <= MAX_CHARACTERS
        ]
    return result


def contenders(training_texts: list[str]) -> dict[str, tuple[tf.Module, tokenizers.Tokenizer]]:
    """Returns name -> (tfzoo's tokenizer, the library's tokenizer with the same vocabulary)."""
    data = pathlib.Path(os.environ["TFZOO_DATA"], "vocab") if "TFZOO_DATA" in os.environ else None
    if data:
        wordpiece = WordPiece.from_file(data / "bert-base-uncased" / "vocab.txt", lowercase=True)
        model = (data / "t5" / "spiece.model").read_bytes()
        byte_level = load(data / "gpt2")
    else:
        wordpiece = WordPiece(training.train_wordpiece(training_texts, 8192, lowercase=True))
        model = training.train_sentencepiece(training_texts, 8192)
        byte_level = ByteLevelBPE(*training.train_byte_level(training_texts, 8192), special_tokens=["<|endoftext|>"])

    ids = {token: i for i, token in enumerate(wordpiece.vocab)}
    bert = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    bert.normalizer = normalizers.BertNormalizer(lowercase=True)
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    # The conversion of spiece.model in transformers.
    proto = parse(model, "model")
    pieces = [(piece.piece.decode(), piece.score) for piece in proto.pieces]
    unknown = next(i for i, piece in enumerate(proto.pieces) if piece.type == 2)
    t5 = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=unknown))
    t5.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    t5.pre_tokenizer = pre_tokenizers.Metaspace()

    ids = {token: i for i, token in enumerate(byte_level.vocab)}
    gpt2 = tokenizers.Tokenizer(models.BPE(ids, byte_level.merges))
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    gpt2.decoder = decoders.ByteLevel()
    return {
        "WordPiece": (wordpiece, bert),
        "SentencePiece": (SentencePiece(model), t5),
        "byte-level BPE": (byte_level, gpt2),
    }


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


_REFERENCE = """
import sys, time, transformers
load = transformers.AutoTokenizer.from_pretrained
load(sys.argv[1])
for line in sys.stdin:
    start = time.process_time()
    load(sys.argv[1])
    print(time.process_time() - start, flush=True)
"""


def loading(tokenizer: WordPiece, rounds: int) -> None:
    """Prints the time to load a tokenizer: tfzoo with verification, tfzoo again, and the reference, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        with tempfile.TemporaryDirectory() as kept, mock.patch.object(cache, "folder", lambda: pathlib.Path(kept)):
            first = cpu_seconds(lambda: load(folder))
            peer = None
            if REFERENCES.exists():
                peer = subprocess.Popen(
                    [str(REFERENCES), "-c", _REFERENCE, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, text=True,
                )  # fmt: skip
            own, reference = [], []
            for _ in range(rounds):
                own.append(cpu_seconds(lambda: load(folder)))
                if peer and peer.stdin and peer.stdout:
                    peer.stdin.write("\n")
                    peer.stdin.flush()
                    reference.append(float(peer.stdout.readline()))
            if peer and peer.stdin:
                peer.stdin.close()
                peer.wait()
    again = statistics.median(own)
    line = (
        f"loading {tokenizer.vocab_size:,} tokens: {first * 1000:.0f} ms with verification, {again * 1000:.0f} ms again"
    )
    if reference:
        peers = statistics.median(reference)
        line += f"; transformers {peers * 1000:.0f} ms, ratio {peers / again:.2f}"
    print(f"\n{line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=1000, help="texts per call, for both (1000)")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    corpora = texts()
    print("| tokenizer | text | tfzoo, tokens/s | tokenizers, tokens/s | different lines | ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    made = contenders(next(iter(corpora.values())))
    for kind, (tokenizer, library) in made.items():
        graph = tf.function(tokenizer.tokenize, input_signature=[tf.TensorSpec([None], tf.string)])
        for name, lines in corpora.items():
            batches = [
                lines[start : start + arguments.batch_size] for start in range(0, len(lines), arguments.batch_size)
            ]
            tensors = [tf.constant(batch) for batch in batches]

            def run_tfzoo(tensors=tensors, graph=graph) -> list[tf.RaggedTensor]:
                return [graph(batch) for batch in tensors]

            def run_library(batches=batches, library=library, fresh: list | None = None) -> list:
                used = fresh.pop() if fresh else library
                return [used.encode_batch_fast(batch, add_special_tokens=False) for batch in batches]

            got = [row for batch in run_tfzoo() for row in batch.to_list()]
            want = [encoding.ids for batch in run_library() for encoding in batch]
            different = sum(a != b for a, b in zip(got, want, strict=True))
            # The library caches words, and would find all of them in a second round; a corpus is read once.
            copies = [tokenizers.Tokenizer.from_str(library.to_str()) for _ in range(arguments.rounds)]
            run_library = functools.partial(run_library, fresh=copies)
            times: dict[Callable, list[float]] = {run_tfzoo: [], run_library: []}
            for i in range(arguments.rounds):
                for contender in (run_tfzoo, run_library) if i % 2 else (run_library, run_tfzoo):
                    times[contender].append(cpu_seconds(contender))
            tokens = sum(map(len, got))
            a, b = (tokens / statistics.median(times[contender]) for contender in (run_tfzoo, run_library))
            row = (kind, name, f"{a:,.0f}", f"{b:,.0f}", f"{different} of {len(lines):,}", f"{a / b:.2f}")
            print(f"| {' | '.join(row)} |", flush=True)

    loading(next(iter(made.values()))[0], 3 * arguments.rounds)


if __name__ == "__main__":
    main()
