"""A text and flags for training runs that take seconds; does not import TensorFlow."""

import json
import pathlib
import random
import string


def write_corpus(path: pathlib.Path, documents: int = 200, seed: int = 0) -> pathlib.Path:
    """Writes sentences of made-up words, four to a document."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(string.ascii_lowercase[:8], k=draw.randint(2, 6))) for _ in range(60)]

    def sentence():
        return " ".join(draw.choices(words, k=8)).capitalize() + "."

    path.write_text("\n\n".join(" ".join(sentence() for _ in range(4)) for _ in range(documents)) + "\n")
    return path


def flags(folder: pathlib.Path, **others) -> list[str]:
    """Returns arguments of tfzoo.train without --run_dir; text and cache are in `folder`, dropout and accumulation are
    on.
    """
    corpus = folder / "corpus.txt"
    if not corpus.exists():
        write_corpus(corpus)
    values = dict(
        model="bert_tiny",
        overrides="hidden_size=16,num_layers=1,num_heads=2,intermediate_size=32,max_positions=32",
        corpus=corpus,
        cache_dir=folder / "cache",
        vocab_size=200,
        sequence_length=16,
        batch_size=4,
        accumulation=2,
        steps=6,
        warmup_steps=2,
        learning_rate=0.01,
        log_every=1,
        evaluate_every=100,
        evaluate_batches=2,
        checkpoint_every=100,
    )
    return [f"--{name}={value}" for name, value in (values | others).items()]


def records(run_dir: pathlib.Path) -> list[dict]:
    """Returns the complete lines of metrics.jsonl: a killed run's last line may be incomplete."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def measured(run_dir: pathlib.Path) -> dict[tuple[int, str], str]:
    """Returns {(step, name): value with all digits} for everything logged except the speed."""
    return {
        (record["step"], name): repr(value)
        for record in records(run_dir)
        for name, value in record.items()
        if name not in ("step", "tokens_per_second", "model_tflops")
    }
