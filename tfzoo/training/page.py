"""report.html of a run: one file with curves, scores, confusion matrix, worst mistakes and configuration.

    page.write("runs/mine")

The file contains its style and its plot, no scripts, and refers to nothing outside. Equal files of a run give equal
bytes. Does not import TensorFlow.
"""

import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import markupsafe

import tfzoo
from tfzoo import files, results
from tfzoo.results import Results
from tfzoo.training import curves
from tfzoo.training.history import History

NAME = "report.html"
_TEMPLATE = pathlib.Path(__file__).with_name("page.html.jinja")
# Control characters, and surrogates, which UTF-8 cannot represent.
_NOT_HTML = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_MATRIX = 20  # Labels of the largest confusion matrix; of more labels, the most frequent confusions are listed.
_CONFUSIONS = 20
_ORDERED = 20  # More classes are sorted by F1.
_MISTAKES = 30
_CHARACTERS = 600  # Of a text of a mistake.


def write(run_dir: str | os.PathLike) -> pathlib.Path:
    """Writes report.html into the folder of a run, and returns its path.

    Raises:
      UserError: the folder is not that of a run, a file is damaged, or the report cannot be written.
    """
    path = pathlib.Path(run_dir, NAME)
    files.atomic_write(path, html(History.read(run_dir)))
    return path


def html(run: History) -> str:
    """Returns the content of report.html."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "shown": _shown, "breakable": _breakable}
    lines = curves.Curves.of(run)
    models = run.config["models"]
    main: Mapping[str, Any] = models.get("main") or next(iter(models.values()), {})
    text = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        run=run,
        model=main.get("model") or "",
        plot=curves.plot(lines),
        validation_name=lines.label,
        summary=curves.summary(lines),
        evaluations=[_evaluation(each) for each in run.results],
        models=[(role, _flat(entry)) for role, entry in models.items()],
        tested=any(not each.validation for each in run.results),
        version=tfzoo.__version__,
    )
    return _NOT_HTML.sub("\N{REPLACEMENT CHARACTER}", text)


def _evaluation(found: Results) -> dict[str, Any]:
    """Returns what the template shows of the results on one file."""
    confusion, matrix, confusions = found.confusion, None, []
    if confusion and len(confusion["labels"]) <= _MATRIX:
        matrix = [
            (label, [(count, share, i == j) for j, (count, share) in enumerate(_shares(row))])
            for i, (label, row) in enumerate(zip(confusion["labels"], confusion["counts"], strict=True))
        ]
    elif confusion:
        confusions = results.confused(confusion, _CONFUSIONS)
    main, classes, by_f1 = found.main, list(found.classes), len(found.classes) > _ORDERED
    if by_f1:
        classes.sort(key=lambda entry: entry.get("f1") or 0.0)
    return {
        "results": found,
        "main": main,
        "verdict": main.verdict() if main else "",
        "loses": main is not None and main.beats_baselines is False,
        "baselines": [(name, results.baseline_label(name)) for name in found.baselines],
        "has_intervals": any(score.interval for score in found.scores),
        "classes": classes,
        "by_f1": by_f1,
        "matrix": matrix,
        "confusions": confusions,
        "mistakes": found.mistakes[:_MISTAKES],
        "more_mistakes": max(len(found.mistakes) - _MISTAKES, 0),
    }


def _shares(row: list[int]) -> list[tuple[int, float]]:
    """Returns each count and its fraction of the row's sum."""
    total = math.fsum(row) or 1
    return [(count, round(count / total, 3)) for count in row]


def _flat(entry: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns the fields of a nested object as (dotted name, value)."""
    fields: list[tuple[str, str]] = []
    for name, value in entry.items():
        if isinstance(value, dict) and value:
            fields += _flat(value, f"{prefix}{name}.")
        else:
            fields.append((prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return fields


def _number(value: Any, digits: int = 3) -> str:
    """Returns a number as text: counts with separators, others with three digits after the point; "-" for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _breakable(value: str) -> markupsafe.Markup:
    """Returns a name that a browser may break after its punctuation."""
    return markupsafe.Markup(re.sub(r"([_/.:-])(?=\w)", r"\1<wbr>", str(markupsafe.escape(value))))


def _shown(value: Any) -> str:
    """Returns a label, a number, a list of labels or a text, shortened, for readers."""
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= _CHARACTERS:
        return text
    return f"{text[:_CHARACTERS]} ... (the first {_CHARACTERS:,} of {len(text):,} characters)"
