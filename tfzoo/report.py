"""What a run tells people: metrics.jsonl, TensorBoard events, loss.png, a progress bar, a table."""

import contextlib
import io
import json
import math
import pathlib
import sys

from tfzoo import files


def evaluation_table(step: int, figures: dict[str, float], baselines: dict[str, dict[str, float]]) -> str:
    """The held-out figures, each beside what guessing and looking up one neighbour score."""
    rows = [f"step {step:>6,}, held out       model  by frequency  by neighbour"]
    for label, name, form in (
        ("masked words right", "masked_lm_accuracy", "{:.2%}"),
        ("perplexity", "masked_lm_perplexity", "{:.1f}"),
        ("next sentence right", "next_sentence_accuracy", "{:.2%}"),
    ):
        if name not in figures:
            continue
        guesses = []
        for baseline in baselines.values():
            if name == "masked_lm_perplexity":
                guesses.append(math.exp(baseline["masked_lm_loss"]))
            else:
                guesses.append(baseline.get(name, math.nan))
        cells = [form.format(value) for value in (figures[name], *guesses)]
        rows.append(f"  {label:<20} {cells[0]:>10} {cells[1]:>13} {cells[2]:>13}")
    return "\n".join(rows)


class MetricsLog:
    """metrics.jsonl, TensorBoard events and loss.png of a run, from `step` on."""

    def __init__(self, run_dir: pathlib.Path, step: int):
        import tensorflow as tf

        self._path, self._png = run_dir / "metrics.jsonl", run_dir / "loss.png"
        # What a killed run logged after its last checkpoint will be logged again; its last line may be half one.
        kept = [record for record in read_metrics(self._path) if record["step"] <= step]
        files.atomic_write(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(self._path, "a")
        self._events = tf.summary.create_file_writer(str(run_dir / "events"))

    def write(self, record: dict) -> None:
        import tensorflow as tf

        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        with self._events.as_default(record["step"]):
            for name, value in record.items():
                if name != "step":
                    tf.summary.scalar(name, value)
        self._events.flush()
        if "masked_lm_loss" in record:
            plot(read_metrics(self._path), self._png)

    def close(self) -> None:
        self._file.close()
        self._events.close()


def read_metrics(path: pathlib.Path) -> list[dict]:
    """The whole lines of a metrics.jsonl; nothing where there is none."""
    records = []
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_bytes().split(b"\n")[:-1]:
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
    return records


def plot(records: list[dict], path: pathlib.Path) -> None:
    """Draws the training loss and the held-out masked-word accuracy over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    trained = [record for record in records if "loss" in record]
    left.plot([r["step"] for r in trained], [r["loss"] for r in trained], color="tab:blue", linewidth=1)
    left.set(xlabel="step", title="Training loss and held-out accuracy")
    left.set_ylabel("training loss (nats)", color="tab:blue")
    left.grid(alpha=0.3)
    evaluated = [record for record in records if "masked_lm_accuracy" in record]
    right = left.twinx()
    right.plot(
        [r["step"] for r in evaluated],
        [100 * r["masked_lm_accuracy"] for r in evaluated],
        color="tab:orange",
        marker="o",
        markersize=3,
    )
    right.set_ylabel("held-out masked words right (%)", color="tab:orange")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    files.atomic_write(path, image.getvalue())


class ProgressBar:
    """tqdm's bar where there is a terminal; a line now and then where there is none."""

    def __init__(self, step: int, steps: int):
        import tqdm

        self._bar = tqdm.tqdm(
            total=steps,
            initial=step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def show(self, step: int, record: dict) -> None:
        self._bar.set_postfix_str(
            f"loss {record['loss']:.3f}, lr {record['learning_rate']:.1e}, {record['tokens_per_second']:,.0f} tokens/s",
            refresh=False,
        )
        self._bar.update(step - self._bar.n)

    def print(self, text: str) -> None:
        self._bar.clear()
        print(text, flush=True)
