"""Speed of exported graphs in onnxruntime; proof.py measures the cost of exporting.

    .venv/bin/python benchmarks/export.py [--rounds=9]            # BERT-base at 1 x 128 and 8 x 128
    .venv/bin/python benchmarks/export.py --decode                # GPT-2 small: one token after 128
    .venv/bin/python benchmarks/export.py --llama                 # SmolLM-135M's shape: one token after 128

Contenders: the graphs of tfzoo; for BERT, that of tf2onnx for a model of the same shape, with fixed input shapes,
because with two free axes its result does not run; and, if .venv-references exists (make parity creates it), that of
transformers for a model of the same shape, by torch.onnx and onnxruntime's optimizer, which fuses most of what the
TorchScript exporter produces with attn_implementation "eager". The rival of --llama is the graph that the model builder
of onnxruntime-genai writes in .venv-references for the same weights, in 8 and 4 bits with the same blocks of 32; both
have keys and values in one buffer. In 4 bits, the builder quantises the embeddings as well. Each contender runs in its
own process with two threads that do not spin, and they take turns. Next to the wall-clock time is the CPU time, which
is less sensitive to other load.
"""

import argparse
import importlib.util
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from typing import Any

import history
from proof import tokenizer
from side_by_side import ROOT, Worker, answer, environment, markdown, processor, ratio, ratios, turns

REFERENCES = ROOT / ".venv-references" / "bin" / "python"
LENGTH = 128  # Tokens of a row, or of the past.
ROOM = 256  # Tokens in the buffer of keys and values.
# Contender -> the file of its graph; {} is the batch size.
ENCODERS = {
    "standard": "model.onnx",
    "compat": "model_compat.onnx",
    "int8": "model_int8.onnx",
    "tf2onnx": "tf2onnx_{}.onnx",
    "transformers, optimized": "peer.onnx",
    "transformers, int8": "peer_int8.onnx",
}
DECODERS = {
    "standard": "model.onnx",
    "genai": "model_genai.onnx",
    "genai, int8_weights": "model_genai_int8_weights.onnx",
    "genai, int4_weights": "model_genai_int4_weights.onnx",
    "transformers, optimized": "peer.onnx",
}
# Weights -> contenders, and the builder's name of the weights.
LLAMAS = {
    weights: {f"genai, {weights}": f"model_genai{suffix}.onnx", "builder": f"builder_genai_{precision}/model.onnx"}
    for weights, suffix, precision in (
        ("float32", "", "fp32"),
        ("int8_weights", "_int8_weights", "int8"),
        ("int4_weights", "_int4_weights", "int4"),
    )
}
RIVALS = ("tf2onnx", "transformers, optimized", "transformers, int8", "builder")
SMOLLM: dict[str, Any] = dict(
    vocab_size=49152,
    hidden_size=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    max_positions=2048,
    tie_embeddings=True,
)


def write(name: str, folder: pathlib.Path, decode: bool) -> None:
    """Writes the graphs of tfzoo."""
    import tfzoo
    from tfzoo.export import variants
    from tfzoo.export.onnx import emit as onnx_emit

    model = tfzoo.build(name, heads=("lm",), **(SMOLLM if name.startswith("llama") else {}))
    if name.startswith("llama"):
        tfzoo.save(model, folder / "hf", tokenizer(model.config.vocab_size))  # The builder reads it.
    else:
        onnx_emit.save(model, folder)
    profile = "genai" if decode else "compat"
    onnx_emit.save(model, folder, f"_{profile}", profile=profile)
    (wide,) = onnx_emit.save(model, folder, "_wide", copy_tied=True, profile="genai" if decode else "standard")
    for variant in ("int8_weights", "int4_weights") if decode else ("int8",):
        variants._quantise(variant, wide, folder / f"model_{'genai_' if decode else ''}{variant}.onnx", None)
    wide.unlink()


def write_traced(name: str, folder: pathlib.Path, batches: list[int]) -> None:
    """Writes the graphs of tf2onnx.

    tf2onnx holds about forty copies of all weights while it converts, so all layers share the weights of one layer
    until it is done.
    """
    import numpy as np
    import onnx
    import tensorflow as tf
    import tf2onnx

    import tfzoo
    from tfzoo.export import interface
    from tfzoo.export.onnx import trace as onnx_trace

    model = tfzoo.build(name, heads=("lm",), share_layers=True)
    inputs = interface.inputs_of(model)
    np.__dict__["product"] = np.prod  # tf2onnx 1.17 calls np.product, which NumPy 2 removed.

    def call(*values):
        return model(dict(zip(inputs, values)))["logits"]

    for batch in batches:
        specs = [tf.TensorSpec([batch, LENGTH], value.dtype, name) for name, value in inputs.items()]
        function = tf.function(call, input_signature=specs)
        with tempfile.TemporaryDirectory(dir=folder) as parts:
            zipped = pathlib.Path(parts, "graph.zip")
            options: dict[str, Any] = dict(opset=onnx_trace.OPSET, large_model=True, output_path=str(zipped))
            tf2onnx.convert.from_function(
                function, specs, custom_op_handlers={"Erfc": (onnx_trace.erfc, [])}, **options
            )
            with zipfile.ZipFile(zipped) as archive:
                archive.extractall(parts)
            graph = onnx.load(pathlib.Path(parts, "__MODEL_PROTO.onnx"))
        weights = {tensor.name: tensor for tensor in graph.graph.initializer if len(tensor.raw_data) > 1000}
        used: set[str] = set()
        for node in graph.graph.node:
            for i, each in enumerate(node.input):
                if each in weights and each in used:
                    copy = graph.graph.initializer.add()
                    copy.CopyFrom(weights[each])
                    copy.name = node.input[i] = f"{each}/{node.name}/{i}"
                used.add(each)
        onnx.save(graph, folder / f"tf2onnx_{batch}.onnx")


