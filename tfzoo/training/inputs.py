"""The inputs of a run: corpus, tokenizer, rows and objective, and the checks that they are compatible."""

import dataclasses
import json
import os
import pathlib
import types
from collections.abc import Mapping
from typing import Any

from tfzoo import config as config_lib
from tfzoo import hub, lazy
from tfzoo.data.corpus import load_corpus
from tfzoo.data.packed import PARTS, PackedFolder
from tfzoo.data.tokenized import cached, cached_tokenizer
from tfzoo.errors import UserError
from tfzoo.objectives.objective import Objective
from tfzoo.training import registry
from tfzoo.training.config import CorpusConfig, TrainConfig

pipeline = lazy.module("tfzoo.data.pipeline")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Training rows and held-out rows, and everything they are made from. `corpus` is a Corpus or a PackedFolder."""

    config: TrainConfig
    corpus: Any
    tokenizer: Any
    objective: Objective
    page: types.ModuleType  # The module of the model's family.
    model_config: config_lib.TransformerConfig
    train_rows: Any
    held_out_rows: Any
    train_ids: Any  # int32 [N], the token ids of the training text.
    held_out_ids: Any

    def training_batches(
        self, context, *, first_step: int, passed_over: int, places: dict[int, tuple[int, int]]
    ) -> Any:
        """Returns the batches from `first_step` to the last step, after `passed_over` skipped batches; `places` is
        described in pipeline.training_batches."""
        return pipeline.training_batches(
            self.train_rows,
            self.objective,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            first_step=first_step + passed_over,
            num_steps=self.config.steps + passed_over,
            places=places,
            context=context,
            max_bad_rows=self.config.max_bad_rows,
        )

    def evaluation_batches(self, num_replicas: int, context=None) -> Any:
        """Returns the batches of an evaluation. They need no more memory than a training step: each contains only a
        part of a batch."""
        config, count = self.config, len(self.held_out_rows)
        share = config.accumulation * num_replicas
        return pipeline.evaluation_batches(
            self.held_out_rows,
            self.objective,
            batch_size=-(-min(config.batch_size, count) // share) * num_replicas,
            seed=config.seed,
            num_batches=(config.evaluate_batches or -(-count // config.batch_size)) * config.accumulation,
            context=context or pipeline.ALONE,
            max_bad_rows=config.max_bad_rows,
        ).cache()

    def summary(self) -> str:
        """Returns a readable summary of the amount of data."""
        config = self.config
        return (
            f"{len(self.train_ids):,} training tokens in {len(self.train_rows):,} rows "
            f"({self.train_rows.padding_share:.1%} padding), {len(self.held_out_ids):,} held-out tokens; "
            f"{config.steps * config.batch_size / len(self.train_rows):.1f} epochs"
        )


def open_inputs(config: TrainConfig, packed: PackedFolder | None, resuming: bool, num_replicas: int) -> Inputs:
    """Reads the text and the tokenizer, and creates the rows.

    Args:
      config: of the run.
      packed: the folder of packed rows, if --corpus names one.
      resuming: the run is resumed, so that the text and the tokenizer must be those that it started with.
      num_replicas: over which a batch is divided.

    Raises:
      UserError: something cannot be read, or does not fit the model or the objective.
    """
    page, model_config = read_model_config(config)
    run_dir = pathlib.Path(config.run_dir)
    corpus, tokenizer = read_corpus(config, run_dir if resuming else None, packed)
    model_config = with_overrides(config, model_config, vocab_size=tokenizer.vocab_size)
    check_sizes(config, model_config, tokenizer, num_replicas)
    objective = make_objective(config, tokenizer)
    objective.check_model(config.model, page)
    objective.check_config(config.model, model_config)
    rows, token_ids = read_rows(config, corpus, tokenizer, objective)
    return Inputs(config, corpus, tokenizer, objective, page, model_config, *rows, *token_ids)


def find_packed(config: TrainConfig, given: Mapping[str, Any]) -> tuple[TrainConfig, PackedFolder | None]:
    """Returns the config with the options that packing has fixed, and the packed folder, or None if --corpus is text.

    Args:
      config: of the run.
      given: the explicitly specified options, with their values.

    Raises:
      UserError: the folder contains no packed text, or an explicitly specified option contradicts it.
    """
    if not os.path.isdir(os.path.expanduser(config.corpus)):
        return config, None
    folder = PackedFolder.open(config.corpus)
    for name, value in folder.flags.items():
        if name in given and given[name] != value:
            raise UserError(
                f"--{name}={given[name]}: {folder.folder} was packed with --{name}={value}; omit it, or pack the text "
                "again"
            )
    return config.replace(**folder.flags), folder


def read_model_config(config: TrainConfig):
    """Returns the module of the model's family, and the model's config.

    Raises:
      UserError: a model or field is unknown, or a value is out of bounds.
    """
    from tfzoo import models

    page, model_config = models.find(config.model)
    return page, with_overrides(config, model_config)


def with_overrides(config: TrainConfig, model_config, **values):
    """Returns the model's config with `values` and with --overrides, which take precedence."""
    kind = type(model_config)
    overrides = config_lib.parse_overrides(",".join(config.overrides), kind)
    return config_lib.from_mapping(vars(model_config) | values | overrides, kind)


