"""Decoding speed compared with KerasHub, transformers and the limit of the machine: `make bench`, or

    .venv-peers/bin/python benchmarks/decode.py [--tasks=gpt2:1,gpt2:8,t5:1] [--contenders=tfzoo,kerashub] [--rounds=5]

    gpt2:B   GPT-2 small, greedy, B prompts of 32 tokens, 64 new tokens each
    t5:B     T5-small, beam search with 4 beams, B texts of 32 tokens, 64 new tokens each

All contenders read the same random weights from a Hugging Face folder that tfzoo writes, except KerasHub's T5, which
cannot read Hugging Face folders and has its own random weights. No token ends a text. Each contender runs in its own
process with two threads, and they take turns. The suffix "-xla" compiles a contender; "-bfloat16" and "-int8" store the
weights of tfzoo in that type; "-onnx" runs tfzoo's ONNX graphs as tfzoo.generate runs an artifact, with the variant
"-int8_weights", "-genai" as exported with that profile, and "-hugepages" with glibc's huge pages; "-1" gives
transformers one thread. transformers runs with torch, if .venv-references exists. `savedmodel` is tfzoo's export, whose
signature `generate` continues texts of as many bytes as the others' prompts have tokens. `products` multiplies the
state of the last token with every matrix of GPT-2, in the fastest layout, and does nothing else: no token can be
generated faster than its weights are read.

    ms              median time of a call
    first           ms to the first token: a call that generates one token
    per token       ms of each further token; CPU: the sum over both threads, which is less sensitive to other load
    of the limit    ms of the products, compiled by XLA if the contender is, / ms per token
    first call      seconds of the first call, which traces and compiles; again: the first call of a second process,
                    which finds XLA's results on disk (TF_XLA_FLAGS=--tf_xla_persistent_cache_directory)
"""

import argparse
import importlib.util
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import history
from side_by_side import ROOT, Worker, answer, markdown, ratio, ratios, turns

PROMPT, NEW, BEAMS = 32, 64, 4
REFERENCES = ROOT / ".venv-references" / "bin" / "python"
NAMES = {"gpt2": "gpt2", "t5": "t5_small"}
# (family, batch, new tokens) -> the new tokens [batch, new]
Generate = Callable[[str, int, int], Any]
How = Sequence[str]  # The suffixes of a contender's name.


def prompts(batch: int):
    import numpy as np

    return np.random.default_rng(0).integers(5, 30000, [batch, PROMPT], np.int32)


def with_tfzoo(folder: pathlib.Path, how: How) -> Generate:
    if "onnx" in how:
        return with_onnx(folder, how)
    import tfzoo

    models: dict[str, Any] = {}

    def generate(family, batch, new):
        if family not in models:
            models[family] = tfzoo.load(folder / family)[0]
            for dtype in set(how) - {"xla"}:
                tfzoo.store_weights(models[family], dtype)
        options = dict(max_new_tokens=new, eos_token_id=(), num_beams=1 if family == "gpt2" else BEAMS)
        return tfzoo.generate_ids(models[family], prompts(batch), jit_compile="xla" in how, **options).numpy()

    return generate


def with_onnx(folder: pathlib.Path, how: How) -> Generate:
    import numpy as np

    from tfzoo.generation import read_options
    from tfzoo.onnx_decoding import beam, graphs, sample, sessions

    profile = "genai" if "genai" in how else "standard"
    suffix = "_int8_weights" if "int8_weights" in how else ""
    opened: dict[str, Any] = {}

    def generate(family, batch, new):
        if family not in opened:
            names = [graphs.DECODER] if family == "gpt2" else [graphs.ENCODER, graphs.CROSS]
            paths = {name: folder / f"{family}_{profile}" / f"{name}{suffix}.onnx" for name in names}
            loaded = {name: sessions.open_session(path, threads=2) for name, path in paths.items()}
            opened[family] = graphs.Graphs(loaded, profile == "genai", None if family == "gpt2" else 0)
        beams = 1 if family == "gpt2" else BEAMS
        options, _ = read_options(eos_token_id=(), num_beams=beams)
        rows = {"max_new_tokens": np.full(batch, new)}
        reading = opened[family].read(prompts(batch).tolist(), new)
        if beams > 1:
            return [text.token_ids for text in beam.beam_search(reading, options, rows, lambda ids: False)]
        return np.stack([step.tokens for step in sample.sample(reading, options, rows, lambda ids: False)], 1)

    return generate


