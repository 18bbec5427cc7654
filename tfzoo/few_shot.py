"""Classifies texts with a language model that was not fine-tuned for it: zero- and few-shot, with a template.

    python -m tfzoo.few_shot --model_dir=gpt2 --train_file=train.tsv --test_file=dev.tsv \\
        --template='Review: {text}\\nSentiment: {label}' --shots=0,4 --seeds=3 --label_words=0=negative,1=positive

The prompt of a text is the template filled with examples of the training file and, last, with the text; the words of
the label follow it. The examples are drawn by seed, for each row anew, balanced over the labels. With
--method=likelihood, the answer is the label whose words are the most likely after the prompt; with --method=completion,
the one that the model writes. An encoder-decoder reads the prompt in its encoder and answers in its decoder.

The files are those of --task=classify or, with --task=choice, questions with endings to choose from. The table shows
accuracy and macro F1, as the mean and the standard deviation (n - 1) over the seeds, compared with the majority class
and, with --random_baseline, a model with random weights.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags as absl_flags

from tfzoo import cli, files, options, progress
from tfzoo.data import labelled
from tfzoo.data.choices import ChoiceFile
from tfzoo.data.columns import Columns
from tfzoo.data.labelled import LabelledFile
from tfzoo.errors import UserError
from tfzoo.evaluation import linear, prompts
from tfzoo.evaluation.prompts import Example, Pool, Template
from tfzoo.model_dir import ModelDir
from tfzoo.options import option
from tfzoo.tasks.task import sample

_FILES, _PROMPT, _ANSWER, _OUTPUT = "Files", "Prompt", "Answer", "Output"
_POOL_ROWS = 50_000
_BLOCK = 64  # Rows that are prompted together.
_FORMS = {"accuracy": "accuracy", "macro_f1": "macro F1"}
MODEL, RANDOM = "model", "random weights"
CLASSIFY, CHOICE = "classify", "choice"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotConfig(ModelDir):
    """The model, the files, the prompt, and how answers are read."""

    task: str = option(
        CLASSIFY,
        "What the files contain, as for tfzoo.train: texts with labels (classify), or texts with endings of which one "
        "is right (choice); {label} is then the ending.",
        group=_FILES,
        choices=(CLASSIFY, CHOICE),
    )
    train_file: str = option(dataclasses.MISSING, "File from which examples are drawn.", group=_FILES)
    test_file: str = option(dataclasses.MISSING, "Labelled file with the rows to classify.", group=_FILES)
    max_rows: int | None = option(
        None, "Classify a random sample of this many rows of --test_file; by default all.", group=_FILES, low=1
    )
    text_column: str | None = option(None, "Column with the text.", group=_FILES)
    pair_column: str | None = option(None, "Column with the second text of a pair.", group=_FILES)
    label_column: str | None = option(None, "Column with the label.", group=_FILES)
    delimiter: str | None = option(None, "Character between the columns.", group=_FILES)
    bad_rows: str = option(
        "strict",
        "Handling of unsuitable rows: strict stops with an error, skip omits and counts them.",
        group=_FILES,
        choices=("strict", "skip"),
    )
    template: str = option(
        dataclasses.MISSING,
        "An example as a text: {text}, for pairs {text_pair}, and {label} at the end; \\n is a line break.",
        group=_PROMPT,
    )
    instruction: str = option("", "A text before the examples.", group=_PROMPT)
    separator: str = option("\\n\\n", "The text between examples.", group=_PROMPT)
    label_words: str = option(
        "", "The words of labels, as LABEL=WORDS,...; by default the labels themselves.", group=_PROMPT
    )
    shots: str = option("0,4", "Numbers of examples in a prompt, separated by commas.", group=_PROMPT)
    seeds: int = option(3, "Number of seeds with which examples are drawn.", group=_PROMPT, low=1)
    seed: int = option(0, "The first seed.", group=_PROMPT, low=0)
    sequence_length: int | None = option(
        None,
        "Maximum number of tokens that the model reads; by default its maximum. Longer prompts lose their earliest "
        "examples.",
        group=_PROMPT,
        low=8,
    )
    method: str = option(
        prompts.LIKELIHOOD,
        "likelihood compares the labels' words after the prompt; completion reads what the model writes.",
        group=_ANSWER,
        choices=prompts.METHODS,
    )
    score: str = option(
        prompts.SUM,
        "How the log-probabilities of the tokens of a label's words are combined: their sum, or their mean.",
        group=_ANSWER,
        choices=prompts.SCORES,
    )
    calibrate: bool = option(
        False,
        "Divide the probabilities of labels by those after texts without content (contextual calibration, Zhao et al. "
        "2021); takes four times as long.",
        group=_ANSWER,
    )
    batch_size: int = option(16, "Prompts per batch.", group=_ANSWER, low=1)
    random_baseline: bool = option(False, "Also measure a model of the same config with random weights.", group=_OUTPUT)
    output: str | None = option(
        None,
        "The .json file to write; by default few_shot-NAME.json in the folder of --model_dir if that is a run, where "
        "NAME is that of the test file.",
        group=_OUTPUT,
    )

    def numbers_of_shots(self) -> list[int]:
        """Returns the numbers of examples.

        Raises:
          UserError: one is not a whole number from 0 on.
        """
        parts = [part.strip() for part in self.shots.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise UserError(f"--shots={self.shots}: is not a list of whole numbers, such as 0,4")
        return list(dict.fromkeys(map(int, parts)))


def define_flags(flags: absl_flags.FlagValues) -> None:
    options.define_flags(flags, FewShotConfig)


def main(flags: absl_flags.FlagValues) -> None:
    config = FewShotConfig(**options.values_of(flags, FewShotConfig))
    shots, target = config.numbers_of_shots(), _target(config)
    data = _Data.read(config)
    words = [] if config.task == CHOICE else prompts.words_of(data.labels, config.label_words)
    texts = {name: _unescaped(getattr(config, name)) for name in ("template", "instruction", "separator")}
    template = Template(**texts, words=words, pair=data.is_pair)
    folder = config.folder
    with progress.importing_tensorflow():
        import keras

        from tfzoo.evaluation import few_shot
    keras.utils.set_random_seed(config.seed)  # Of random weights; before the tokenizer, whose tables it would clear.
    model, tokenizer = config.load()
    models = {MODEL: model}
    if config.random_baseline:
        models[RANDOM] = type(model).from_config(model.get_config())
    settings = {name: getattr(config, name) for name in ("method", "score", "calibrate", "batch_size")}
    results = []
    for name, each in models.items():
        for count in shots:
            asker = few_shot.Asker(each, tokenizer, template, length=config.sequence_length, **settings)
            by_seed = [
                _measured(asker, few_shot.Question, data, count, seed, f"{name}, {count} shots, seed {seed}")
                for seed in range(config.seed, config.seed + (config.seeds if count else 1))
            ]
            counts = {kind: getattr(asker, kind) for kind in ("dropped", "shortened", "unmatched")}
            results.append({"model": name, "shots": count, **_summary(by_seed), **counts})
    gold = [row.label for row in data.test]
    majority = linear.majority(np.array([row.label for row in data.train]), len(gold)).tolist()
    record = {
        "model_dir": str(folder),
        "file": config.test_file,
        "rows": len(gold),
        "task": config.task,
        "labels": dict(zip(data.labels, words)),
        **texts,
        **settings,
        "majority": prompts.figures(gold, majority, len(data.labels)),
        "results": results,
    }
    cli.show("\n".join(text_of(record)))
    if target is not None:
        with files.writing(target):
            files.atomic_write(target, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        cli.show(f"wrote {target}", file=sys.stderr)


def _target(config: FewShotConfig) -> pathlib.Path | None:
    """Returns the file to write."""
    if config.output is not None:
        path = pathlib.Path(config.output)
        if not path.absolute().parent.is_dir():
            raise UserError(f"--output={path}: its folder does not exist; create it")
        return path
    folder = pathlib.Path(config.model_dir)
    name = pathlib.Path(config.test_file.removesuffix(".gz")).stem
    return folder / f"few_shot-{name}.json" if (folder / "flags.cfg").exists() else None


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


@dataclasses.dataclass(frozen=True)
class _Data:
    """The rows of both files, and the labels."""

    labels: list[str]
    is_pair: bool
    train: list[Example]
    test: list[Example]

    @classmethod
    def read(cls, config: FewShotConfig) -> "_Data":
        columns = Columns(config.text_column, config.pair_column, config.label_column, config.delimiter)
        if config.task == CHOICE:
            return cls._choices(config, columns)
        train, test = (
            LabelledFile(getattr(config, flag), flag=flag, columns=columns, policy=config.bad_rows)
            for flag in ("train_file", "test_file")
        )
        if train.num_texts != test.num_texts or train.num_texts > 2:
            raise test.error(
                f"has {test.num_texts} texts in a row, but the training file {train.num_texts}; specify the columns"
            )
        labels = labelled.labels_of(train)
        labelled.check_classes(train, labels)
        test.expect(labels)
        index = {label: i for i, label in enumerate(labels)}

        def examples(file: LabelledFile, count: int | None) -> list[Example]:
            rows = file.rows() if count is None else iter(sample(file.rows(), count))
            return [Example(row.texts, index[str(row.label)]) for row in rows]

        for file in (train, test):
            cli.show(file.describe(), file=sys.stderr)
        return cls(labels, train.num_texts == 2, examples(train, _POOL_ROWS), examples(test, config.max_rows))

    @classmethod
    def _choices(cls, config: FewShotConfig, columns: Columns) -> "_Data":
        """Reads files of --task=choice; labels are the positions of endings."""
        if config.label_words:
            raise UserError(f"--label_words={config.label_words}: does not apply to --task=choice; omit it")
        parts = []
        for flag, count in (("train_file", _POOL_ROWS), ("test_file", config.max_rows)):
            file = ChoiceFile(getattr(config, flag), flag=flag, columns=columns, policy=config.bad_rows)
            cli.show(file.describe(), file=sys.stderr)
            rows = file.rows() if count is None else iter(sample(file.rows(), count))
            parts.append([Example((row.context,), row.label, row.endings) for row in rows])
        most = max(len(row.words or ()) for part in parts for row in part)
        return cls([str(i) for i in range(most)], False, *parts)


def _measured(asker, question, data: _Data, shots: int, seed: int, doing: str) -> Mapping[str, float]:
    """Returns the figures of one seed."""
    pool = Pool(data.train)
    answers: list[int] = []
    with progress.bar(len(data.test), "row", doing) as bar:
        for first in range(0, len(data.test), _BLOCK):
            rows = data.test[first : first + _BLOCK]
            drawn = [pool.draw(shots, seed, first + i, row.texts) for i, row in enumerate(rows)]
            asked = [question(row.texts, tuple(each), row.words) for row, each in zip(rows, drawn, strict=True)]
            answers += asker.answers(asked)
            bar.update(len(rows))
    return prompts.figures([row.label for row in data.test], answers, len(data.labels))


def _summary(by_seed: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Returns the mean, the standard deviation (None for one seed) and the values of each figure."""
    found = {}
    for name in _FORMS:
        values = [figures[name] for figures in by_seed]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        found[name] = {"mean": statistics.fmean(values), "deviation": deviation, "values": values}
    return found


