"""Labelled files and flags of fine-tuning runs that take seconds; does not import TensorFlow."""

import pathlib
import random

WORDS = {
    "good": "bright calm clean fine fresh kind neat quick sweet warm".split(),
    "bad": "bitter broken cold dark dull harsh noisy rough slow sour".split(),
}
NEUTRAL = "the a day house street river table garden window paper with near under over".split()
SIZES = "hidden_size=16,num_layers=1,num_heads=2,intermediate_size=32,max_positions=32,dropout=0,attention_dropout=0"


def write_rows(path: pathlib.Path, rows: int = 60, seed: int = 0, labels=("good", "bad")) -> pathlib.Path:
    """Writes a .tsv of texts of different lengths with the label of the words in them."""
    draw = random.Random(seed)
    lines = ["text\tlabel"]
    for i in range(rows):
        label = labels[i % len(labels)]
        words = draw.choices(NEUTRAL, k=draw.randint(1, 12)) + draw.choices(WORDS[label], k=3)
        draw.shuffle(words)
        lines.append(f"{' '.join(words)}\t{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


def flags(folder: pathlib.Path, **others) -> list[str]:
    """Returns arguments of tfzoo.train for the task classify, without --run_dir; files and cache are in `folder`."""
    train, validation = folder / "train.tsv", folder / "dev.tsv"
    if not train.exists():
        write_rows(train)
        write_rows(validation, rows=21, seed=1)
    values = dict(
        task="classify",
        train_file=train,
        validation_file=validation,
        model="bert_tiny",
        overrides=SIZES,
        cache_dir=folder / "cache",
        vocab_size=200,
        sequence_length=24,
        batch_size=8,
        steps=6,
        warmup_steps=1,
        learning_rate=0.01,
        schedule="constant",
        log_every=1,
        evaluate_every=3,
        checkpoint_every=3,
    )
    values |= others
    return [f"--{name}={value}" for name, value in values.items() if value is not None]