def kerashub(folder: pathlib.Path, how: How) -> Generate:
    import numpy as np
    from keras_hub import models as hub

    models: dict[str, Any] = {}

    def generate(family, batch, new):
        if family not in models:
            if family == "gpt2":
                backbone = hub.GPT2Backbone.from_preset(str(folder / family), dropout=0.0)
                models[family] = hub.GPT2CausalLM(backbone)
                models[family].compile(sampler="greedy", jit_compile="xla" in how)
            else:
                from keras_hub.samplers import BeamSampler

                sizes = dict(vocabulary_size=32128, num_layers=6, num_heads=8, hidden_dim=512, intermediate_dim=2048)
                backbone = hub.T5Backbone(**sizes, dropout=0.0, activation="relu", use_gated_activation=False)
                models[family] = hub.T5Seq2SeqLM(backbone)
                models[family].compile(sampler=BeamSampler(num_beams=BEAMS), jit_compile="xla" in how)
        ids = prompts(batch)
        if family == "gpt2":
            whole = np.pad(ids, [(0, 0), (0, new)])
            mask = np.pad(np.ones_like(ids), [(0, 0), (0, new)])
            inputs = {"token_ids": whole, "padding_mask": mask}
            return models[family].generate(inputs, stop_token_ids=None)["token_ids"][:, PROMPT:]
        start = np.zeros([batch, 1 + new], np.int32)
        mask = np.zeros_like(start)
        mask[:, 0] = 1
        inputs = {
            "encoder_token_ids": ids,
            "encoder_padding_mask": np.ones_like(ids),
            "decoder_token_ids": start,
            "decoder_padding_mask": mask,
        }
        return models[family].generate(inputs, stop_token_ids=None)["decoder_token_ids"][:, 1:]

    return generate


def transformers(folder: pathlib.Path, how: How) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.set_num_threads(1 if "1" in how else 2)
    models: dict[str, Any] = {}

    def generate(family, batch, new):
        if family not in models:
            kind = AutoModelForCausalLM if family == "gpt2" else AutoModelForSeq2SeqLM
            models[family] = kind.from_pretrained(folder / family, dtype=torch.float32).eval()
            models[family].generation_config.eos_token_id = None
        ids = torch.tensor(prompts(batch), dtype=torch.long)
        options = dict(max_new_tokens=new, do_sample=False, num_beams=1 if family == "gpt2" else BEAMS, pad_token_id=0)
        with torch.inference_mode():
            found = models[family].generate(ids, attention_mask=torch.ones_like(ids), **options)
        return found[:, PROMPT if family == "gpt2" else 1 :].numpy()

    return generate


def products(folder: pathlib.Path, how: How) -> Generate:
    """Multiplies with each matrix of GPT-2 small once per token."""
    import tensorflow as tf

    size, inner, layers, words = 768, 3072, 12, 50257
    shapes = [(size, 3 * size), (size, size), (size, inner), (inner, size)] * layers
    matrices = [tf.Variable(tf.random.normal(shape, stddev=0.01)) for shape in shapes]
    table = tf.Variable(tf.random.normal([size, words]))

    @tf.function(jit_compile="xla" in how or None, autograph=False)
    def run(x):
        for matrix in matrices:
            rows = matrix.shape[0]
            x = tf.matmul(x[:, :rows], matrix)
        return tf.argmax(tf.matmul(x, table), 1)

    def generate(family, batch, new):
        x = tf.ones([batch, size])
        return [run(x).numpy() for _ in range(new)][:0]

    return generate


