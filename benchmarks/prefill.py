"""Speed of reading a prompt, before its first new token, compared with transformers:

    .venv/bin/python benchmarks/prefill.py [--tasks=gpt2:1x1024,gpt2:8x512,llama:1x2048] [--rounds=5]

    gpt2:BxL    GPT-2 small, B prompts of L tokens
    llama:BxL   a Llama of 135 million parameters, with 3 key and value heads for 9 query heads (SmolLM-135M's shape)

A call computes the keys and values of all tokens and the logits of the next token. Both contenders read the same random
weights from a Hugging Face folder, run in their own processes with two threads, and take turns; "-xla" compiles tfzoo.
transformers runs with torch and its default attention ("sdpa"), if .venv-references exists. "difference" is the largest
one of the logits from tfzoo's.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import history
from side_by_side import ROOT, Worker, answer, markdown, processor, ratio, ratios, turns

REFERENCES = ROOT / ".venv-references" / "bin" / "python"
ROOM = 64  # Slots of the cache for new tokens.
_LLAMA = dict(vocab_size=49152, hidden_size=576, num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64)
_LLAMA |= dict(intermediate_size=1536, max_positions=2048 + ROOM, tie_embeddings=True)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {"gpt2": ("gpt2", {}), "llama": ("llama_tiny", _LLAMA)}
# token_ids int32 [B, L] -> logits [B, V]
Read = Callable[[Any], Any]


def with_tfzoo(folder: pathlib.Path, is_compiled: bool) -> Read:
    import tensorflow as tf

    import tfzoo
    from tfzoo.generation import read_options
    from tfzoo.generation.prompt import read_prompt

    tf.config.threading.set_intra_op_parallelism_threads(2)
    model, _ = tfzoo.load(folder)
    options, _ = read_options(eos_token_id=(), jit_compile=is_compiled)

    @tf.function(
        input_signature=[tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None, None], tf.bool)],
        jit_compile=is_compiled or None,
        autograph=False,
    )
    def read(token_ids, padding_mask):
        reach = tf.fill(tf.shape(token_ids)[:1], tf.shape(token_ids)[1] + ROOM)
        prompt = read_prompt(model, token_ids, padding_mask, ROOM, options, reach)
        return prompt.logits, prompt.cache.tensors

    return lambda ids: read(tf.constant(ids), tf.ones(ids.shape, tf.bool))[0].numpy()


def with_transformers(folder: pathlib.Path) -> Read:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def read(ids):
        tokens = torch.tensor(ids, dtype=torch.long)
        with torch.inference_mode():
            outputs = model(tokens, attention_mask=torch.ones_like(tokens), use_cache=True, logits_to_keep=1)
        return outputs.logits[:, -1].numpy()

    return read


def work(contender: str, folder: pathlib.Path) -> Callable[..., Any]:
    """Returns a function: (batch, length) -> (seconds, CPU seconds of all threads, some of the logits)."""
    import numpy as np

    if contender == "transformers":
        read = with_transformers(folder)
    else:
        read = with_tfzoo(folder, contender.endswith("-xla"))

    def seconds(batch: int, length: int):
        ids = np.random.default_rng(0).integers(5, 30000, [batch, length], np.int32)
        start, cpu = time.perf_counter(), time.process_time()
        logits = read(ids)
        return time.perf_counter() - start, time.process_time() - cpu, logits[:, :1000].tolist()

    return seconds


def write(folder: pathlib.Path, family: str) -> None:
    import keras

    import tfzoo

    keras.utils.set_random_seed(0)
    name, overrides = MODELS[family]
    tfzoo.save(tfzoo.build(name, **overrides), folder)


def measure(task: str, names: list[str], folder: pathlib.Path, rounds: int) -> str:
    batch, length = map(int, task.split(":")[1].split("x"))
    workers = []
    for name in names:
        variables = {"OMP_WAIT_POLICY": "passive"} if name == "transformers" else {}
        python = str(REFERENCES) if name == "transformers" else sys.executable
        workers.append(Worker(name, __file__, f"--worker={name}", f"--folder={folder}", python=python, **variables))
    logits = {worker.name: worker.ask(batch, length)[2] for worker in workers}
    for worker in turns(workers, rounds):
        worker.answers.append(worker.ask(batch, length))
    for worker in workers:
        worker.close()
    wall, cpu = ({worker.name: [each[i] for each in worker.answers] for worker in workers} for i in (0, 1))
    peer = "transformers" if "transformers" in names else None
    rows = []
    for name in names:
        if peer and name != peer:
            history.record("prefill", task, name, peer, ratios(wall[peer], wall[name]))
        row = [name, f"{1000 * statistics.median(wall[name]):.0f}", f"{1000 * statistics.median(cpu[name]):.0f}"]
        row += [f"{ratio(wall[peer], wall[name]):.2f}, {ratio(cpu[peer], cpu[name]):.2f}"] if peer else []
        pairs = zip(sum(logits[name], []), sum(logits[names[0]], []), strict=True)
        rows.append([*row, f"{max(abs(a - b) for a, b in pairs):.1e}"])
    heads = [task, "ms", "CPU ms", *([f"speed of {peer} = 1: time, CPU"] if peer else []), "difference"]
    return markdown(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="gpt2:1x1024,gpt2:8x512,llama:1x2048")
    peers = ["transformers"] if REFERENCES.exists() else []
    parser.add_argument("--contenders", default=",".join(["tfzoo", "tfzoo-xla", *peers]))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker == "write":
        answer(lambda: lambda family: write(args.folder, family))
        return
    if args.worker:
        answer(lambda: work(args.worker, args.folder))
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    print(f"{processor()}\n")
    with tempfile.TemporaryDirectory() as temporary:
        for task in args.tasks.split(","):
            folder = pathlib.Path(temporary, task.split(":")[0])
            if not folder.exists():
                writer = Worker("write", __file__, "--worker=write", f"--folder={folder}")
                writer.ask(folder.name)
                writer.close()
            print(measure(task, args.contenders.split(","), folder, args.rounds), flush=True)
            print()


if __name__ == "__main__":
    main()