def write_peer(folder: pathlib.Path, decode: bool) -> None:
    """Writes the graphs of transformers; runs in .venv-references."""
    import onnx
    import torch
    import transformers
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    ids = torch.zeros(2, 3, dtype=torch.long)
    free = {0: "batch", 1: "sequence"}
    path = folder / "peer.onnx"
    model: Any
    if not decode:
        config = transformers.BertConfig(attn_implementation="eager")
        model = transformers.BertForMaskedLM(config).eval()
        names, arguments, outputs = ["input_ids", "attention_mask", "token_type_ids"], (ids, ids + 1, ids), ["logits"]
        axes = dict.fromkeys(names, free)
    else:
        config = transformers.GPT2Config(attn_implementation="eager")

        class Step(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.whole = transformers.GPT2LMHeadModel(config)

            def forward(self, token_ids, mask, positions, *past):
                cache = transformers.DynamicCache()
                for i in range(config.n_layer):
                    cache.update(past[2 * i], past[2 * i + 1], i)
                found = self.whole(token_ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
                layers = found.past_key_values.layers
                return found.logits, *(part for layer in layers for part in (layer.keys, layer.values))

        model = Step().eval()
        size = config.n_embd // config.n_head
        past = [torch.zeros(2, config.n_head, 4, size) for _ in range(2 * config.n_layer)]
        kept = [f"{i}.{part}" for i in range(config.n_layer) for part in ("key", "value")]
        names = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{each}" for each in kept)]
        outputs = ["logits", *(f"present.{each}" for each in kept)]
        arguments = (ids, torch.ones(2, 7, dtype=torch.long), ids, *past)
        axes = {each: {0: "batch", 2: "past_sequence"} for each in names[3:]}
        axes |= {"input_ids": free, "position_ids": free, "attention_mask": {0: "batch", 1: "total_sequence"}}
    options: dict[str, Any] = dict(opset_version=18, dynamo=False)
    torch.onnx.export(model, arguments, path, input_names=names, output_names=outputs, dynamic_axes=axes, **options)
    sizes = dict(num_heads=12, hidden_size=768)
    graph = optimizer.optimize_model(str(path), model_type="gpt2" if decode else "bert", **sizes)
    print(graph.get_fused_operator_statistics())
    onnx.save(graph.model, path)
    if not decode:
        extra = {"DefaultTensorType": onnx.TensorProto.FLOAT, "MatMulConstBOnly": True}
        quantize_dynamic(path, folder / "peer_int8.onnx", weight_type=QuantType.QInt8, extra_options=extra)


def write_built(folder: pathlib.Path) -> None:
    """Writes the graphs of the builder of onnxruntime-genai, a script that runs in .venv-references."""
    found = importlib.util.find_spec("onnxruntime_genai")
    assert found and found.submodule_search_locations
    script = pathlib.Path(found.submodule_search_locations[0], "models", "builder.py")
    for contenders in LLAMAS.values():
        target = folder / pathlib.Path(contenders["builder"]).parent
        command = [REFERENCES, script, "-i", folder / "hf", "-o", target, "-p", target.name.rpartition("_")[2]]
        command += ["-e", "cpu", "-c", folder / "cache"]
        done = subprocess.run(command, env=environment() | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the builder of onnxruntime-genai failed: {done.stderr[-2000:]}")


def contend():
    """Returns a function: (path, batch, past) -> milliseconds of a run, milliseconds of CPU time; medians of five runs
    for a token after a past, which takes little time."""
    import numpy as np
    import onnxruntime

    prepared: dict[tuple, Any] = {}

    def prepare(path, batch, past):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 2, 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        length, random = (1 if past else LENGTH), np.random.default_rng(0)
        kinds = {
            "tensor(int64)": np.int64,
            "tensor(int32)": np.int32,
            "tensor(bool)": bool,
            "tensor(float)": np.float32,
        }
        binding = session.io_binding()
        for value in session.get_inputs():
            if value.name.startswith("past"):
                size = SMOLLM["head_dim"] if isinstance(value.shape[3], str) else value.shape[3]  # The builder's graph.
                shape = [batch, value.shape[1], ROOM if "genai" in path else past, size]
                array: Any = np.zeros(shape, np.float32)
                given = onnxruntime.OrtValue.ortvalue_from_numpy(array)
                if "genai" in path:
                    binding.bind_ortvalue_output(value.name.replace("past_key_values", "present"), given)
            else:
                array = random.integers(0, 1000, (batch, length))
                if "mask" in value.name:
                    array = np.ones((batch, past + length))
                elif "position" in value.name:
                    array = np.full((batch, length), past)
                elif "type" in value.name or "segment" in value.name:
                    array = np.zeros_like(array)
                given = onnxruntime.OrtValue.ortvalue_from_numpy(array.astype(kinds[value.type]))
            binding.bind_ortvalue_input(value.name, given)
        for value in session.get_outputs():
            if not (value.name.startswith("present") and "genai" in path):
                binding.bind_output(value.name)
        return session, binding

    def run(path, batch, past):
        if (path, batch, past) not in prepared:
            prepared.clear()
            prepared[path, batch, past] = prepare(path, batch, past)
        session, binding = prepared[path, batch, past]
        taken = []
        for _ in range(5 if past else 1):
            begin, work = time.perf_counter(), time.process_time()
            session.run_with_iobinding(binding)
            taken.append([1000 * (time.perf_counter() - begin), 1000 * (time.process_time() - work)])
        return [statistics.median(values) for values in zip(*taken)]

    return run


def compare(name: str, batches: list[int], rounds: int) -> None:
    llama, past = name.startswith("llama"), 0 if name.startswith("bert") else LENGTH
    decode = ["--decode"] if past else []
    (ROOT / "build").mkdir(exist_ok=True)
    print(processor())
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        command = [
            __file__,
            f"--write={folder}",
            f"--model={name}",
            f"--batches={','.join(map(str, batches))}",
            *decode,
        ]
        makers = [[sys.executable, *command]]
        makers += [] if past else [[sys.executable, *command, "--traced"]]
        makers += [[str(REFERENCES), *command, "--peer"]] if REFERENCES.exists() and not llama else []
        for maker in makers:
            subprocess.run(maker, env=environment(), check=True)
        if llama and REFERENCES.exists():
            write_built(pathlib.Path(folder))
        for batch in batches:
            shape = f"one token after {past}" if past else f"{batch} x {LENGTH}"
            for contenders in LLAMAS.values() if llama else [DECODERS if past else ENCODERS]:
                paths = {each: pathlib.Path(folder, file.format(batch)) for each, file in contenders.items()}
                written = {each: path for each, path in paths.items() if path.exists()}
                title = f"{'SmolLM-135M' if llama else name}, {shape}"
                measure(title, written, batch, past, rounds)


def measure(title: str, paths: dict[str, pathlib.Path], batch: int, past: int, rounds: int) -> None:
    """Measures and prints one table."""
    import onnx

    workers = [Worker(contender, __file__, "--run") for contender in paths]
    for worker in workers:
        for _ in range(2):
            worker.ask(str(paths[worker.name]), batch, past)
    for worker in turns(workers, rounds):
        worker.answers.append(worker.ask(str(paths[worker.name]), batch, past))
    times = {worker.name: list(zip(*worker.answers)) for worker in workers}
    rivals = [rival for rival in RIVALS if rival in times]
    rows = []
    for worker in workers:
        worker.close()
        path, (wall, work) = paths[worker.name], times[worker.name]
        row = [worker.name, f"{statistics.median(wall):.1f}", f"{statistics.median(work):.1f}"]
        for rival in rivals:
            row += [f"{ratio(peer, own):.2f}" for peer, own in zip(times[rival], (wall, work))]
            if worker.name not in RIVALS:
                history.record("export", title, worker.name, rival, ratios(times[rival][0], wall))
        size = sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))  # With external weights.
        rows.append([*row, f"{len(onnx.load(path, load_external_data=False).graph.node):,}", f"{size:,}"])
    print(f"\n{title}, two threads")
    heads = [f"{kind}speedup over {rival}" for rival in rivals for kind in ("", "CPU ")]
    print(markdown(["", "ms", "CPU ms", *heads, "nodes", "bytes"], rows), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--decode", action="store_true", help="GPT-2 small")
    parser.add_argument("--llama", action="store_true", help="a Llama-like decoder, with onnxruntime-genai's own graph")
    for inner in ("--run", "--peer", "--traced"):
        parser.add_argument(inner, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", type=pathlib.Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    name = flags.model or ("llama_tiny" if flags.llama else "gpt2" if flags.decode else "bert_base")
    batches = [1] if flags.decode or flags.llama else [int(batch) for batch in flags.batches.split(",")]
    sys.path.insert(0, str(ROOT))
    if flags.run:
        answer(contend)
    elif flags.write and flags.peer:
        write_peer(flags.write, flags.decode)
    elif flags.write and flags.traced:
        write_traced(name, flags.write, batches)
    elif flags.write:
        write(name, flags.write, flags.decode)
    else:
        compare(name, batches, flags.rounds)


if __name__ == "__main__":
    main()
