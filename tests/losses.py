"""Compares the metrics that two checkouts of tfzoo log: a refactoring must not change any loss.

    python tests/losses.py --output=before.json                   # in the first checkout
    python tests/losses.py --output=after.json --same_as=before.json   # in the second

Runs every recipe of configs/ with configs/debug.cfg appended, in two runs of which the second resumes the first, and
writes every value of metrics.jsonl except the speed as a hexadecimal float. Exit code 1: a value differs.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
APPENDED = ("base.cfg", "small.cfg", "debug.cfg", "demo.cfg")
# The recipes that do not train on docstrings.
TEXTS = {"shakespeare": "text.txt", "shakespeare_long": "text.txt", "poetry": "text.txt", "transformer": "pairs.tsv"}
SPEEDS = ("tokens_per_second", "model_tflops", "mfu")
# Options that no recipe uses, each applied to the recipe of this name.
VARIANTS = {
    "bert": [[], ["--pairs=none", "--mask_unit=word"], ["--ema_decay=0.9", "--accumulation=2", "--optimizer=lamb"]],
    "gpt": [[], ["--precision=float16", "--on_nonfinite=skip", "--nopack"]],
}


def figures(arguments: list[str], folder: pathlib.Path) -> list[dict[str, str]]:
    """Returns the records of metrics.jsonl of a run that is stopped half-way and resumed."""
    command = [sys.executable, "-m", "tfzoo.train", *arguments, f"--run_dir={folder}", "--schedule=constant"]
    for steps in (4, 8):
        subprocess.run([*command, "--final_learning_rate=0", f"--steps={steps}"], cwd=ROOT, check=True)
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: float(x).hex() for name, x in record.items() if name not in SPEEDS} for record in records]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="JSON file to write")
    parser.add_argument("--same_as", type=pathlib.Path, help="JSON file of another checkout, to compare with")
    options = parser.parse_args()
    logged = {}
    with tempfile.TemporaryDirectory() as temporary:
        lines = [f"{i} bottles of beer on the wall, {i} bottles of beer." for i in range(2000)]
        pathlib.Path(temporary, "text.txt").write_text("".join(f"{line}\n" for line in lines))
        pathlib.Path(temporary, "pairs.tsv").write_text("".join(f"{line}\t{line}\n" for line in lines))
        for config in sorted(ROOT.glob("configs/*.cfg")):
            if config.name in APPENDED:
                continue
            for number, more in enumerate(VARIANTS.get(config.stem, [[]])):
                arguments = [f"--flagfile={config}", f"--flagfile={ROOT / 'configs/debug.cfg'}", *more]
                if config.stem in TEXTS:
                    arguments.append(f"--corpus={pathlib.Path(temporary, TEXTS[config.stem])}")
                logged[" ".join([config.stem, *more])] = figures(
                    arguments, pathlib.Path(temporary, f"{config.stem}_{number}")
                )
    options.output.write_text(json.dumps(logged, indent=1) + "\n")
    if not options.same_as:
        return 0
    before = json.loads(options.same_as.read_text())
    changed = [name for name in before if before[name] != logged.get(name)]
    for name in changed:
        print(f"{name}: before {before[name]}\n  now {logged.get(name)}")
    print(f"{len(before) - len(changed)} passed, {len(changed)} failed")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
