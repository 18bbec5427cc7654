"""Output of a run: metrics.jsonl, TensorBoard events, loss.png, a progress bar and evaluation tables."""

import contextlib
import io
import itertools
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from tfzoo import cli, files, results
from tfzoo.errors import UserError
from tfzoo.objectives.baselines import NGRAM_ORDER

# The baselines of objectives and tasks, as an evaluation's table names them.
BASELINE_LABELS = {
    "frequency": "most frequent token",
    "neighbour": "bigram baseline",
    "n-gram": f"{NGRAM_ORDER}-gram baseline",
    **results.BASELINES,
}


def evaluation_table(
    step: int, figures: dict[str, float], baselines: dict[str, dict[str, float]], rows: Sequence[tuple[str, str, str]]
) -> str:
    """Returns a table of the held-out figures, each next to the values of the baselines.

    Args:
      step: the step of the evaluation.
      figures: {name: value} of the model; NAME/SOURCE is the figure of one of several sources.
      baselines: {"frequency": {name: value}, ...}; a perplexity is computed from its loss.
      rows: the FIGURES of an objective: (label, name, format).
    """
    columns = {name: BASELINE_LABELS.get(name, name) for name in baselines}
    widths = [max(14, len(label) + 3) for label in columns.values()]
    first = max([22, *(len(name.partition("/")[2]) + 2 for name in figures)])  # The width of the first column.
    header = "".join(f"{label:>{width}}" for label, width in zip(columns.values(), widths, strict=True))
    lines = [f"{f'step {step:>6,}, held out':<{first + 2}}{'model':>10}{header}"]
    for label, figure, form in rows:
        for name in (name for name in figures if name.partition("/")[0] == figure):
            cells = [form.format(figures[name]), *(baseline_cell(each, name, form) for each in baselines.values())]
            row = "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths, strict=True))
            shown = f"  {name.partition('/')[2]}" if "/" in name else label
            lines.append(f"  {shown:<{first}}{cells[0]:>10}{row}")
    return "\n".join(lines)


def baseline_cell(baseline: dict[str, float], name: str, form: str) -> str:
    """Returns a baseline's value of a figure, formatted; "-": it has none."""
    value = baseline_value(baseline, name)
    return "-" if value is None else form.format(value)


def baseline_value(baseline: dict[str, float], name: str) -> float | None:
    """Returns a baseline's value of a figure, or a perplexity that is computed from its loss. None: it has none."""
    if name in baseline:
        return baseline[name]
    figure, slash, source = name.partition("/")
    loss = figure.replace("_perplexity", "_loss")
    value = None if loss == figure else baseline.get(loss + slash + source)
    return value if value is None else math.exp(value)


PLOT_EVERY = 10.0  # Seconds between two drawings of loss.png, which take up to half a second each.


