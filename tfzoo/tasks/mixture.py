"""Several text-to-text tasks in one model, told apart by prefixes (Raffel et al. 2020, section 3.5.2).

    python -m tfzoo.train --task=mixture --train_file=train.json --validation_file=dev.json --init_from=t5-folder

The files name those of the tasks (data/text_mixture.py). Each task's share of the training rows is proportional to its
number of rows, at most --mixing_limit, to the power of 1 / --mixing_temperature. An epoch contains every row at least
once; rows of tasks with a larger share than their number of rows recur.

Worked example: tasks of 90 and 10 rows have the shares 0.9 and 0.1; with --mixing_limit=30, 0.75 and 0.25, so that an
epoch has 90 rows of the first and 30 of the second, three times each of its 10; with --mixing_temperature=2, 0.75 and
0.25, as well, since the root of 90 is three times that of 10.

Each task has its own scores: bleu/NAME, rouge_l/NAME, ... The best checkpoint has the highest mean_score, the mean of
the tasks' main scores.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence

import numpy as np

from tfzoo.data import encoded
from tfzoo.data.text_mixture import MixtureFile, mixed_epoch, mixing_rates
from tfzoo.errors import UserError
from tfzoo.evaluation import written
from tfzoo.evaluation.intervals import Weighted
from tfzoo.options import option
from tfzoo.tasks import GROUP, translate
from tfzoo.tasks.summarise import Summarise
from tfzoo.tasks.text_to_text import TextToText
from tfzoo.tasks.translate import Translate

_KINDS: dict[str, type[TextToText]] = {kind.name: kind for kind in (TextToText, Translate, Summarise)}
_OF_FILES = ("text_column", "pair_column", "label_column", "delimiter", "prefix")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(translate.Options):
    """The options of the task mixture."""

    mixing_limit: int = option(
        0,
        "Number of rows from which on a task's share of the rows does not grow; 0 means no limit.",
        group=GROUP,
        low=0,
        decides_rows=True,
    )
    mixing_temperature: float = option(
        1.0,
        "Tasks' shares of the rows are proportional to their numbers of rows to the power of 1 / temperature.",
        group=GROUP,
        low=1.0,
        high=100.0,
        decides_rows=True,
    )


class Mixture(TextToText):
    """See the module's docstring."""

    name = "mixture"
    Options = Options
    FIGURES = (
        ("mean of the tasks' scores", "mean_score", "{:.2f}"),
        *dict.fromkeys(figure for kind in _KINDS.values() for figure in kind.FIGURES),
    )
    best_metric = ("mean_score", "max")

    # ------------------------------------------------------------------ Files

    @classmethod
    def open_file(cls, options, path, flag, policy):
        for name in _OF_FILES:
            if value := getattr(options, name):
                raise UserError(f"--{name}={value}: does not apply to --task=mixture; write it into the mixture file")
        return MixtureFile(path, flag=flag, policy=policy, tasks=_KINDS)

    def prefixed(self, row):
        return f"{row.prefix} {row.texts[0]}" if row.prefix else row.texts[0]

    def chunks(self, file):
        number = {name: i for i, name in enumerate(file.names)}
        parts = iter([number[row.name] for row in file.rows()])
        for chunk in super().chunks(file):
            count = len(chunk["number"])
            yield chunk | {"part": np.array([next(parts) for _ in range(count)], np.int64)}

    def training_rows(self, rows):
        parts = np.asarray(rows.columns["part"])
        rates = mixing_rates(np.bincount(parts), self.options.mixing_temperature, self.options.mixing_limit)
        return encoded.PickedRows(rows, mixed_epoch(parts, rates))

    def prepare_evaluation(self, file, whole=False):
        rows = list(file.rows())
        self._texts_of_rows = [row.texts for row in rows]
        self._tasks: Mapping[str, str] = file.tasks
        self._names = np.array([row.name for row in rows], object)
        self._decoded = np.zeros(len(rows), bool)
        for name in file.names:
            places = np.flatnonzero(self._names == name)
            limit = len(places) if whole else self._most(len(places), len(file.names))
            self._decoded[places[np.arange(limit) * len(places) // max(limit, 1)]] = True

    def _most(self, count: int, tasks: int) -> int:
        """Returns how many of a task's `count` rows an evaluation during training decodes."""
        most = self.options.decoded_rows
        return min(count, -(-most // tasks)) if most else count

    # ------------------------------------------------------------------ Scores

    def _parts(self, outcome: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns for each task the places of its rows in an outcome."""
        names = self._names[outcome["number"]]
        return {name: np.flatnonzero(names == name) for name in self._tasks if np.any(names == name)}

    def score_rows(self, outcome):
        hypotheses, references = self.answers_of(outcome)
        parts = self._parts(outcome)
        scores = {
            name: self._score(name, [hypotheses[i] for i in places], [references[i] for i in places])
            for name, places in parts.items()
        }

        def figures(values: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
            of_row = np.zeros((len(weights), len(hypotheses)))
            of_row[:, values[:, 0].astype(np.int64)] = weights
            found: dict[str, np.ndarray] = {}
            mains = []
            for name, score in scores.items():
                each = score.figures(score.values, of_row[:, parts[name]])
                mains.append(each[self._kind(name).best_metric[0]])
                found |= {f"{figure}/{name}": value for figure, value in each.items()}
            return {"mean_score": np.mean(mains, axis=0)} | found

        return Weighted(np.arange(len(hypotheses))[:, None], figures)

    def _kind(self, name: str) -> type[TextToText]:
        return _KINDS[self._tasks[name]]

    def _score(self, name: str, hypotheses: Sequence[str], references: Sequence[str]) -> Weighted:
        return self._kind(name).score_texts(hypotheses, references, self.options)

    def details(self, outcome):
        _, references = self.answers_of(outcome)
        signatures = []
        for name, places in self._parts(outcome).items():
            if self._kind(name) is Translate:
                tokenizer = translate.bleu_tokenizer([references[i] for i in places], self.options)
                signatures.append(f"{name}: {written.bleu_signature(tokenizer)}")
        return super().details(outcome) | ({"signature": ", ".join(signatures)} if signatures else {})

    # ------------------------------------------------------------------ Baselines

    def file_baselines(self, train, held_out):
        rows = [row for row, chosen in zip(held_out.rows(), self._decoded, strict=True) if chosen]
        found: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(row.name for row in rows):
            sources, references = zip(*(row.texts for row in rows if row.name == name))
            known = [row for row in train.rows() if row.name == name]
            texts = self._kind(name).baseline_texts(types.SimpleNamespace(rows=lambda known=known: known), sources)
            for baseline, hypotheses in texts.items():
                figures = self._score(name, hypotheses, references)()
                found.setdefault(baseline, {}).update({f"{each}/{name}": value for each, value in figures.items()})
        mains = [f"{self._kind(name).best_metric[0]}/{name}" for name in dict.fromkeys(row.name for row in rows)]
        for figures in found.values():
            if set(mains) <= figures.keys():  # The baseline applies to every task.
                figures["mean_score"] = float(np.mean([figures[main] for main in mains]))
        return found
