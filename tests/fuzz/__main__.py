"""Damages users' files at random and counts how they are read: python -m tests.fuzz --seed=7 --cases=10000.

Prints for each kind of input how many were tried, how many were refused in one line, and how many were accepted with
results equal to those of another reader; anything else is shown and ends with exit code 4. After a kill, the same
command continues.
"""

import argparse
import importlib
import pathlib
import sys

from tests.fuzz.harness import Fuzzer, Kind

# Each defines KINDS: name -> Kind.
MODULES = ("weights", "labelled", "templates", "indexes", "folders", "runs", "artifacts")


def kinds(names: str, fast: bool) -> dict[str, Kind]:
    """Returns the kinds with these names, separated by commas; all of them if empty, or all that are fast."""
    known: dict[str, Kind] = {}
    for module in MODULES:
        known |= importlib.import_module(f"tests.fuzz.{module}").KINDS
    if names:
        return {name: known[name] for name in names.split(",")}
    return {name: kind for name, kind in known.items() if not (fast and kind.slow)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="determines the cases")
    parser.add_argument("--cases", type=int, default=2000, help="number of cases of all kinds together")
    parser.add_argument("--kinds", default="", help="names of kinds, separated by commas (default: all)")
    parser.add_argument(
        "--folder", type=pathlib.Path, default=pathlib.Path("build/fuzz"), help="record and failed inputs"
    )
    parser.add_argument("--fast", action="store_true", help="leave out the kinds that take long")
    arguments = parser.parse_args()
    fuzzer = Fuzzer(kinds(arguments.kinds, arguments.fast), arguments.seed, arguments.folder)
    fuzzer.run(arguments.cases)
    print(fuzzer.table(), flush=True)
    return 4 if fuzzer.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
