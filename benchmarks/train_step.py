"""One training step of BERT, GPT-2 and T5 compared with KerasHub and Model Garden: `make bench`, or

    .venv-peers/bin/python benchmarks/train_step.py [--shapes=bert] [--contenders=tfzoo,kerashub] [--precisions=float32]

Each contender runs in its own process. They take turns, a few steps each, while the others sleep, so that other load on
the machine affects all of them equally; ratios are medians over rounds of neighboring turns.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys

import history
import peers
from side_by_side import Worker, environment, markdown, ratio, ratios, turns

SCRIPT = str(pathlib.Path(__file__).with_name("peers.py"))


def measure(
    shape: str, specs: list[str], precision: str, rounds: int, steps: int, beside: str | None = None
) -> list[Worker]:
    """Runs the contenders in turns; `answers` of each receives the measurements of every round."""
    contenders = []
    for spec in specs:  # One at a time: tracing and compiling are not measured.
        name, _, inter_op = spec.partition("@")  # Empty: the fastest number that was found.
        if spec == "beside":
            script = str(pathlib.Path(str(beside), "benchmarks", "peers.py"))
            contenders.append(Worker(spec, script, shape, "tfzoo", precision, inter_op, PYTHONPATH=str(beside)))
        else:
            contenders.append(Worker(spec, SCRIPT, shape, name, precision, inter_op))
        contenders[-1].ask(3)
    for contender in turns(contenders, rounds):
        contender.ask(1)  # Wakes the threads and fills the caches.
        contender.answers.append(contender.ask(steps))
    for contender in contenders:
        contender.close()
    return contenders


def report(shape: str, contenders: list[Worker], precision: str) -> str:
    """Returns a table; the last column is the speedup of the first contender over each contender."""
    heads = ["ms per step", "CPU ms", "tokens/s", "peak GiB", "parameters", "loss"]
    seconds = [[answer["seconds"] for answer in contender.answers] for contender in contenders]
    rows = []
    for contender, taken in zip(contenders, seconds):
        step = statistics.median(taken)
        last = contender.answers[-1]
        rows.append(
            [
                contender.name,
                f"{1000 * step:.0f}",
                f"{1000 * statistics.median(answer['cpu'] for answer in contender.answers):.0f}",
                f"{peers.tokens(shape) / step:.0f}",
                f"{last['peak'] / 2**30:.2f}",
                f"{last['parameters'] / 1e6:.1f} M",
                f"{last['loss']:.2f}",
                f"{ratio(taken, seconds[0]):.3f}",
            ]
        )
    return markdown([f"{shape}, {precision}", *heads, f"speedup of {contenders[0].name}"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="bert,gpt2,t5")
    parser.add_argument("--contenders", default="tfzoo,kerashub,garden", help="NAME[:WAY][@INTER_OP_THREADS],...")
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--beside", help="another checkout, measured as the contender `beside`")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help="compare losses first")
    args = parser.parse_args()
    for shape in args.shapes.split(","):
        if args.check and shape != "bert":  # For bert, the next-sentence head has no counterpart.
            subprocess.run([sys.executable, SCRIPT, "same_loss", shape], check=True, env=environment())
        specs = [spec for spec in args.contenders.split(",") if shape == "bert" or not spec.startswith("garden")]
        for precision in args.precisions.split(","):
            specs += ["beside"] if args.beside and "beside" not in specs else []
            contenders = measure(shape, specs, precision, args.rounds, args.steps, args.beside)
            print(report(shape, contenders, precision), flush=True)
            own, *rivals = ([answer["seconds"] for answer in contender.answers] for contender in contenders)
            for contender, taken in zip(contenders[1:], rivals):
                row = f"{shape}, {precision}"
                history.record("train_step", row, contenders[0].name, contender.name, ratios(taken, own))
            print()


if __name__ == "__main__":
    main()