def savedmodel(folder: pathlib.Path, how: How) -> Generate:
    import numpy as np
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  Registers operations.

    loaded: list[Any] = []

    def generate(family, batch, new):
        if not loaded:
            loaded.append(tf.saved_model.load(folder / f"{family}_savedmodel"))
        rows = {"max_new_tokens": new, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
        texts = tf.constant(["x" * PROMPT] * batch)
        rows = {name: tf.fill([batch], value) for name, value in rows.items()}
        found = loaded[0].signatures["generate"](text=texts, **rows)
        assert np.all(found["num_tokens"] == new), "a text ended early"
        return []

    return generate


CONTENDERS = {
    "tfzoo": with_tfzoo,
    "savedmodel": savedmodel,
    "kerashub": kerashub,
    "transformers": transformers,
    "products": products,
}


def work(contender: str, folder: pathlib.Path) -> Callable[..., Any]:
    """Returns a function: (family, batch, new tokens) -> (seconds, CPU seconds of all threads, tokens)."""
    name, *how = contender.split("-")
    if name != "transformers" and "onnx" not in how:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(2)
    generate = CONTENDERS[name](folder, how)
    seen = set()

    def seconds(family: str, batch: int, new: int, want: bool = False):
        if family not in seen:  # Loads the weights before the first measured call.
            seen.add(family)
            generate(family, 3, 2)
        start, cpu = time.perf_counter(), time.process_time()
        found = generate(family, batch, new)
        took = time.perf_counter() - start, time.process_time() - cpu
        return *took, [[int(i) for i in row] for row in found] if want else None

    return seconds


def write(folder: pathlib.Path, families: list[str]) -> None:
    """Writes models with random weights as Hugging Face folders."""
    import keras

    import tfzoo

    keras.utils.set_random_seed(0)
    for family in families:
        model = tfzoo.build(NAMES[family])
        for weight in model.weights:  # Spread embeddings, so that no two tokens have nearly equal probabilities.
            if weight.path.endswith("tokens/embeddings"):
                weight.assign(weight.value * (5.0 if family == "gpt2" else 1.0))
        tfzoo.save(model, folder / family)


def write_savedmodel(folder: pathlib.Path, family: str) -> None:
    """Writes a SavedModel that reads each byte of a text as a token."""
    import tfzoo
    from tfzoo.export import answers, savedmodel
    from tfzoo.text.byte_level import ByteLevelBPE
    from tfzoo.text.byte_level_model import BYTES

    model, _ = tfzoo.load(folder / family)
    others = [f"token{i}" for i in range(model.config.vocab_size - len(BYTES))]
    options = answers.Options(sequence_length=PROMPT + NEW, max_new_tokens=NEW)
    savedmodel.save(model, ByteLevelBPE([*BYTES, *others], []), folder / f"{family}_savedmodel", options)


def write_onnx(folder: pathlib.Path, families: list[str], profiles: list[str]) -> None:
    """Writes the ONNX graphs of models, and those with weights in 8 bits."""
    import tfzoo
    from tfzoo.export import variants
    from tfzoo.export.onnx import emit

    for family in families:
        model, _ = tfzoo.load(folder / family)
        for profile in profiles:
            place = folder / f"{family}_{profile}"
            place.mkdir()
            emit.save(model, place, profile=profile)
            for path in emit.save(model, place, "_wide", profile=profile, copy_tied=True):
                target = place / path.name.replace("_wide", "_int8_weights")
                variants._quantise("int8_weights", path, target, None)
                path.unlink()


def start(contender: str, folder: pathlib.Path, cache: pathlib.Path) -> Worker:
    python = str(REFERENCES) if contender.startswith("transformers") else sys.executable
    flags = {"TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={cache}"} if contender.endswith("-xla") else {}
    if contender.endswith("-hugepages"):
        flags = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    if contender.startswith("transformers"):  # By default the threads of torch spin while they wait.
        flags = {"OMP_WAIT_POLICY": "passive"}
    return Worker(contender, __file__, f"--worker={contender}", f"--folder={folder}", python=python, **flags)


def measure(task: str, names: list[str], folder: pathlib.Path, args) -> str:
    family, batch = task.split(":")[0], int(task.split(":")[1])
    if family != "gpt2":
        names = [name for name in names if not name.startswith(("products", "savedmodel"))]
    workers = [start(name, folder, folder / "xla") for name in names]
    first_calls: dict[str, float] = {}
    tokens: dict[str, Any] = {}
    first: dict[str, list[float]] = {worker.name: [] for worker in workers}
    cpu: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for worker in workers:
        first_calls[worker.name], _, tokens[worker.name] = worker.ask(family, batch, NEW, True)
        worker.ask(family, batch, 1)
    for worker in turns(workers, args.rounds):
        one, whole = worker.ask(family, batch, 1), worker.ask(family, batch, NEW)
        first[worker.name].append(one[0])
        worker.answers.append(whole[0])
        cpu[worker.name].append((whole[1] - one[1]) / (NEW - 1))
    again = {}
    for worker in workers:
        worker.close()
        if worker.name.startswith("tfzoo"):
            second = start(worker.name, folder, folder / "xla")
            again[worker.name] = second.ask(family, batch, NEW)[0]
            second.close()
    answers = {worker.name: worker.answers for worker in workers}
    each = {
        name: [(a - b) / (NEW - 1) for a, b in zip(answers[name], first[name], strict=True)]
        if not name.startswith("products")
        else [a / NEW for a in answers[name]]
        for name in names
    }
    limits = sorted((name for name in names if name.startswith("products")), key=lambda name: sum(each[name]))
    limit = {name: min(limits, key=lambda limit: ("-xla" in limit) != ("-xla" in name)) for name in names if limits}
    peers = [name for name in names if name.startswith(("kerashub", "transformers"))]
    peer = min(peers, key=lambda name: statistics.median(answers[name])) if peers else None
    for name in names:
        if name.startswith(("tfzoo", "savedmodel")):
            for rival in peers:
                history.record("decode", task, name, rival, ratios(answers[rival], answers[name]))
            if limits:
                history.record("decode", task, name, limit[name], ratios(each[limit[name]], each[name]))
    rows = []
    for name in names:
        row = [name, f"{1000 * statistics.median(answers[name]):.0f}", f"{1000 * statistics.median(first[name]):.0f}"]
        row += [f"{1000 * statistics.median(each[name]):.1f}", f"{1000 * statistics.median(cpu[name]):.1f}"]
        row += [f"{batch * NEW / statistics.median(answers[name]):.1f}"]
        row += [f"{ratio(each[limit[name]], each[name]):.2f}"] if limits else []
        row += [f"{ratio(answers[peer], answers[name]):.2f}"] if peer else []
        row += [f"{first_calls[name]:.1f}", f"{again[name]:.1f}" if name in again else ""]
        if name == "tfzoo" or name.startswith(("products", "savedmodel")):
            row.append("")
        else:
            alike = [a == b for a, b in zip(tokens[name], tokens["tfzoo"], strict=True)]
            row.append(f"{sum(alike)} of {batch}")
        rows.append(row)
    heads = [task, "ms", "first", "per token", "CPU", "tokens/s", *(["of the limit"] if limits else [])]
    heads += [f"speedup over {peer}"] if peer else []
    return markdown([*heads, "first call, s", "again", "texts equal to tfzoo's"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="gpt2:1,gpt2:8,t5:1")
    onnx = ["tfzoo-onnx", "tfzoo-onnx-int8_weights"] if importlib.util.find_spec("onnxruntime") else []
    peers = ["kerashub", "kerashub-xla", *(["transformers"] if REFERENCES.exists() else [])]
    parser.add_argument(
        "--contenders",
        default=",".join(["tfzoo", "tfzoo-xla", "savedmodel", *onnx, *peers, "products", "products-xla"]),
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the weights are, or are to be written; they are kept")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker == "write_onnx":
        answer(lambda: lambda *asked: write_onnx(pathlib.Path(args.folder), *asked))
        return
    if args.worker == "write_savedmodel":
        answer(lambda: lambda family: write_savedmodel(pathlib.Path(args.folder), family))
        return
    if args.worker == "write":
        answer(lambda: lambda *families: write(pathlib.Path(args.folder), list(families)))
        return
    if args.worker:
        answer(lambda: work(args.worker, pathlib.Path(args.folder)))
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(args.folder or temporary)
        families = sorted({task.split(":")[0] for task in args.tasks.split(",")})
        if missing := [family for family in families if not (folder / family).exists()]:
            writer = Worker("write", __file__, "--worker=write", f"--folder={folder}")
            writer.ask(*missing)
            writer.close()
        with_onnx_graphs = [name for name in args.contenders.split(",") if "-onnx" in name]
        for profile in sorted({"genai" if "-genai" in name else "standard" for name in with_onnx_graphs}):
            if missing := [family for family in families if not (folder / f"{family}_{profile}").exists()]:
                writer = Worker("write_onnx", __file__, "--worker=write_onnx", f"--folder={folder}")
                writer.ask(missing, [profile])
                writer.close()
        if "savedmodel" in args.contenders.split(",") and "gpt2" in families:
            if not (folder / "gpt2_savedmodel").exists():
                writer = Worker("write_savedmodel", __file__, "--worker=write_savedmodel", f"--folder={folder}")
                writer.ask("gpt2")
                writer.close()
        for task in args.tasks.split(","):
            print(measure(task, args.contenders.split(","), folder, args), flush=True)
            print()


if __name__ == "__main__":
    main()
