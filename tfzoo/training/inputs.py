"""The inputs of a run: corpus, tokenizer, rows and objective, and the checks that they are compatible."""

import dataclasses
import os
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfzoo import config as config_lib
from tfzoo import hub, json_files, lazy, options
from tfzoo.data import mixture
from tfzoo.data.corpus import load_corpus
from tfzoo.data.packed import MANIFEST, PARTS, PackedFolder
from tfzoo.data.tokenized import TokenizedCorpus, cached, cached_tokenizer
from tfzoo.errors import UserError
from tfzoo.json_files import Field
from tfzoo.objectives.objective import Objective
from tfzoo.training import registry, stages
from tfzoo.training.config import CorpusConfig, TrainConfig
from tfzoo.training.stages import Stage

pipeline = lazy.module("tfzoo.data.pipeline")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Training rows and held-out rows of a stage, and everything they are made from. `corpus` is a Corpus or a
    PackedFolder."""

    stage: Stage
    corpus: Any
    tokenizer: Any
    objective: Objective
    page: types.ModuleType  # The module of the model's family.
    model_name: str  # The name of the model or, if it is that of --init_from, of its family.
    model_config: config_lib.TransformerConfig
    train_rows: Any
    held_out_rows: Any
    train_ids: Any  # int32 [N], the token ids of the training text.
    held_out_ids: Any

    @property
    def config(self) -> TrainConfig:
        """The config of the stage."""
        return self.stage.config

    def training_batches(
        self, context, *, first_step: int, passed_over: int, places: dict[int, tuple[int, int]]
    ) -> Any:
        """Returns the batches from `first_step`, the number of updates in this stage before, to the end of the stage,
        after `passed_over` skipped batches; `places` is described in pipeline.training_batches."""
        return pipeline.training_batches(
            self.train_rows,
            self.objective,
            batch_size=self.config.batch_size,
            seed=self.stage.seed,
            first_step=first_step + passed_over,
            num_steps=self.config.steps + passed_over,
            places=places,
            context=context,
            max_bad_rows=self.config.max_bad_rows,
            patterns=self.objective.patterns,
            progress=(self.stage.begin / self.stage.last, self.stage.end / self.stage.last),
        )

    def evaluation_batches(self, num_replicas: int, context=None) -> Any:
        """Returns the batches of an evaluation, one source after the other. They need no more memory than a training
        step: each contains only a part of a batch."""
        config, (batch_size, num_batches) = self.config, self._evaluation_sizes(num_replicas)
        batches: Any = None
        first_number = 0
        for rows in _sources(self.held_out_rows).values():
            of_source = pipeline.evaluation_batches(
                rows,
                self.objective,
                batch_size=batch_size,
                seed=config.seed,
                num_batches=num_batches,
                context=context or pipeline.ALONE,
                max_bad_rows=config.max_bad_rows,
                first_number=first_number,
            )
            batches = of_source if batches is None else batches.concatenate(of_source)
            first_number += len(rows)
        return batches.cache()

    def evaluated_sources(self, num_replicas: int) -> dict[str, int]:
        """Returns how many batches of `evaluation_batches` belong to each source; empty if there is only one."""
        batch_size, num_batches = self._evaluation_sizes(num_replicas)
        sources = _sources(self.held_out_rows)
        return {name: min(-(-len(rows) // batch_size), num_batches) for name, rows in sources.items() if name}

    def baselines(self, batches: list, num_replicas: int) -> dict[str, dict[str, float]]:
        """Returns the objective's baselines on the batches of `evaluation_batches`, as dicts of numpy arrays; for
        several sources, also FIGURE/NAME for the batches of each."""
        train_ids = np.asarray(self.train_ids)

        def baselines_of(part):
            return self.objective.baselines(train_ids, part) | self.objective.row_baselines(self.train_rows, part)

        found = baselines_of(batches)
        for name, count in self.evaluated_sources(num_replicas).items():
            of_source, batches = batches[:count], batches[count:]
            for baseline, figures in baselines_of(of_source).items():
                found[baseline] |= {f"{figure}/{name}": value for figure, value in figures.items()}
        return found

    def epochs(self, num_batches: int) -> dict[str, float]:
        """Returns how often each source has been read after `num_batches` batches; empty if there is only one."""
        mixed = isinstance(self.train_rows, mixture.MixedRows)
        return self.train_rows.epochs(num_batches * self.config.batch_size) if mixed else {}

    def _evaluation_sizes(self, num_replicas: int) -> tuple[int, int]:
        """Returns the batch size of an evaluation, and the maximum number of batches of each source."""
        config, share = self.config, self.config.accumulation * num_replicas
        count = max(len(rows) for rows in _sources(self.held_out_rows).values())
        batch_size = -(-min(config.batch_size, count) // share) * num_replicas
        return batch_size, (config.evaluate_batches or -(-count // config.batch_size)) * config.accumulation

    def summary(self) -> str:
        """Returns a readable summary of the amount of data."""
        config = self.config
        amount = (
            f"{len(self.train_ids):,} training tokens in {len(self.train_rows):,} rows "
            f"({self.train_rows.padding_share:.1%} padding), {len(self.held_out_ids):,} held-out tokens"
        )
        epochs = self.epochs(config.steps)
        if not epochs:
            return f"{amount}; {config.steps * config.batch_size / len(self.train_rows):.1f} epochs"
        shares = self.train_rows.shares
        return amount + "".join(
            f"\n  {name}: {len(rows):,} rows, {shares[name]:.1%} of the rows of a batch, {epochs[name]:.2f} epochs"
            for name, rows in self.train_rows.sources.items()
        )


def _sources(rows) -> dict[str, Any]:
    """Returns the rows of each source by name; a single source has the name ""."""
    return rows.sources if isinstance(rows, mixture.MixedRows) else {"": rows}


def open_inputs(config: TrainConfig, packed: PackedFolder | None, resuming: bool, num_replicas: int) -> list[Inputs]:
    """Reads the text and the tokenizer, and creates the rows of each stage.

    Args:
      config: of the run.
      packed: the folder of packed rows, if --corpus names one.
      resuming: the run is resumed, so that the text and the tokenizer must be those that it started with.
      num_replicas: over which a batch is divided.

    Raises:
      UserError: something cannot be read, or does not fit the model or the objective.
    """
    resumed = pathlib.Path(config.run_dir) if resuming else None
    name, page, model_config = read_model_config(config, resumed)
    corpus, tokenizer = read_corpus(config, resumed, packed)
    model_config = with_overrides(config, model_config, vocab_size=tokenizer.vocab_size)
    found: list[Inputs] = []
    for stage in stages.stages_of(config):
        try:
            if packed:
                _check_packed(packed, stage.config)
            check_sizes(stage.config, model_config, tokenizer, num_replicas)
            # Stages with the same rows share them.
            same = next((other for other in found if _has_same_rows(other.config, stage.config)), None)
            if same:
                found.append(dataclasses.replace(same, stage=stage))
                continue
            objective = make_objective(stage.config, tokenizer, page)
            objective.check_model(name, page)
            objective.check_config(name, model_config)
            rows, token_ids = read_rows(stage.config, corpus, tokenizer, objective)
        except UserError as error:
            raise stages.at_step(stage.begin, error) if stage.begin else error from None
        found.append(Inputs(stage, corpus, tokenizer, objective, page, name, model_config, *rows, *token_ids))
    return found


def _has_same_rows(one: TrainConfig, other: TrainConfig) -> bool:
    """Returns whether two stages of a run, which may also differ in their numbers of updates, have the same rows."""
    return one.replace(batch_size=1, steps=1) == other.replace(batch_size=1, steps=1)


def _check_packed(packed: PackedFolder, config: TrainConfig) -> None:
    """Raises UserError if a stage changes an option of the rows of a packed folder."""
    for name, value in packed.flags.items():
        now = config.values().get(name, value)
        if now != value:
            raise UserError(
                f"{name}={now}: --corpus={packed.folder} was packed with --{name}={value}; omit it, or specify the text"
            )


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
    _check_decided(folder)
    for name, value in folder.flags.items():
        if name in given and given[name] != value:
            raise UserError(
                f"--{name}={given[name]}: {folder.folder} was packed with --{name}={value}; omit it, or pack the text "
                "again"
            )
    try:
        return config.replace(**folder.flags), folder
    except UserError as error:
        raise UserError(f"{folder.folder / MANIFEST}: flags: {error}; pack the text again") from None


# The options that packing decides, in addition to those of the objective.
_DECIDED = {"text_field", "raw_text", "held_out", "bad_text", "objective", "sequence_length"}
_DECIDED |= {"tokenizer", "vocab_size", "lowercase"}


def _check_decided(folder: PackedFolder) -> None:
    """Raises UserError if the manifest of a packed folder sets an option that packing does not decide."""
    where = f"{folder.folder / MANIFEST}: flags"
    json_files.check(folder.flags, {"objective": Field(str, choices=tuple(registry.OBJECTIVES), required=True)}, where)
    objective = registry.find(folder.flags["objective"])
    decided = {*_DECIDED, *options.names_with(objective.Options, "decides_rows")}
    if others := sorted(folder.flags.keys() - decided):
        raise UserError(f"{where}: {json_files.show(others[0])} is not decided by packing; pack the text again")


def read_model_config(config: TrainConfig, resumed: pathlib.Path | None = None):
    """Returns the name of the model, the module of its family and its config: those of --init_from if there is no
    --model.

    Args:
      config: of the run.
      resumed: the folder of the run that is resumed, if any; it is read instead of --init_from.

    Raises:
      UserError: a model or field is unknown, a value is out of bounds, or --init_from cannot be read.
    """
    from tfzoo import models

    if config.model is None and config.init_from is not None:
        from tfzoo.training import runs

        folder = resumed or hub.folder(config.init_from, "init_from")
        if not any((folder / file).exists() for file in (runs.CONFIG, "modules.json")):
            problem = f"contains no {runs.CONFIG}; specify a run folder or a Hugging Face folder"
            raise UserError(f"--init_from={config.init_from}: {problem}")
        name, page, model_config = runs.model_of(folder)
    else:
        name = config.model or "bert_tiny"
        page, model_config = models.find(name)
    return name, page, with_overrides(config, model_config)


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
        weights=config.corpus_weights,
        temperature=config.corpus_temperature,
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
        mixture.parse_weights(config.corpus_weights, 1)
        packed.verify()
    corpus: Any = packed or read_text(config)
    if resumed:
        before = fingerprint_of(resumed / "corpus.json")
        if before != corpus.fingerprint:
            raise UserError(
                f"--corpus={config.corpus}: the text differs from the one that this run started with "
                f"(fingerprint {before[:12]}, now {corpus.fingerprint[:12]}); "
                "restore the packages or files, or specify a new --run_dir"
            )
        return corpus, runs.tokenizer_of(resumed)
    existing, name = existing_tokenizer(config)
    special_tokens = [token for given in config.special_tokens for token in given.split(",")]
    if packed:
        if existing is not None:
            without = " without --new_tokenizer" if name == "init_from" else ""
            packed.check_tokenizer(existing, f"--{name}={getattr(config, name)}{without}")
        existing, name = packed.tokenizer, "corpus"
    if existing is not None:
        for token in special_tokens:
            if token not in existing.vocab:
                raise UserError(
                    f"--special_tokens={','.join(special_tokens)}: the tokenizer of --{name}={getattr(config, name)} "
                    f"has no token {token}; omit the flag, or train a new tokenizer"
                )
        return corpus, existing
    return corpus, cached_tokenizer(
        corpus, config.tokenizer, config.vocab_size, config.lowercase, config.cache_folder, special_tokens
    )


def fingerprint_of(path: pathlib.Path) -> str:
    """Returns the fingerprint of the text that a run started with."""
    try:
        record = json_files.read(path)
        json_files.check(record, {"fingerprint": Field(str, required=True)}, path)
    except UserError as error:
        raise UserError(f"{error}; or specify a new --run_dir") from None
    return record["fingerprint"]


def existing_tokenizer(config: CorpusConfig) -> tuple[Any, str]:
    """Returns an existing tokenizer and the option that names it; (None, "") if one is to be trained."""
    from tfzoo import text
    from tfzoo.text.wordpiece import WordPiece
    from tfzoo.training import runs

    if config.vocab_file:
        return WordPiece.from_file(config.vocab_file, config.lowercase), "vocab_file"
    if config.tokenizer_dir:
        return text.load(config.tokenizer_dir), "tokenizer_dir"
    source = getattr(config, "init_from", None)  # A plain CorpusConfig has neither option.
    if source and not getattr(config, "new_tokenizer", False):
        source = hub.folder(source, "init_from")
        return runs.tokenizer_of(source) if runs.is_run(source) else text.load(source), "init_from"
    return None, ""


def make_objective(config: TrainConfig, tokenizer, page: types.ModuleType | None = None) -> Objective:
    """Creates the objective that the config names, for the models of a family's module if that is given."""
    return registry.make(config.objective, config.objective_options, tokenizer, config.sequence_length, page)