class MetricsLog:
    """Writes metrics.jsonl, TensorBoard events and loss.png of a run, from `step` on."""

    def __init__(self, run_dir: pathlib.Path, step: int, figure: tuple[str, str, str], evaluated: bool = True):
        """Removes everything after `step` from both logs: a run that was killed or rolled back logs it again.

        Args:
          run_dir: the run's folder.
          step: the last step whose records are kept.
          figure: the entry of the objective's FIGURES that loss.png shows.
          evaluated: whether an evaluation at `step` is kept; if not, it will be logged again.
        """
        import tensorflow as tf

        self._figure = figure
        self._drawn, self._is_stale = time.monotonic(), False
        self._path, self._png = run_dir / "metrics.jsonl", run_dir / "loss.png"
        # A killed process may leave an incomplete line, which `read_metrics` ignores.
        kept = [
            record
            for record in read_metrics(self._path)
            if record["step"] < step or (record["step"] == step and (evaluated or figure[1] not in record))
        ]
        files.atomic_write(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        _match_events(run_dir / "events", kept)
        self._file = open(self._path, "a", opener=files.regular)
        self._events = tf.summary.create_file_writer(str(run_dir / "events"))
        for record in _without_events(run_dir / "events", kept):
            self._summarize(record)

    def write(self, record: dict) -> None:
        """Writes a record to both logs. After an evaluation, loss.png is drawn, at most every PLOT_EVERY seconds.

        Raises:
          UserError: the file system rejects the write (a full disk).
        """
        with files.writing(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        self._summarize(record)
        self._is_stale |= self._figure[1] in record
        if self._is_stale and time.monotonic() - self._drawn >= PLOT_EVERY:
            self._draw()

    def _draw(self) -> None:
        plot(read_metrics(self._path), self._png, self._figure)
        self._drawn, self._is_stale = time.monotonic(), False

    def _summarize(self, record: dict) -> None:
        """Writes a record as TensorBoard events."""
        import tensorflow as tf

        try:
            with self._events.as_default(record["step"]):
                for name, value in record.items():
                    if name != "step":
                        tf.summary.scalar(name, value)
            self._events.flush()
        except tf.errors.OpError as error:
            reason = (
                "no space left on device"
                if "No space left" in error.message
                else " ".join(error.message.split())[-200:]
            )
            raise UserError(
                f"{self._path.with_name('events')}: cannot be written ({reason}); free some disk space"
            ) from None

    def close(self) -> None:
        """Closes the files; draws loss.png if it lacks an evaluation."""
        self._file.close()
        self._events.close()
        if self._is_stale:
            self._draw()


_FRAME = 16  # Bytes added to each record of an event file: its length and two checksums.


def _read_events(path: pathlib.Path) -> Iterator[tuple[bytes, list[tuple[int, str]]]]:
    """Yields the complete records of an event file up to the first damaged one: (bytes, (step, name) of each value)."""
    import tensorflow as tf
    from tensorboard.compat.proto import event_pb2

    content, start = files.read_bytes(path, follow=False), 0
    with contextlib.suppress(tf.errors.DataLossError):
        for data in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            end = start + _FRAME + len(data)
            event = event_pb2.Event.FromString(data)
            yield content[start:end], [(event.step, value.tag) for value in event.summary.value]
            start = end


def _event_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.glob("*tfevents*") if not path.name.endswith(files.PARTIAL))


def _keys(records: Iterable[dict]) -> set[tuple[int, str]]:
    return {(record["step"], name) for record in records for name in record if name != "step"}


def _match_events(folder: pathlib.Path, records: list[dict]) -> None:
    """Removes from the event files all events that are not in `records`, and all damaged ones."""
    wanted = _keys(records)
    for path in _event_files(folder):
        kept = b"".join(data for data, keys in _read_events(path) if wanted.issuperset(keys))
        if len(kept) < path.stat().st_size:
            files.atomic_write(path, kept)


def _without_events(folder: pathlib.Path, records: list[dict]) -> list[dict]:
    """Returns the records that are not in the event files: a process may be killed between writing the two logs."""
    existing = {key for path in _event_files(folder) for _, keys in _read_events(path) for key in keys}
    return [record for record in records if not existing.issuperset(_keys([record]))]


def read_metrics(path: pathlib.Path) -> list[dict]:
    """Returns the records of the complete lines of a metrics.jsonl; an empty list if the file does not exist."""
    records = []
    if not path.exists():
        return []
    for line in files.read_bytes(path, follow=False).split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def plot(records: list[dict], path: pathlib.Path, figure_shown: tuple[str, str, str]) -> None:
    """Plots the training loss and one held-out figure (label, name, format) against the step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    label, name, form = figure_shown
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    trained = [record for record in records if "loss" in record]
    left.plot([r["step"] for r in trained], [r["loss"] for r in trained], color="tab:blue", linewidth=1)
    left.set(xlabel="step", title=f"Training loss and held-out {label}")
    left.set_ylabel("training loss (nats)", color="tab:blue")
    left.grid(alpha=0.3)
    for before, after in itertools.pairwise(trained):
        if any(before.get(name) != after.get(name) for name in ("sequence_length", "batch_size")):
            left.axvline(before["step"], color="tab:gray", linestyle=":")  # Another stage begins.
    percent = 100 if form.endswith("%}") else 1
    evaluated = [record for record in records if name in record]
    right = left.twinx()
    right.plot(
        [r["step"] for r in evaluated],
        [percent * r[name] for r in evaluated],
        color="tab:orange",
        marker="o",
        markersize=3,
    )
    right.set_ylabel(f"held-out {label}{' (%)' if percent == 100 else ''}", color="tab:orange")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    files.atomic_write(path, image.getvalue())


class ProgressBar:
    """A tqdm progress bar on a terminal; otherwise, an occasional line."""

    def __init__(self, step: int, steps: int):
        import tqdm

        self._bar = tqdm.tqdm(
            total=steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )
        if sys.stderr.isatty():
            self._bar.set_postfix_str("tracing the first step")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def show(self, step: int, record: dict) -> None:
        loss, rate, speed = record.get("loss", math.nan), record["learning_rate"], record["tokens_per_second"]
        self._bar.set_postfix_str(f"loss {loss:.3f}, lr {rate:.1e}, {speed:,.0f} tokens/s", refresh=False)
        self._bar.update(step - self._bar.n)

    def print(self, text: str) -> None:
        self._bar.clear()
        cli.show(text)