def text_of(record: Mapping[str, Any]) -> list[str]:
    """Returns the lines of the table, and of what was dropped."""
    labels = ", ".join(record["labels"].values())
    counted = f", {len(record['labels'])} labels: {labels[:200]}" if record["task"] == CLASSIFY else ""
    lines = [f"{record['rows']:,} rows{counted}", ""]
    # F1 of the positions of endings has no meaning.
    forms = {name: label for name, label in _FORMS.items() if record["task"] == CLASSIFY or name == "accuracy"}
    lines.append(f"{'':<28}" + "".join(f"{label:>20}" for label in forms.values()))
    cells = [f"{record['majority'][name]:.2%}" + " " * 9 for name in forms]
    lines.append(
        f"{'majority class' if counted else 'commonest position':<28}" + "".join(f"{cell:>20}" for cell in cells)
    )
    for each in record["results"]:
        cells = []
        for name in forms:
            deviation = each[name]["deviation"]
            spread = " " * 9 if deviation is None else f" ± {deviation:6.2%}".ljust(9)
            cells.append(f"{each[name]['mean']:.2%}{spread}")
        label = f"{each['model']}, {each['shots']} shot{'s' * (each['shots'] != 1)}"
        lines.append(f"{label:<28}" + "".join(f"{cell:>20}" for cell in cells))
    notes = {
        "dropped": "examples were dropped from prompts that are longer than the model reads",
        "shortened": "texts were cut, because they are longer than the model reads",
        "unmatched": "completions contain no label",
    }
    for each in record["results"]:
        for kind, words in notes.items():
            if each[kind]:
                lines.append(f"{each['model']}, {each['shots']} shots: {each[kind]:,} {words}")
    return lines


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
