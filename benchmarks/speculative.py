"""Speculative decoding and prompt look-up beside plain decoding on real text.

    SHORT="--flagfile=configs/gpt.cfg --steps=200 --warmup_steps=30 --decay_steps=80 --evaluate_every=200"
    .venv/bin/python -m tfzoo.train $SHORT --checkpoint_every=200 --run_dir=runs/short
    .venv/bin/python -m tfzoo.train $SHORT --checkpoint_every=200 --run_dir=runs/draft \
        --overrides=num_layers=1,hidden_size=64,num_heads=1,intermediate_size=256
    .venv/bin/python benchmarks/speculative.py --model_dir=runs/short --assistant_dir=runs/draft [--prompts=24]

Prompts are pieces of the held-out text of the run. Each is continued greedily by every contender, one prompt at a time,
in processes with two threads that take turns: plain decoding, look-up in the text so far, and drafts of the assistant,
which must have the same tokenizer. "-xla" compiles a contender.

    draft                     tokens that are drafted at a time
    tokens per target call    new tokens after the first, per pass over the weights of the model
    ms, CPU ms                per new token, medians over the prompts
    speedup                   over plain decoding with the same suffix: the median of the ratios
    equal                     texts that are those of plain decoding
"""

import argparse
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import history
from side_by_side import ROOT, Worker, answer, markdown, processor, ratio, ratios, turns
from strategies import held_out

sys.path.insert(0, str(ROOT))

CONTENDERS = ("plain", "lookup:4", "lookup:8", "assistant:2", "assistant:4")
ARGUMENTS = ("model_dir", "assistant_dir", "prompts", "prompt_tokens", "new_tokens")


def work(contender: str, args) -> Callable[[int], tuple[float, float, int, list[int]]]:
    """Returns a function: the number of a prompt -> (seconds, CPU seconds, passes of the model after the prompt, new
    token ids)."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    import tfzoo
    from tfzoo.generation import speculative
    from tfzoo.generation.texts import encode
    from tfzoo.training import runs

    model, tokenizer = runs.load(args.model_dir)
    length = args.prompt_tokens + args.new_tokens
    texts = [ids for ids in encode(tokenizer, held_out(args.model_dir)) if len(ids) >= length]
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    pieces = [[*start, *texts[i * len(texts) // args.prompts][: args.prompt_tokens]] for i in range(args.prompts)]

    name, *suffix = contender.split("-")
    kind, _, draft = name.partition(":")
    options: dict[str, Any] = dict(max_new_tokens=args.new_tokens, eos_token_id=(), jit_compile=bool(suffix))
    if kind == "lookup":
        options |= dict(prompt_lookup_num_tokens=int(draft))
    elif kind == "assistant":
        options |= dict(assistant_model=runs.load(args.assistant_dir)[0], num_assistant_tokens=int(draft))
    rounds = tf.Variable(0)
    step = speculative._Speculation.step

    def counted(search, state):
        with tf.control_dependencies([rounds.assign_add(1)]):
            return step(search, {key: tf.nest.map_structure(tf.identity, value) for key, value in state.items()})

    if not suffix:  # XLA does not count.
        speculative._Speculation.step = counted  # type: ignore[method-assign]

    def continued(i: int):
        rounds.assign(0)
        begin, cpu = time.perf_counter(), time.process_time()
        ids = tfzoo.generate_ids(model, [pieces[i]], **options).numpy()[0].tolist()
        took = time.perf_counter() - begin, time.process_time() - cpu
        return *took, int(rounds) if kind != "plain" else args.new_tokens - 1, ids

    continued(0)  # Builds the graph.
    return continued


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", type=pathlib.Path, required=True)
    parser.add_argument("--assistant_dir", type=pathlib.Path, required=True)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        answer(lambda: work(args.worker, args))
        return
    given = [f"--{name}={getattr(args, name)}" for name in ARGUMENTS]
    workers = [Worker(name, __file__, f"--worker={name}", *given) for name in args.contenders.split(",")]
    for i in range(args.prompts):
        for worker in turns(workers, 1) if i % 2 else turns(workers[::-1], 1):
            worker.answers.append(worker.ask(i))
    for worker in workers:
        worker.close()
    plain = {worker.name.partition("-")[2]: worker.answers for worker in workers if worker.name.startswith("plain")}
    rows = []
    for worker in workers:
        name, _, suffix = worker.name.partition("-")
        seconds, cpu, passes, texts = zip(*worker.answers)
        of_plain = list(zip(*plain[suffix]))
        counted = sum(passes) > 0
        if not name.startswith("plain"):
            history.record("speculative", "docstrings", worker.name, "plain", ratios(of_plain[0], seconds))
        rows.append(
            [
                {"plain": "plain", "lookup": "prompt look-up", "assistant": "assistant"}[name.partition(":")[0]]
                + (f", {suffix}" if suffix else ""),
                name.partition(":")[2],
                f"{(args.new_tokens - 1) * args.prompts / sum(passes):.2f}" if counted else "",
                f"{1000 * statistics.median(seconds) / args.new_tokens:.2f}",
                f"{1000 * statistics.median(cpu) / args.new_tokens:.2f}",
                f"{ratio(of_plain[0], seconds):.2f}, {ratio(of_plain[1], cpu):.2f}",
                f"{sum(a == b for a, b in zip(texts, of_plain[3]))} of {args.prompts}",
            ]
        )
    print(processor())
    heads = ["contender", "draft", "tokens per target call", "ms", "CPU ms", "speedup: time, CPU", "equal"]
    print(markdown(heads, rows))


if __name__ == "__main__":
    main()