def read_text(config: CorpusConfig):
    """Reads the Corpus that --corpus names.

    Raises:
      UserError: the corpus cannot be read.
    """
    return load_corpus(
        config.corpus,
        cache_dir=config.cache_folder,
        text_field=config.text_field,
        policy=config.bad_text,
        raw=config.raw_text,
        held_out=config.held_out,
    )


def read_corpus(config: CorpusConfig, resumed: pathlib.Path | None = None, packed: PackedFolder | None = None):
    """Returns (corpus, tokenizer).

    Args:
      config: of the run.
      resumed: the folder of the run that is resumed, if any.
      packed: the packed folder that is the corpus, if any; its files are verified here.

    Raises:
      UserError: the text cannot be read, or differs from the text that the run started with.
    """
    from tfzoo.training import runs

    if packed:
        packed.verify()
    corpus: Any = packed or read_text(config)
    if resumed:
        before = _fingerprint(resumed / "corpus.json")
        if before != corpus.fingerprint:
            raise UserError(
                f"--corpus={config.corpus}: the text differs from the one that this run started with "
                f"(fingerprint {before[:12]}, now {corpus.fingerprint[:12]}); "
                "restore the packages or files, or specify a new --run_dir"
            )
        return corpus, runs.tokenizer_of(resumed)
    existing, name = _existing_tokenizer(config)
    if packed:
        if existing is not None:
            packed.check_tokenizer(existing, f"--{name}={getattr(config, name)}")
        return corpus, packed.tokenizer
    if existing is not None:
        return corpus, existing
    return corpus, cached_tokenizer(corpus, config.tokenizer, config.vocab_size, config.lowercase, config.cache_folder)


def _fingerprint(path: pathlib.Path) -> str:
    """Returns the fingerprint of the text that a run started with."""
    try:
        return json.loads(path.read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is missing or damaged; restore it, or specify a new --run_dir") from None


def _existing_tokenizer(config: CorpusConfig) -> tuple[Any, str]:
    """Returns an existing tokenizer and the option that names it; (None, "") if one is to be trained."""
    from tfzoo import text
    from tfzoo.text.wordpiece import WordPiece
    from tfzoo.training import runs

    if config.vocab_file:
        return WordPiece.from_file(config.vocab_file, config.lowercase), "vocab_file"
    if config.tokenizer_dir:
        return text.load(config.tokenizer_dir), "tokenizer_dir"
    source = getattr(config, "init_from", None)  # A plain CorpusConfig does not have it.
    if source:
        source = hub.folder(source, "init_from")
        return runs.tokenizer_of(source) if runs.is_run(source) else text.load(source), "init_from"
    return None, ""


def make_objective(config: TrainConfig, tokenizer) -> Objective:
    """Creates the objective that the config names."""
    return registry.make(config.objective, config.objective_options, tokenizer, config.sequence_length)


def read_rows(config: CorpusConfig, corpus, tokenizer, objective: Objective):
    """Returns the rows and token ids of a Corpus or a PackedFolder: ((train, held out), (train, held out)).

    Raises:
      UserError: a part is empty.
    """
    if isinstance(corpus, PackedFolder):
        return tuple(corpus.rows(part) for part in PARTS), tuple(corpus.token_ids(part) for part in PARTS)
    parts = [
        cached(documents, tokenizer, corpus.fingerprint + part, config.cache_folder)
        for part, documents in zip(PARTS, (corpus.train, corpus.held_out), strict=True)
    ]
    rows = tuple(objective.rows(part) for part in parts)
    for name, part in zip(("training", "held-out"), rows, strict=True):
        if not len(part):
            raise UserError(f"--corpus={config.corpus}: its {name} part contains no words; provide more text")
    return rows, tuple(part.token_ids for part in parts)


def check_sizes(config: TrainConfig, model_config, tokenizer, num_replicas: int) -> None:
    """Raises UserError if sizes that are valid by themselves are incompatible."""
    if config.sequence_length > model_config.max_positions:
        raise UserError(
            f"--sequence_length={config.sequence_length}: must not exceed the model's max_positions "
            f"({model_config.max_positions})"
        )
    if config.sequence_length > model_config.longest_row:
        raise UserError(
            f"--sequence_length={config.sequence_length}: must not exceed the product of the model's axial_shape "
            f"({model_config.longest_row}); increase it, such as --overrides=axial_shape=64:64"
        )
    if tokenizer.vocab_size != model_config.vocab_size:
        raise UserError(
            f"--overrides=vocab_size={model_config.vocab_size}: differs from the tokenizer's vocabulary size "
            f"({tokenizer.vocab_size}); omit it"
        )
    if config.batch_size % num_replicas:
        raise UserError(
            f"--batch_size={config.batch_size}: must be a multiple of the number of devices ({num_replicas})"
        )
    if config.batch_size // num_replicas % config.accumulation:
        shared = f", divided among {num_replicas} devices" if num_replicas > 1 else ""
        raise UserError(f"--accumulation={config.accumulation}: must divide --batch_size ({config.batch_size}{shared})")