def tokenized_parts(config: CorpusConfig, corpus, tokenizer) -> list[TokenizedCorpus]:
    """Returns the token ids of a Corpus: [training part, held-out part]."""
    return [
        cached(documents, tokenizer, corpus.fingerprint + part, config.cache_folder)
        for part, documents in zip(PARTS, (corpus.train, corpus.held_out), strict=True)
    ]


def read_rows(config: CorpusConfig, corpus, tokenizer, objective: Objective):
    """Returns the rows and token ids of a Corpus or a PackedFolder: ((train, held out), (train, held out)).

    Raises:
      UserError: a part is empty.
    """
    if isinstance(corpus, PackedFolder):
        return tuple(corpus.rows(part) for part in PARTS), tuple(corpus.token_ids(part) for part in PARTS)
    if not corpus.sources:
        return _rows_of(corpus, config, tokenizer, objective)
    rows_and_ids = [_rows_of(source, config, tokenizer, objective) for source in corpus.sources.values()]
    rows, token_ids = zip(*rows_and_ids, strict=True)
    weights = mixture.parse_weights(config.corpus_weights, len(rows))
    shares = mixture.shares_of([len(train) for train, _ in rows], weights, config.corpus_temperature)
    mixed = (
        mixture.MixedRows(dict(zip(corpus.sources, part, strict=True)), shares) for part in zip(*rows, strict=True)
    )
    return tuple(mixed), tuple(np.concatenate(part) for part in zip(*token_ids, strict=True))


def _rows_of(corpus, config: CorpusConfig, tokenizer, objective: Objective):
    """Returns the result of `read_rows` for a single source."""
    parts = tokenized_parts(config, corpus, tokenizer)
    rows = tuple(objective.rows(part) for part in parts)
    for name, part in zip(("training", "held-out"), rows, strict=True):
        if not len(part):
            raise UserError(f"--corpus={corpus.name}: its {name} part contains no words; provide more text")
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
