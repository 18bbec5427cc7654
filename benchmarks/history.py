"""The record of all benchmarks: history.jsonl has a line for each ratio that `make bench` measured.

    .venv-peers/bin/python benchmarks/history.py [--history=FILE] [--page=FILE]    # draws docs/benchmarks.md

Benchmarks call `record`, which appends to the file that BENCH_HISTORY names; `make bench` sets it. Without the variable
nothing is recorded, so trials leave no trace. Every ratio is a speed relative to a rival: more is better.
"""

import argparse
import datetime
import fcntl
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from side_by_side import ROOT, features, machine, markdown

sys.path.insert(0, str(ROOT))

import tfzoo
from tfzoo import files, json_files
from tfzoo.errors import UserError

HISTORY, PAGE = ROOT / "benchmarks" / "history.jsonl", ROOT / "docs" / "benchmarks.md"
CONFIDENCE = 0.95
FEWEST = 3  # Rounds of a ratio; fewer are a trial.
_NUMBER, _TEXT = json_files.Field(float, low=0, required=True), json_files.Field(str, required=True)
_FIELDS: json_files.Fields = {
    "date": _TEXT,
    "commit": _TEXT,
    "benchmark": _TEXT,
    "row": _TEXT,
    "contender": _TEXT,
    "rival": _TEXT,
    "ratio": _NUMBER,
    "low": _NUMBER,
    "high": _NUMBER,
    "rounds": json_files.Field(int, low=FEWEST, required=True),
    "processor": _TEXT,
    "features": json_files.Field(list, items=json_files.Field(str), required=True),
    "versions": json_files.Field(dict, items=json_files.Field(str), required=True),
}
_LIBRARIES = ("tensorflow", "keras", "onnxruntime", "keras-hub", "tf-models-official", "torch", "transformers")
_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = 12  # Ratios in a row's picture.
_INTRODUCTION = f"""\
`make bench` appends to [benchmarks/history.jsonl](../benchmarks/history.jsonl), and `benchmarks/history.py` draws this
page from it. Each line of a table is the newest ratio of a benchmark: the speed of the contender relative to that of
the rival, the median over rounds, with its 95% interval (of five rounds or fewer, the whole range). The change is that
since the previous record on a processor with the same features; it is marked if neither interval contains the other's
ratio. A bar stands for each of the last {_SHOWN} records, the newest on the right. A commit with + had changes.
[benchmarks/README.md](../benchmarks/README.md) describes the benchmarks."""


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Returns the interval of the median: the narrowest pair of order statistics with a confidence of at least 95%,
    whatever the distribution (https://en.wikipedia.org/wiki/Median#Confidence_intervals). Of five or fewer numbers this
    is the smallest and the largest, whose confidence is lower: 94% for five, 75% for three."""
    ordered, count = sorted(ratios), len(ratios)
    cut, below = 0, 1 / 2**count  # The probability that at most `cut` numbers are below the median.
    while below + math.comb(count, cut + 1) / 2**count <= (1 - CONFIDENCE) / 2:
        cut += 1
        below += math.comb(count, cut) / 2**count
    return ordered[cut], ordered[-1 - cut]


def record(benchmark: str, row: str, contender: str, rival: str, ratios: Sequence[float]) -> None:
    """Appends a line to the file that BENCH_HISTORY names, if it is set.

    Args:
      benchmark: the name of the script.
      row: what was computed, such as "1 x 128, float32".
      contender: who computed it.
      rival: the contender whose speed is 1.
      ratios: the contender's speed relative to the rival's, one number per round.
    """
    path = os.environ.get("BENCH_HISTORY")
    if not path:
        return
    if len(ratios) < FEWEST:
        print(f"{benchmark}, {row}: {len(ratios)} rounds are too few to be recorded; use {FEWEST}", file=sys.stderr)
        return
    low, high = interval(ratios)
    append(
        pathlib.Path(path),
        {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "benchmark": benchmark,
            "row": row,
            "contender": contender,
            "rival": rival,
            "ratio": round(statistics.median(ratios), 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "rounds": len(ratios),
            "processor": machine(),
            "features": features(),
            "versions": _versions(),
        },
    )


def append(path: pathlib.Path, line: dict[str, Any]) -> None:
    """Adds a line at the end of a file; its other lines are not read, so that a broken one loses no measurement."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # Another benchmark may append at the same time.
        old = path.read_bytes() if path.exists() else b""
        old += b"" if not old or old.endswith(b"\n") else b"\n"
        files.atomic_write(path, old + json.dumps(line, ensure_ascii=False).encode() + b"\n")
    finally:
        os.close(folder)


@functools.cache
def _commit() -> str:
    """Returns the commit, with "+" if tracked files other than the history and its page were changed."""

    def git(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)

    found = git("rev-parse", "--short=10", "HEAD")
    if found.returncode:
        return "unknown"
    written = [f":!{path.relative_to(ROOT)}" for path in (HISTORY, PAGE)]
    return found.stdout.strip() + ("+" if git("diff", "--quiet", "HEAD", "--", ".", *written).returncode else "")


@functools.cache
def _versions() -> dict[str, str]:
    """Returns the versions of tfzoo and of the libraries in this environment and in .venv-references."""
    folders = [*sys.path, *map(str, (ROOT / ".venv-references" / "lib").glob("python*/site-packages"))]
    found = {"tfzoo": tfzoo.__version__}
    for name in _LIBRARIES:
        for distribution in importlib.metadata.distributions(name=name, path=folders):
            found.setdefault(name, distribution.version)
    return found


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the lines of a history; a missing file has none.

    Raises:
      UserError: a line is not a record; the message names the file and the line.
    """
    lines = []
    for number, text in enumerate(files.read_bytes(path).splitlines() if path.exists() else [], 1):
        where = f"{path}:{number}"
        line = json_files.parse_object(text, where, "correct or delete the line")
        json_files.check(line, _FIELDS, where, closed=True)
        if not line["low"] <= line["ratio"] <= line["high"]:
            raise UserError(f"{where}: ratio is not between low and high; correct or delete the line")
        lines.append(line)
    return lines


def series(lines: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Returns the comparable lines, in the order of the file, by processor with features, benchmark, row, contender and
    rival. Ratios of different processors are not compared."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines:
        processor = f"{line['processor']}: {', '.join(line['features']) or 'neither AVX-512 nor AMX'}"
        key = (processor, *(line[name] for name in ("benchmark", "row", "contender", "rival")))
        found.setdefault(key, []).append(line)
    return found


def fell(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Returns whether a ratio fell by more than its interval: neither interval contains the other's ratio."""
    return now["high"] < before["ratio"] and now["ratio"] < before["low"]


def picture(ratios: Sequence[float]) -> str:
    """Returns a bar for each of the last ratios, the highest for the largest."""
    shown = ratios[-_SHOWN:]
    least, most = min(shown), max(shown)
    steps = [(ratio - least) / (most - least) if most > least else 0.5 for ratio in shown]
    return "".join(_BARS[round(step * (len(_BARS) - 1))] for step in steps)


def page(lines: Sequence[dict[str, Any]]) -> str:
    """Returns the page in Markdown: the newest ratio of each row, and its change since the one before."""
    tables: dict[tuple[str, str], list[list[str]]] = {}
    falls = []
    for (processor, benchmark, row, contender, rival), one in series(lines).items():
        now, before = one[-1], one[-2] if len(one) > 1 else None
        change = "" if before is None else f"{now['ratio'] - before['ratio']:+.3f}"
        if before is not None and fell(before, now):
            change += " **fell**"
            falls.append(
                f"- {benchmark}, {row}, {contender} over {rival}: {before['ratio']:.3f} at {before['commit']}, "
                f"{now['ratio']:.3f} at {now['commit']} ({processor})"
            )
        cells = [row, contender, rival, f"{now['ratio']:.3f}", f"{now['low']:.3f} to {now['high']:.3f}", change]
        cells += [picture([line["ratio"] for line in one]), now["commit"], now["date"][:10]]
        tables.setdefault((processor, benchmark), []).append([cell.replace("|", "\\|") for cell in cells])
    parts = [
        "# History of the benchmarks",
        _INTRODUCTION,
        "## Ratios that fell by more than their interval",
        "\n".join(falls) if falls else "None." if lines else "Nothing is recorded.",
    ]
    heads = ["row", "contender", "rival", "ratio", "95% interval", "change", "history", "commit", "date"]
    last = None
    for (processor, benchmark), rows in sorted(tables.items()):
        if processor != last:
            parts.append(f"## {processor}")
            last = processor
        parts += [f"### {benchmark}", markdown(heads, rows)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=pathlib.Path, default=HISTORY)
    parser.add_argument("--page", type=pathlib.Path, default=PAGE)
    args = parser.parse_args()
    try:
        drawn = page(read(args.history))
        files.atomic_write(args.page, drawn)
    except UserError as error:
        sys.exit(str(error))
    marked = drawn.count("**fell**")
    print(f"wrote {args.page}; ratios that fell by more than their interval: {marked}")


if __name__ == "__main__":
    main()
