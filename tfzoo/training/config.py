"""TrainConfig: everything that determines a training run, as one frozen dataclass. Does not import TensorFlow.

The flags of `python -m tfzoo.train` are derived from it, with their names, types, bounds, help and order.
"""

import dataclasses
import math
import os
import pathlib
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, files, options
from tfzoo.data.files import POLICIES
from tfzoo.data.tokenized import TOKENIZERS
from tfzoo.errors import UserError
from tfzoo.options import Checked, option
from tfzoo.tasks import GROUP
from tfzoo.training import distribution, layerwise, registry, stages

_MOST_TOKENS = 2**31 - 1  # Of a batch, whose elements TensorFlow counts in int32.
OPTIMIZERS = ("adamw", "muon", "lamb", "adafactor", "sgd", "lars")
FALLING = ("linear", "cosine", "trapezoidal")  # Schedules that end at a final learning rate.
SCHEDULES = (*FALLING, "inverse_sqrt", "constant")
# Headings of --help.
_COMMON, _DATA, _MODEL = "Common options", "Text and tokenizer", "Model and precision"
_OPTIMIZER, _DEVICES = "Optimization", "Devices (docs/distributed.md)"
_CADENCE, _FAULTS = "Logging, evaluation and checkpoints", "Error handling"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig(Checked):
    """Which text is read and how it is tokenized."""

    corpus: str = option(
        "docstrings",
        '"docstrings" (the documentation of the installed Python packages), or a path or glob of .txt, .jsonl, .txt.gz '
        "or .jsonl.gz files. Parallel text: FIRST+SECOND (two files whose lines correspond), .tsv or .mo files, or "
        "gettext:en-LANGUAGE (the message catalogues of the installed programs; gettext:LANGUAGE reads the "
        "translations alone). Several sources are separated by commas. A folder written by tfzoo.corpus pack is a "
        "corpus by itself.",
        group=_COMMON,
    )
    corpus_weights: str | None = option(
        None,
        "Proportions in which rows of the sources in --corpus are read, such as 3,1; by default, those of their sizes. "
        "A source of weight 0 is only evaluated.",
        group=_DATA,
        by_stage=True,
    )
    corpus_temperature: float = option(
        1.0,
        "Read the sources in --corpus in proportion to size ** (1 / temperature): values above 1 repeat small sources "
        "more often.",
        group=_DATA,
        low=1.0,
    )
    text_field: str = option("text", "Field of each .jsonl object that contains the text.", group=_DATA)
    raw_text: bool = option(
        False,
        "Read .txt files verbatim, including line endings and blank lines, and hold out their end.",
        group=_DATA,
    )
    held_out: float = option(0.02, "Fraction of the files' text to hold out.", group=_DATA, low=0.0001, high=0.9)
    bad_text: str = option(
        "strict",
        "Handling of invalid input: strict stops with an error, replace repairs it, skip omits it; the last two count "
        "it in corpus.json.",
        group=_DATA,
        choices=POLICIES,
    )
    cache_dir: str | None = option(
        None,
        "Cache folder for cleaned and tokenized text; by default $XDG_CACHE_HOME/tfzoo or ~/.cache/tfzoo.",
        group=_DATA,
        changeable=True,
    )
    tokenizer: str = option(
        "wordpiece",
        "Type of tokenizer to train on the corpus.",
        group=_DATA,
        choices=TOKENIZERS,
    )
    tokenizer_dir: str | None = option(
        None, "Folder of an existing tokenizer to use instead of training one.", group=_DATA
    )
    vocab_file: str | None = option(
        None, "An existing vocab.txt to use instead of training a WordPiece vocabulary.", group=_DATA
    )
    vocab_size: int = option(
        8192, "Vocabulary size of a newly trained tokenizer.", group=_DATA, low=100, high=1_000_000
    )
    lowercase: bool = option(True, "WordPiece: lower-case the text and strip accents.", group=_DATA)
    special_tokens: tuple[str, ...] = option(
        (),
        "byte_level, sentencepiece: special tokens to add to a newly trained tokenizer, such as "
        "<fim_prefix>,<fim_suffix>,<fim_middle>; may be repeated.",
        group=_DATA,
    )

    @property
    def cache_folder(self) -> pathlib.Path:
        """cache_dir, or the user's cache folder."""
        return pathlib.Path(os.path.expanduser(self.cache_dir)) if self.cache_dir else files.cache_folder()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(CorpusConfig):
    """Configuration of a training run.

    Options that do not affect the result, such as folders and logging intervals, are declared `changeable`: a resumed
    run may use different values.

    Raises:
      UserError: a value is out of bounds; the message names the option, its value and the allowed values.
    """

    run_dir: str = option(
        dataclasses.MISSING,
        "Folder of the run; a run that is already in it is resumed.",
        group=_COMMON,
        changeable=True,
    )
    model: str | None = option(
        None,
        "Name of the model, such as bert_small. By default the model of --init_from, or else bert_tiny.",
        group=_COMMON,
    )
    overrides: tuple[str, ...] = option(
        (),
        "Model config fields to override, such as num_layers=4,dropout=0.0; may be repeated.",
        group=_COMMON,
    )
    init_from: str | None = option(
        None,
        "Run folder, Hugging Face folder or hf://NAME[@REVISION] whose weights initialize the model, matched by name. "
        "Its tokenizer is used unless --tokenizer_dir, --vocab_file or --new_tokenizer specifies another: then the "
        "embeddings of tokens that both have are copied, and that of a new token is the mean of its old pieces'. "
        "Additional positions repeat the source's. flags.cfg records the commit.",
        group=_COMMON,
    )
    new_tokenizer: bool = option(
        False,
        "With --init_from: use a tokenizer that is trained on the corpus (--tokenizer, --vocab_size), or that of a "
        "packed corpus, instead of the source's.",
        group=_DATA,
    )
    objective: str = option("masked_lm", "Pre-training objective.", group=_COMMON, choices=registry.OBJECTIVES)
    task: str | None = option(
        None, "Fine-tuning task, instead of an objective.", group=_COMMON, choices=tuple(registry.TASKS)
    )
    train_file: str | None = option(
        None, "Labelled file to fine-tune on; the task's page in docs/ describes its formats.", group=GROUP
    )
    validation_file: str | None = option(
        None,
        "Labelled file to evaluate on, which selects the best checkpoint; without one, every tenth row of --train_file "
        "is held out.",
        group=GROUP,
    )
    bad_rows: str = option(
        "strict",
        "Handling of unsuitable rows of labelled files: strict stops with an error, skip omits and counts them.",
        group=GROUP,
        choices=("strict", "skip"),
    )
    epochs: float | None = option(
        None,
        "With --task: passes over the training rows, instead of --steps; 3 by default.",
        group=GROUP,
        low=0.01,
        changeable=True,
    )
    length_batches: bool = option(
        True,
        "With --task: put rows of similar length into a batch, and pad them to the longest; otherwise, rows are padded "
        "to --sequence_length, as TPUs require.",
        group=GROUP,
    )
    steps: int = option(
        None,
        "Total number of updates; 1000 by default, with --task as many as --epochs requires.",
        group=_COMMON,
        low=1,
        changeable=True,
    )
    batch_size: int = option(
        32, "Rows per update, summed over all replicas.", group=_COMMON, low=1, high=1_000_000, by_stage=True
    )
    sequence_length: int = option(128, "Tokens per row.", group=_COMMON, low=8, high=1_000_000, by_stage=True)
    stages: str = option(
        "",
        "Changes of --sequence_length, --batch_size or --corpus_weights after a number of updates, such as "
        "9000:sequence_length=512,batch_size=8; white space separates several stages.",
        group=_COMMON,
    )
    learning_rate: float = option(
        None,
        "Peak learning rate; by default 1e-3, and with --init_from that of the task: 1e-4, or 2e-5 for "
        "--similarity_loss=cosent.",
        group=_COMMON,
        low=0.0,
    )
    seed: int = option(
        0,
        "Random seed of the initial weights, the data order, the masks and dropout.",
        group=_COMMON,
        low=0,
        high=2**31 - 1,
    )
    resume: bool = option(
        True,
        "Resume the run in --run_dir; with --noresume, a folder that already contains a run is an error.",
        group=_COMMON,
        changeable=True,
    )
    precision: str = option(
        "float32",
        "Computation dtype; weights are stored in float32.",
        group=_MODEL,
        choices=("float32", "bfloat16", "float16"),
    )
    remat: str = option(
        "none",
        "Recompute the activations of each block in the backward pass to save memory.",
        group=_MODEL,
        choices=("none", "block"),
        changeable=True,
    )
    optimizer: str = option("adamw", "Optimizer.", group=_OPTIMIZER, choices=OPTIMIZERS)
    matrix_rate: float = option(
        1.0,
        "muon: learning rate of the blocks' matrices, as a multiple of --learning_rate.",
        group=_OPTIMIZER,
        low=0.01,
        high=100.0,
    )
    schedule: str = option(
        "linear",
        "Learning-rate schedule after warmup.",
        group=_OPTIMIZER,
        choices=SCHEDULES,
    )
    final_learning_rate: float = option(
        0.0, "Final learning rate of linear, cosine and trapezoidal schedules.", group=_OPTIMIZER, low=0.0
    )
    decay_steps: int = option(
        0,
        "Number of updates at the end over which the trapezoidal schedule falls; 0 is a fifth of --steps.",
        group=_OPTIMIZER,
        low=0,
    )
    warmup_steps: int = option(
        None,
        "Number of updates over which the learning rate rises linearly from 0; 100 by default, with --task a tenth of "
        "all.",
        group=_OPTIMIZER,
        low=0,
    )
    weight_decay: float = option(
        0.01,
        "Decoupled weight decay of matrices; biases and normalization gains are not decayed.",
        group=_OPTIMIZER,
        low=0.0,
    )
    layer_decay: float = option(
        1.0,
        "Layer-wise decay of the learning rate: each block has this factor times the rate of the one above it, the "
        "highest block this factor times the rate of the heads, and the embeddings the lowest rate.",
        group=_OPTIMIZER,
        low=0.01,
        high=1.0,
    )
    freeze: str = option(
        "",
        "Parts that are not trained: embeddings, layers:N (the first N blocks), or embeddings,layers:N.",
        group=_OPTIMIZER,
    )
    beta_1: float = option(
        0.9,
        "Decay rate of the first moment; momentum of sgd and lars.",
        group=_OPTIMIZER,
        low=0.0,
        high=0.9999,
    )
    beta_2: float = option(0.999, "Decay rate of the second moment.", group=_OPTIMIZER, low=0.0, high=0.999999)
    clip_norm: float = option(1.0, "Global-norm clip; 0 disables.", group=_OPTIMIZER, low=0.0)
    clip_each: float = option(
        0.0, "Norm clip of each variable's gradient, applied before --clip_norm; 0 disables.", group=_OPTIMIZER, low=0.0
    )
    ema_decay: float = option(
        0.0,
        "Decay rate of an exponential moving average of the weights; the average is evaluated, loaded and exported "
        "in place of the weights. 0 disables.",
        group=_OPTIMIZER,
        low=0.0,
        high=0.999999,
    )
    strategy: str = option(
        "default", "tf.distribute strategy.", group=_DEVICES, choices=distribution.STRATEGIES, changeable=True
    )
    worker_timeout: float = option(
        1800.0,
        "Seconds to wait for the other tasks of TF_CONFIG to start.",
        group=_DEVICES,
        low=1.0,
        high=1e6,
        changeable=True,
    )
    num_devices: int = option(
        0,
        "mirrored: number of GPUs, 0 for all; on a machine without GPUs, number of virtual CPU devices.",
        group=_DEVICES,
        low=0,
        changeable=True,
    )
    tpu: str = option(
        "", "tpu: name or address of the TPU; by default, the TPU attached to this VM.", group=_DEVICES, changeable=True
    )
    accumulation: int = option(
        1,
        "Microbatches per update: each replica computes its part of the batch in this many steps.",
        group=_DEVICES,
        low=1,
        changeable=True,
    )
    steps_per_call: int = option(
        10, "Maximum number of updates per call of the compiled training loop.", group=_DEVICES, low=1, changeable=True
    )
    log_every: int = option(10, "Updates between lines in metrics.jsonl.", group=_CADENCE, low=1, changeable=True)
    evaluate_every: int = option(
        None,
        "Updates between evaluations; 500 by default, with --task an epoch.",
        group=_CADENCE,
        low=1,
        changeable=True,
    )
    evaluate_batches: int = option(
        None,
        "Batches per evaluation of each source, 0 for all; 50 by default, with --task all.",
        group=_CADENCE,
        low=0,
        changeable=True,
    )
    checkpoint_every: int = option(
        None,
        "Updates between checkpoints; 500 by default, with --task an epoch.",
        group=_CADENCE,
        low=1,
        changeable=True,
    )
    early_stopping: int = option(
        0,
        "End the run after this many consecutive evaluations without an improvement; 0 disables.",
        group=_CADENCE,
        low=0,
        changeable=True,
    )
    best_metric: str | None = option(
        None, "Figure that selects the best checkpoint, instead of that of the objective or task.", group=_CADENCE
    )
    keep_checkpoints: int = option(
        2, "Number of newest checkpoints to keep, in addition to the best one.", group=_CADENCE, low=1, changeable=True
    )
    peak_tflops: float = option(
        0.0,
        "Combined peak TFLOP/s of all devices; if set, model FLOPs utilization (mfu) is logged.",
        group=_CADENCE,
        low=0.0,
        changeable=True,
    )
    on_nonfinite: str = option(
        "stop",
        "Reaction to a non-finite loss or gradient: stop ends the run; skip omits that update; rollback returns to the "
        "newest checkpoint and skips the batches since then.",
        group=_FAULTS,
        choices=("stop", "skip", "rollback"),
        changeable=True,
    )
    max_nonfinite: int = option(
        10,
        "Maximum number of consecutive non-finite updates; one more ends the run.",
        group=_FAULTS,
        low=0,
        changeable=True,
    )
    max_bad_rows: int = option(
        0, "Maximum number of unreadable rows to skip; one more ends the run.", group=_FAULTS, changeable=True
    )
    objective_options: Any = None  # The Options of the objective or task; None means its defaults.

    def __post_init__(self) -> None:
        self._fill_in_defaults()
        super().__post_init__()
        if self.batch_size * self.sequence_length > _MOST_TOKENS:
            raise UserError(
                f"--batch_size={self.batch_size}: times --sequence_length={self.sequence_length} is more than "
                f"{_MOST_TOKENS:,} tokens; lower one of the two"
            )
        if self.new_tokenizer and not self.init_from:
            raise UserError("--new_tokenizer: only applies with --init_from; omit it")
        for name in ("tokenizer_dir", "vocab_file"):
            if self.new_tokenizer and getattr(self, name):
                raise UserError(f"--new_tokenizer: contradicts --{name}={getattr(self, name)}; omit one of the two")
        if not self.task:
            self._check_only_with_task()
        elif self.epochs and self.steps:
            raise UserError(f"--epochs={self.epochs:g}: contradicts --steps={self.steps}; omit one of the two")
        cls = self.learner.Options
        if self.objective_options is None:
            object.__setattr__(self, "objective_options", cls())
        if type(self.objective_options) is not cls:
            raise UserError(
                f"objective_options={self.objective_options}: must be an instance of the Options of the "
                f"{_kind_of(self.task, self.objective)}"
            )
        layerwise.parse(self.freeze)
        if self.stages:
            if self.task:
                raise UserError(f"--stages={self.stages}: does not apply to --task; omit it")
            stages.stages_of(self)

    @property
    def learner(self) -> Any:
        """The class of the task, or of the objective."""
        return registry.find(self.task or self.objective)

    def _fill_in_defaults(self) -> None:
        """Sets the options whose default depends on other options. With a task, the number of rows determines those
        that remain None."""
        defaults: dict[str, Any] = dict(steps=1000, warmup_steps=100, evaluate_every=500, checkpoint_every=500)
        defaults |= dict(evaluate_batches=50, learning_rate=1e-3)
        if self.task:
            defaults = dict(evaluate_batches=0, epochs=None if self.steps else 3.0)
            defaults["learning_rate"] = self.learner.default_learning_rate(self.objective_options, bool(self.init_from))
        if not self.init_from:
            defaults["model"] = "bert_tiny"
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check_only_with_task(self) -> None:
        for name in ("train_file", "validation_file", "epochs"):
            if getattr(self, name) is not None:
                raise UserError(f"--{name}={getattr(self, name)}: applies only with --task; add it, or omit this flag")

    def for_rows(self, count: int) -> "TrainConfig":
        """Returns the config of a task with the options that depend on the number of its training rows."""
        steps = self.steps or max(1, math.ceil((self.epochs or 0) * count / self.batch_size))
        every = min(steps, math.ceil(count / self.batch_size))  # An epoch.
        values: dict[str, Any] = dict(warmup_steps=steps // 10, evaluate_every=every, checkpoint_every=every)
        values = {name: value for name, value in values.items() if getattr(self, name) is None}
        return dataclasses.replace(self, steps=steps, epochs=None, **values)

    @classmethod
    def define_flags(cls, flags: absl_flags.FlagValues) -> None:
        """Defines the flags of all options, including those of all objectives and tasks; common options come first."""
        for field in options.fields(cls):
            if field.metadata["group"] == _COMMON:
                options.define_flag(flags, field)
        registry.define_flags(flags)
        for group in (GROUP, None):
            for field in options.fields(cls):
                if field.metadata["group"] == group or (group is None and field.name not in flags):
                    options.define_flag(flags, field)

    @classmethod
    def from_flags(cls, flags: absl_flags.FlagValues) -> "TrainConfig":
        """Returns the config of parsed flags."""
        values = options.values_of(flags, cls)
        options_class = registry.find(values["task"] or values["objective"]).Options
        return cls(**values, objective_options=options_class(**options.values_of(flags, options_class)))

    def to_flags(self) -> absl_flags.FlagValues:
        """Returns flags with the values of this config; options of other objectives have their defaults."""
        flags = absl_flags.FlagValues()
        self.define_flags(flags)
        for name, value in self.values().items():
            flags[name].value = list(value) if isinstance(value, tuple) else value
        flags.mark_as_parsed()
        return flags

    @classmethod
    def read(cls, path: str | os.PathLike, run_dir: str) -> "TrainConfig":
        """Reads a config that was written by `write`.

        Raises:
          UserError: the file cannot be read, or contains an unknown flag or an invalid value.
        """
        flags = absl_flags.FlagValues()
        cls.define_flags(flags)
        cli.parse(flags, [f"--flagfile={path}", f"--run_dir={run_dir}"])
        return cls.from_flags(flags)

    def write(self, path: str | os.PathLike) -> None:
        """Writes a flagfile that reproduces the run in any folder."""
        leave_out = ["run_dir", "resume", "cache_dir"]
        if self.task is not None:  # A task has no objective, and --objective contradicts --task.
            leave_out.append("objective")
        cli.write_flags(self.to_flags(), path, leave_out)

    def values(self) -> dict[str, Any]:
        """Returns every option and its value, including those of the objective."""
        return {field.name: getattr(self, field.name) for field in options.fields(type(self))} | {
            field.name: getattr(self.objective_options, field.name)
            for field in options.fields(type(self.objective_options))
        }

    def given(self) -> dict[str, Any]:
        """Returns the options that differ from their defaults, with their values."""
        deciding = dict(objective="masked_lm", task=None, init_from=None)  # Other defaults depend on these.
        own = {name: getattr(self, name) for name in deciding}
        defaults = TrainConfig(run_dir=self.run_dir, **own).values() | deciding
        return {name: value for name, value in self.values().items() if value != defaults[name]}

    def replace(self, **values: Any) -> "TrainConfig":
        """Returns a copy of the config with other values, which may include options of the objective.

        Raises:
          UserError: an option is unknown, or a value is out of bounds.
        """
        task, objective = values.get("task", self.task), values.get("objective", self.objective)
        options_class = registry.find(task or objective).Options
        general_names = {field.name for field in options.fields(type(self))}
        objective_names = {field.name for field in options.fields(options_class)}
        if unknown := values.keys() - general_names - objective_names:
            raise UserError(f"{', '.join(sorted(unknown))}: is not an option of the {_kind_of(task, objective)}")
        general = {name: value for name, value in values.items() if name in general_names}
        specific = {name: value for name, value in values.items() if name in objective_names}
        same_class = type(self.objective_options) is options_class
        current: Any = self.objective_options if same_class else options_class()
        return dataclasses.replace(self, **general, objective_options=dataclasses.replace(current, **specific))


def _kind_of(task: str | None, objective: str) -> str:
    return f"task {task}" if task else f"objective {objective}"
