"""Runs the recipes of configs/ and writes their results into docs/: `make results`, or

    .venv/bin/python benchmarks/recipes.py [--only=bert,gpt]

A recipe that is recorded in docs/recipes.json is not repeated, unless its flags have changed since. A run
that was interrupted resumes: runs are kept in runs/results/. Recipes with a text of their own need TFZOO_DATA, a folder
with the data sets (docs/data.md), and are skipped without it.
"""

import argparse
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

from absl import flags as absl_flags

from tfzoo import cli
from tfzoo.training import registry, report
from tfzoo.training.config import TrainConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECORDS, PAGE, RUNS = ROOT / "docs/recipes.json", ROOT / "docs/results.md", ROOT / "runs/results"
APPENDED = {"base", "small", "debug", "demo"}  # Parts of recipes, not recipes.
# Recipe -> its text, a path or glob below TFZOO_DATA; all others train on docstrings.
TEXTS = {
    "shakespeare": "tinyshakespeare/input.txt",
    "shakespeare_long": "tinyshakespeare/input.txt",
    "poetry": "chinese-poetry/tang.txt",
    "transformer": "multi30k/train.en.gz+$TFZOO_DATA/multi30k/train.de.gz",
    "english": "wikitext-2/valid.txt,docstrings,$TFZOO_DATA/aeslc/train.jsonl",
    "english_gpt": "wikitext-2/valid.txt,docstrings,$TFZOO_DATA/aeslc/train.jsonl",
    "chinese": "chinese-poetry/tang.txt,gettext:zh_CN,runs/results/data/modern.txt",
}
BEGIN, END = "<!-- recipes: written by `make results` -->\n", "<!-- end of recipes -->\n"


def recipes() -> list[str]:
    """Returns the names of all recipes."""
    return [path.stem for path in sorted(ROOT.glob("configs/*.cfg")) if path.stem not in APPENDED]


def flags_of(name: str) -> list[str]:
    """Returns the arguments of tfzoo.train for a recipe, without --run_dir, as a reader would type them."""
    corpus = [f"--corpus=$TFZOO_DATA/{TEXTS[name]}"] if name in TEXTS else []
    return [f"--flagfile=configs/{name}.cfg", *corpus]


def config_of(name: str) -> TrainConfig:
    """Returns the config of a recipe."""
    flags = absl_flags.FlagValues()
    TrainConfig.define_flags(flags)
    cli.parse(flags, [*(flag.replace("configs/", f"{ROOT}/configs/") for flag in flags_of(name)), "--run_dir=unused"])
    return TrainConfig.from_flags(flags)


def key_of(config: TrainConfig) -> str:
    """Returns a key of the flags that a recipe sets; flags that are added to tfzoo later do not change it."""
    given = {name: value for name, value in config.given().items() if name != "corpus"}
    return hashlib.sha256(repr(sorted(given.items())).encode()).hexdigest()[:12]


def write_modern_chinese() -> None:
    """Writes the reviews of chnsenticorp and the paragraphs of DRCD and CMRC 2018 on which models are fine-tuned, into
    the file that the recipe chinese reads."""
    data, path = pathlib.Path(os.environ["TFZOO_DATA"]), RUNS / "data/modern.txt"
    reviews = (data / "chnsenticorp/train.tsv").read_text().splitlines()[1:]
    texts = [review.partition("\t")[2] for review in reviews]
    for name in ("drcd/DRCD_dev.json", "cmrc2018/cmrc2018_trial.json"):
        articles = json.loads((data / name).read_text())["data"]
        texts += [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(" ".join(text.split()) for text in texts) + "\n")


def run(name: str, key: str) -> dict:
    """Runs a recipe, or the rest of it, and returns its record."""
    if name == "chinese":
        write_modern_chinese()
    run_dir = RUNS / f"{name}-{key}"
    command = [sys.executable, "-m", "tfzoo.train", *map(os.path.expandvars, flags_of(name)), f"--run_dir={run_dir}"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    found = re.search(r": ([\d,]+) parameters; (.*)", done.stdout)
    assert found, done.stdout
    metrics = report.read_metrics(run_dir / "metrics.jsonl")
    evaluations = [record for record in metrics if "loss" not in record]
    shutil.copyfile(run_dir / "loss.png", PAGE.with_name(f"{name}.png"))
    return {
        "key": key,
        "text": json.loads((run_dir / "corpus.json").read_text())["fingerprint"],
        "parameters": int(found[1].replace(",", "")),
        "data": found[2],
        "evaluations": evaluations,
        "baselines": json.loads((run_dir / "baselines.json").read_text()),
    }


def section(name: str, config: TrainConfig, record: dict) -> str:
    """Returns a recipe's section of the page: its command, its figures beside the baselines, and its curve."""
    first = (ROOT / f"configs/{name}.cfg").read_text().splitlines()[0].removeprefix("# ")
    command = " ".join(f'"{flag}"' if "$" in flag else flag for flag in flags_of(name))
    evaluations = record["evaluations"]
    shown = [evaluations[(len(evaluations) - 1) // 2], evaluations[-1]] if len(evaluations) > 2 else evaluations[-1:]
    heads = [f"step {evaluation['step']:,}" for evaluation in shown]
    heads += [report.BASELINE_LABELS.get(baseline, baseline) for baseline in record["baselines"]]
    lines = ["| held out | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for label, figure, form in registry.find(config.objective).FIGURES:
        if figure in evaluations[-1]:
            cells = [form.format(evaluation[figure]) for evaluation in shown]
            cells += [report.baseline_cell(baseline, figure, form) for baseline in record["baselines"].values()]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            f"### {name}.cfg\n",
            f"{first}\n",
            f"    python -m tfzoo.train {command} --run_dir=runs/{name}\n",
            f"{record['parameters']:,} parameters; {record['data']}.\n",
            *lines,
            f"\n![Curve of {name}.cfg]({name}.png)\n",
        ]
    )


def write_page(records: dict[str, dict]) -> None:
    """Writes the sections of all recorded recipes."""
    sections = [section(name, config_of(name), records[name]) for name in recipes() if name in records]
    write_between(BEGIN, END, "\n".join(sections))


def write_between(begin: str, end: str, text: str) -> None:
    """Writes a text between two marks of the page, in place of what is there."""
    before, _, rest = PAGE.read_text().partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(recipes()), help="names of recipes, separated by commas")
    options = parser.parse_args()
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    for name in options.only.split(","):
        config = config_of(name)
        key = key_of(config)
        if records.get(name, {}).get("key") == key:
            print(f"{name}: is recorded")
            continue
        if name in TEXTS and not os.environ.get("TFZOO_DATA"):
            print(f"{name}: skipped; set TFZOO_DATA to the folder that contains {TEXTS[name]}")
            continue
        records[name] = run(name, key)
        RECORDS.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
        write_page(records)


if __name__ == "__main__":
    main()
