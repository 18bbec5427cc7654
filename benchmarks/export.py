"""BERT-base in onnxruntime: our graphs beside tf2onnx's of the same model, and what exporting a large model costs.

    .venv/bin/python benchmarks/export.py [--model=bert_base] [--batches=1,8] [--rounds=7]
    .venv/bin/python benchmarks/export.py --large=600   # millions of parameters, the weights beside the graph

Every contender lives in a process of its own with two threads, and they take turns. 128 tokens a row, head lm at all
of them. `tf2onnx` is given the shapes, for a graph with two free axes it converts into one that does not run.
"""

import argparse
import math
import pathlib
import sys
import tempfile
import time
from typing import Any

from side_by_side import ROOT, Worker, answer, markdown, ratio, turns

CONTENDERS = ("standard", "compat", "int8", "tf2onnx")
LENGTH = 128


def build(name: str):
    import tfzoo

    return tfzoo.build(name, heads=("lm",))


def graph_of(contender: str, model, batch: int, folder: pathlib.Path) -> pathlib.Path:
    """Writes a contender's graph -> its path."""
    from tfzoo.export import onnx_emit, variants

    if contender == "int8":
        return variants._int8(model, folder, "standard")[0]
    if contender != "tf2onnx":
        return onnx_emit.save(model, folder, profile=contender)[0]
    import onnx
    import tensorflow as tf
    import tf2onnx

    names = onnx_emit.inputs_of(model)
    kinds = [tf.bool if name.endswith("mask") else tf.int32 for name in names]
    specs = [tf.TensorSpec([batch, LENGTH], kind, name) for name, kind in zip(names, kinds)]
    function = tf.function(lambda *values: model(dict(zip(names, values)))["logits"], input_signature=specs)
    graph, _ = tf2onnx.convert.from_function(function, specs, opset=18)
    onnx.save(graph, folder / "model.onnx")
    return folder / "model.onnx"


def contend(contender: str, name: str):
    """(batch) -> milliseconds of one run, nodes, bytes."""
    import numpy as np
    import onnx
    import onnxruntime

    model, sessions = build(name), {}

    def prepare(batch):
        with tempfile.TemporaryDirectory() as folder:
            path = graph_of(contender, model, batch, pathlib.Path(folder))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 2
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            sizes = len(onnx.load(path).graph.node), path.stat().st_size
        random = np.random.default_rng(0)
        feeds = {}
        for value in session.get_inputs():
            kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": bool}[value.type]
            ids = random.integers(0, 1000 if "ids" in value.name and "type" not in value.name else 2, (batch, LENGTH))
            feeds[value.name] = (ids if "mask" not in value.name else np.ones_like(ids)).astype(kind)
        session.run(None, feeds)
        sessions[batch] = session, feeds, sizes

    def run(batch):
        if batch not in sessions:
            prepare(batch)
        session, feeds, sizes = sessions[batch]
        begin = time.perf_counter()
        session.run(None, feeds)
        return [1000 * (time.perf_counter() - begin), *sizes]

    return run


def compare(name: str, batches: list[int], rounds: int) -> None:
    workers = [Worker(contender, __file__, f"--contender={contender}", f"--model={name}") for contender in CONTENDERS]
    for batch in batches:
        for worker in workers:
            worker.ask(batch)
            worker.answers = []
        for worker in turns(workers, rounds):
            worker.answers.append(worker.ask(batch))
        times = {worker.name: [answered[0] for answered in worker.answers] for worker in workers}
        rows = [
            [worker.name, f"{min(times[worker.name]):.0f}", f"{ratio(times['tf2onnx'], times[worker.name]):.2f}"]
            + [f"{size:,}" for size in worker.answers[-1][1:]]
            for worker in workers
        ]
        print(f"\n{name}, {batch} x {LENGTH}, float32 but for int8")
        print(markdown(["", "ms", "faster than tf2onnx by", "nodes", "bytes"], rows))
    for worker in workers:
        worker.close()


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def large(millions: int) -> None:
    """Emits a decoder of that many parameters, and says what it took above importing."""
    import onnx.checker

    from tfzoo import models, nn
    from tfzoo.export import onnx_emit

    onnx_emit.MAX_BYTES = 0  # Beside the graph, whatever the size.
    width, layers = 1024, 24
    intermediate = math.ceil(1e6 * millions / layers / width / 3 / 64) * 64
    before = peak_bytes()
    with nn.zero_initializers():
        sizes: dict[str, Any] = dict(hidden_size=width, num_layers=layers, num_heads=16, num_kv_heads=4, head_dim=64)
        model = models.build("llama3_8b", **sizes, intermediate_size=intermediate, vocab_size=1000)
    weights, loaded = 4 * model.count_params(), peak_bytes()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        begin = time.perf_counter()
        (path,) = onnx_emit.save(model, folder)
        seconds = time.perf_counter() - begin
        onnx.checker.check_model(str(path))
        data = path.with_name(f"{path.name}.data").stat().st_size
    peak = peak_bytes()
    print(f"weights {weights:,} bytes; {path.name}.data {data:,}; {seconds:.0f} s")
    print(f"peak above importing: {(loaded - before) / weights:.2f} x the weights built, "
          f"{(peak - before) / weights:.2f} x exported")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert_base")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--large", type=int, help="millions of parameters")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.contender:
        answer(lambda: contend(flags.contender, flags.model))
    elif flags.large:
        sys.path.insert(0, str(ROOT))
        large(flags.large)
    else:
        compare(flags.model, [int(batch) for batch in flags.batches.split(",")], flags.rounds)


if __name__ == "__main__":
    main()
