"""Decoding the test set of multi30k with a beam of 4, compared with Hugging Face transformers and torch:

    TFZOO_DATA=FOLDER .venv/bin/python benchmarks/translate_torch.py --model_dir=RUN [--rounds=5] [--xla]

RUN is a run of `tfzoo.train --task=translate` with the positions of Marian, such as that of `benchmarks/finetuned.py
--only=multi30k`. Its weights are saved as a Hugging Face folder, which both read. transformers decodes pre-norm models
as Pegasus and post-norm models as Marian; the two have the same code. Both receive the same batches of ids, sorted by
length, and decode in turns with two threads. The program prints the speeds and how many texts are the same.

torch and transformers are those of .venv-references (`make .venv-references/installed`), or of --python.
"""

import argparse
import gzip
import json
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from side_by_side import ROOT, Clock, Worker, answer, markdown, processor, ratio, turns

GOAL = 1.5  # Texts/s of tfzoo, relative to transformers.
BEAMS, NEW = 4, 64
# (ids [B, P], mask [B, P]) -> the new tokens [B, N], padded
Decode = Callable[[np.ndarray, np.ndarray], np.ndarray]


def with_tfzoo(folder: pathlib.Path, given: dict[str, Any], jit_compile: bool) -> Decode:
    import tensorflow as tf

    import tfzoo

    tf.config.threading.set_intra_op_parallelism_threads(2)
    model = tfzoo.load(folder / "model")[0]
    options = dict(num_beams=BEAMS, max_new_tokens=NEW, jit_compile=jit_compile, **given["ids"])
    return lambda ids, mask: tfzoo.generate_ids(model, ids, mask, **options).numpy()


def with_transformers(folder: pathlib.Path, given: dict[str, Any], jit_compile: bool) -> Decode:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(2)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    options = dict(num_beams=BEAMS, max_new_tokens=NEW, do_sample=False, **given["ids"])

    def decode(ids, mask):
        with torch.inference_mode():
            rows = model.generate(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long(), **options)
        return rows[:, 1:].numpy()

    return decode


CONTENDERS = {"tfzoo": with_tfzoo, "transformers": with_transformers}


def work(contender: str, folder: pathlib.Path) -> Callable[[int], Any]:
    """Returns a function: number of batches -> their "seconds", "cpu" and "rows", the new tokens without padding."""
    name, _, suffix = contender.partition("-")
    given = json.loads((folder / "given.json").read_text())
    decode = CONTENDERS[name](folder, given, suffix == "xla")
    arrays = np.load(folder / "batches.npz")
    batches = [(arrays[f"ids_{i}"], arrays[f"mask_{i}"]) for i in range(given["batches"])]
    pad, end = given["ids"]["pad_token_id"], given["ids"]["eos_token_id"]

    def run(count: int) -> dict[str, Any]:
        clock = Clock()
        written = [decode(*batch) for batch in batches[:count]]
        return clock.read() | {
            "rows": [[int(i) for i in row if i not in (pad, end)] for rows in written for row in rows]
        }

    return run


def prepare(folder: pathlib.Path, model_dir: pathlib.Path, batch_size: int) -> int:
    """Writes the model as a Hugging Face folder and the batches of ids; returns the number of batches."""
    from finetuned import WRITING, path_of

    import tfzoo
    from tfzoo.errors import UserError

    model, tokenizer = tfzoo.load(model_dir)
    config = model.config
    if config.positions != "sinusoidal_concat":
        raise UserError(f"--model_dir={model_dir}: positions are {config.positions!r}, which transformers cannot read")
    tfzoo.save(model, folder / "model")
    generation = json.loads((model_dir / "generation_config.json").read_text())
    special = {name: generation[name] for name in ("eos_token_id", "pad_token_id", "decoder_start_token_id")}
    with gzip.open(path_of(WRITING["multi30k"][3]).partition("+")[0], "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    rows = sorted((row + [special["eos_token_id"]] for row in tokenizer.tokenize(lines).to_list()), key=len)
    arrays: dict[str, Any] = {}
    starts = range(0, len(rows), batch_size)
    for number, start in enumerate(starts):
        part = rows[start : start + batch_size]
        mask = np.arange(max(map(len, part))) < np.array([len(row) for row in part])[:, None]
        ids = np.full(mask.shape, special["pad_token_id"], np.int32)
        ids[mask] = np.concatenate(part)
        arrays |= {f"ids_{number}": ids, f"mask_{number}": mask}
    np.savez(folder / "batches.npz", **arrays)
    (folder / "given.json").write_text(json.dumps({"ids": special, "batches": len(starts)}))
    return len(starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--batches", type=int, help="decode only this number of batches, the shortest texts")
    parser.add_argument("--xla", action="store_true", help="also measure tfzoo compiled by XLA")
    parser.add_argument("--python", default=str(ROOT / ".venv-references/bin/python"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        answer(lambda: work(args.worker, args.folder))
        return
    if not args.model_dir or not os.environ.get("TFZOO_DATA"):
        sys.exit("set --model_dir and TFZOO_DATA; see the beginning of this file")
    if not pathlib.Path(args.python).exists():
        sys.exit(f"--python={args.python}: does not exist; run make .venv-references/installed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        count = prepare(folder, args.model_dir, args.batch_size)
        count = min(count, args.batches or count)
        workers = []
        for name in ["tfzoo", *(["tfzoo-xla"] if args.xla else []), "transformers"]:
            # The threads of torch spin while they wait, unless they are told to sleep.
            python, variables = (
                (args.python, {"OMP_WAIT_POLICY": "passive"}) if name == "transformers" else (sys.executable, {})
            )
            worker = Worker(name, __file__, f"--worker={name}", f"--folder={folder}", python=python, **variables)
            worker.ask(count)  # Traces every shape, which is not measured.
            workers.append(worker)
        print(processor(), flush=True)
        for worker in turns(workers, args.rounds):
            worker.answers.append(worker.ask(count))
        for worker in workers:
            worker.close()
    seconds = {each.name: [turn["seconds"] for turn in each.answers] for each in workers}
    cpu = {each.name: [turn["cpu"] for turn in each.answers] for each in workers}
    reference = workers[-1].answers[0]["rows"]
    rows = []
    for worker in workers:
        texts = worker.answers[0]["rows"]
        same = sum(a == b for a, b in zip(texts, reference, strict=True)) / len(reference)
        speeds = [ratio(values["transformers"], values[worker.name]) for values in (seconds, cpu)]
        rows.append(
            [
                worker.name,
                f"{len(texts) / statistics.median(seconds[worker.name]):.1f}",
                f"{speeds[0]:.2f}, {speeds[1]:.2f}",
                f"{same:.1%}",
            ]
        )
    heads = ["multi30k, beam of 4", "texts/s", "speed of transformers = 1: time, CPU", "the same texts"]
    print(markdown(heads, rows))
    reached = ratio(seconds["transformers"], seconds["tfzoo"])
    print(f"tfzoo: {reached:.2f} times transformers; {'reached' if reached >= GOAL else 'missed'}: {GOAL}")


if __name__ == "__main__":
    main()
