"""The folder of a run, which training writes and every other entry point reads.

flags.cfg       every flag except run_dir: python -m tfzoo.train --flagfile=flags.cfg reproduces the run
config.json     {"models": {"main": {"model": name, "heads": [names], "num_labels": count, "labels": [names],
                "pool": pooling, "config": fields of TransformerConfig, "embed": fields of EmbeddingConfig,
                "sentence": how texts are read, of a model with the head embed}}, "tokenizer": its fingerprint, "task":
                the fine-tuning task, if any, "run": a random id, which the run's checkpoints have as well}; other
                models, such as a teacher, have other roles than "main"
generation_config.json  of a task that writes texts: the decoding options of its evaluations, in Hugging Face's format
corpus.json     fingerprint and counts of the corpus, or of the labelled files
evaluation.json  of a fine-tuning run: the scores of the best checkpoint on the validation file (docs/finetuning.md)
init_from.json  with --init_from: names of the variables that were loaded, resized, new and unused
tokenizer/      in Hugging Face's layout: vocab.txt, or vocab.json and merges.txt, or spiece.model, ...
checkpoints/    the newest checkpoints; best -> the one with the best held-out figure
metrics.jsonl   one object per line; events/ for TensorBoard; loss.png
report.html     curves, scores, mistakes and configuration; written at the end
"""

import collections
import dataclasses
import json
import os
import pathlib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from tfzoo import config as config_lib
from tfzoo import files, hub, json_files, text
from tfzoo import models as models_lib
from tfzoo.errors import UserError, suggest
from tfzoo.json_files import Field, Fields
from tfzoo.models.record import FolderRecord, SentenceRecord
from tfzoo.objectives.objective import MAIN
from tfzoo.training import checkpoint
from tfzoo.weights import huggingface, sentence_transformers, table

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
_STRINGS = Field(list, items=Field(str))
_FIELDS = {
    "models": Field(dict, items=Field(dict), required=True),
    "tokenizer": Field(str),
    "task": Field(dict),
    "run": Field(str),
}
_TASK_FIELDS = {
    "name": Field(str, required=True),
    "pair": Field(bool),
    "sequence_length": Field(int, low=1),
    "problem_type": Field(str),
    "markers": _STRINGS,
    "prefix": Field(str),
    "no_answer_threshold": Field(float),
}
_MODEL_FIELDS = {
    "model": Field(str, required=True),
    "config": Field(dict, required=True),
    "heads": dataclasses.replace(_STRINGS, required=True),
    "num_labels": Field(
        int, low=1, high=1_000_000
    ),  # This field and the following ones are missing from files of earlier versions.
    "labels": _STRINGS,
    "pool": Field(str),
    "embed": Field(dict),
    "sentence": Field(dict),
}
_SENTENCE_FIELDS: Fields = {
    "max_length": Field(int, low=1),
    "lowercase": Field(bool, required=True, null=False),
    "prompts": Field(dict, items=Field(str), required=True, null=False),
    "default_prompt_name": Field(str),
    "similarity": Field(str),
}


def write_config(
    run_dir: str | os.PathLike,
    models: Mapping[str, Any],
    names: Mapping[str, str],
    tokenizer,
    task: Mapping[str, Any] | None = None,
    *,
    run_id: str | None = None,
) -> None:
    """Writes config.json.

    Args:
      run_dir: the run's folder.
      models: role -> nn.Model; if no role is requested, MAIN is loaded, or the first if there is no MAIN.
      names: role -> the name in CONFIGS that the model was built from.
      tokenizer: the tokenizer of the models; None omits its fingerprint.
      task: the record of a fine-tuning task: see `task_of`.
      run_id: the id of the run.
    """
    record: dict[str, Any] = {"models": {role: _describe(model, names[role]) for role, model in models.items()}}
    if tokenizer is not None:
        record["tokenizer"] = tokenizer.fingerprint()
    if task is not None:
        record["task"] = dict(task)
    if run_id is not None:
        record["run"] = run_id
    files.atomic_write(pathlib.Path(run_dir, CONFIG), json.dumps(record, indent=2) + "\n")


def write_generation_config(run_dir: str | os.PathLike, options: Mapping[str, Any]) -> None:
    """Writes generation_config.json, the decoding options of a run."""
    files.atomic_write(pathlib.Path(run_dir, GENERATION_CONFIG), json.dumps(dict(options), indent=2) + "\n")


def folder_record(folder: str | os.PathLike) -> FolderRecord:
    """Returns the files of a run or of a Hugging Face folder that specify how texts are generated.

    Raises:
      UserError: a file is damaged.
    """
    names = (GENERATION_CONFIG,) if is_run(folder) else (CONFIG, GENERATION_CONFIG)  # A run's config.json differs.
    found = {name: json_files.read(path) for name in names if (path := pathlib.Path(folder, name)).exists()}
    return FolderRecord(found.get(CONFIG, {}), found.get(GENERATION_CONFIG, {}))


def write_task(run_dir: str | os.PathLike, task: Mapping[str, Any]) -> None:
    """Replaces the record of the task in config.json, if it is another one."""
    path = pathlib.Path(run_dir, CONFIG)
    record = json_files.read(path)
    if record.get("task") != dict(task):
        files.atomic_write(path, json.dumps(record | {"task": dict(task)}, indent=2) + "\n")


def _describe(model, name: str) -> dict[str, Any]:
    embedding: dict[str, Any] = {}
    if "embed" in model.head_names:
        embedding["embed"] = dataclasses.asdict(model.embed)
        if model.record and model.record.sentence:
            sentence = dataclasses.asdict(model.record.sentence)
            embedding["sentence"] = {name: sentence[name] for name in _SENTENCE_FIELDS}
    return {
        "model": name,
        "heads": list(model.head_names),
        "num_labels": model.num_labels,
        "labels": list(model.labels),
        "pool": model.pool,
        "config": dataclasses.asdict(model.config),
        **embedding,
    }


def is_run(folder: str | os.PathLike) -> bool:
    """Returns whether a folder is that of a run, as opposed to a Hugging Face folder."""
    return pathlib.Path(folder, "flags.cfg").exists()


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.exists():
        raise UserError(f"--model_dir={folder}: contains no {CONFIG}; specify a run folder or a Hugging Face folder")
    record = json_files.read(path)
    if "models" not in record and "config" in record:  # The format of an earlier version, with a single model.
        tokenizer = {"tokenizer": record["tokenizer"]} if "tokenizer" in record else {}
        record = {"models": {MAIN: {key: record.get(key) for key in _MODEL_FIELDS}}} | tokenizer
    json_files.check(record, _FIELDS, path)
    if not record["models"]:
        raise UserError(f"{path}: lists no models; specify a folder written by tfzoo.train")
    if "task" in record:
        json_files.check(record["task"], _TASK_FIELDS, f"{path}: task")
    for role, entry in record["models"].items():
        json_files.check(entry, _MODEL_FIELDS, f"{path}: {role}")
    return record


def id_of(run_dir: str | os.PathLike) -> str | None:
    """Returns the id of a run; None for a run of an earlier version, without one."""
    return _read_config(pathlib.Path(run_dir)).get("run")


def roles(folder: str | os.PathLike) -> tuple[str, ...]:
    """Returns the roles of the models of a run; () for a folder that is not a run's."""
    return tuple(_read_config(pathlib.Path(folder))["models"]) if is_run(folder) else ()


def model_of(folder: pathlib.Path) -> tuple[str, types.ModuleType, config_lib.TransformerConfig]:
    """Returns the name of the main model of a run or a Hugging Face folder, its family's module and its config.

    Raises:
      UserError: the folder cannot be read.
    """
    if not is_run(folder):
        page, config = huggingface.page_and_config(folder)
        return page.Model.family, page, config
    record = _read_config(folder)
    entry = record["models"][_main_role(record)]
    page = _page_of(entry["model"])
    return entry["model"], page, config_lib.from_mapping(entry["config"], models_lib.config_class(page))


def _page_of(name: str) -> types.ModuleType:
    """Returns the module of a model's family, for the name of the model or, if it was that of a Hugging Face folder, of
    the family."""
    return models_lib.page(name) if name in models_lib.FAMILIES else models_lib.find(name)[0]


@dataclasses.dataclass(frozen=True)
class TaskRecord:
    """What a fine-tuned run's config.json says about its task.

    Attributes:
      name: the task.
      pair: whether it reads two texts.
      sequence_length: the maximum number of tokens that it was trained with.
      problem_type: of the head classify, as in Hugging Face's config.json.
      markers: of the head relation: the tokens around the first entity and around the second one.
      prefix: of a task that writes texts: what precedes each source.
      no_answer_threshold: of the head span, fitted on the validation file; see tfzoo.text.spans.difference.
    """

    name: str
    pair: bool = False
    sequence_length: int | None = None
    problem_type: str | None = None
    markers: Sequence[str] = ()
    prefix: str = ""
    no_answer_threshold: float | None = None


def task_of(folder: str | os.PathLike) -> TaskRecord | None:
    """Returns the task of a run; None for a pre-training run and for any other folder."""
    if not is_run(folder):
        return None
    record = _read_config(pathlib.Path(folder)).get("task")
    return None if record is None else TaskRecord(**record)


def embedding_of(folder: pathlib.Path) -> tuple[config_lib.EmbeddingConfig | None, SentenceRecord | None]:
    """Returns how the main model of a run, or that of a sentence-transformers folder, computes vectors of texts and
    reads them; (None, None) for any other folder."""
    if is_run(folder):
        record = _read_config(folder)
        return _embedding(folder, record, _main_role(record))
    modules = sentence_transformers.find(folder)
    if modules is None:
        return None, None
    return modules.embed, modules.record_for(huggingface.page_and_config(folder)[1])


def _embedding(
    folder: pathlib.Path, record: Mapping[str, Any], role: str
) -> tuple[config_lib.EmbeddingConfig | None, SentenceRecord | None]:
    """Returns `embedding_of` for a role of a run."""
    entry, where = record["models"][role], f"{folder / CONFIG}: {role}"
    embed = entry.get("embed") and config_lib.EmbeddingConfig.read(entry["embed"], f"{where}: embed")
    sentence = entry.get("sentence")
    if not sentence:
        return embed, None
    json_files.check(sentence, _SENTENCE_FIELDS, f"{where}: sentence")
    return embed, SentenceRecord(**{name: sentence.get(name) for name in _SENTENCE_FIELDS})


def _main_role(record: Mapping[str, Any]) -> str:
    return MAIN if MAIN in record["models"] else next(iter(record["models"]))


def tokenizer_of(run_dir: str | os.PathLike):
    """Returns the tokenizer of a run.

    Raises:
      UserError: the tokenizer is missing, damaged, or not the one that the run started with.
    """
    return _tokenizer(pathlib.Path(run_dir), _read_config(pathlib.Path(run_dir)))


def _tokenizer(folder: pathlib.Path, record: Mapping[str, Any]):
    tokenizer = text.load(folder / "tokenizer")
    vocab_size = record["models"][_main_role(record)]["config"].get("vocab_size")
    fingerprint = record.get("tokenizer")
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{folder / 'tokenizer'}: has {tokenizer.vocab_size} tokens, but the model's vocab_size is {vocab_size}; "
            "restore the run's own tokenizer"
        )
    if fingerprint not in (None, tokenizer.fingerprint()):  # Runs of an earlier version have no fingerprint.
        raise UserError(
            f"{folder / 'tokenizer'}: is not the tokenizer of this run (fingerprint {tokenizer.fingerprint()[:12]}, "
            f"but {str(fingerprint)[:12]} in {folder / CONFIG}); restore the run's own tokenizer"
        )
    return tokenizer


def load(
    model_dir: str | os.PathLike,
    checkpoint_dir: str | os.PathLike | None = None,
    *,
    role: str | None = None,
    heads: Sequence[str] | None = None,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    pool: str | None = None,
    embed: config_lib.EmbeddingConfig | None = None,
    dtype: Any = None,
    model_class: type | None = None,
):
    """Loads a model and its tokenizer from a run folder, a Hugging Face folder or a sentence-transformers folder.

    Args:
      model_dir: the --run_dir of a training run, a folder with config.json and safetensors or with modules.json, or
        hf://NAME[@REVISION].
      checkpoint_dir: the folder of one of the run's checkpoints; None selects best/ if it exists, otherwise the newest.
      role: which model of a run with several models; None selects the main one.
      heads: the heads of the model, such as ("classify",) for fine-tuning. Heads that were not trained are newly
        initialized. None selects the trained heads.
      num_labels: number of classes of the heads classify, tag and relation; None keeps the saved number.
      labels: names of these classes, which determine their number; None keeps the saved names.
      pool: what the head classify reads; None keeps the saved value.
      embed: how a newly initialized head embed computes a text's vector; None means the mean. A sentence-transformers
        folder and a run with this head specify it.
      dtype: a Keras dtype or policy; None means float32. The weights are rounded to "bfloat16" and "float16", and kept
        in float32 by "mixed_bfloat16" and "mixed_float16".
      model_class: a subclass of the family's Model to create; None creates the family's own class.

    Returns:
      (model, tokenizer): the Keras model and the tokenizer that it was trained with. The tokenizer is None for a
      Hugging Face folder without a tokenizer that tfzoo supports.

    Raises:
      UserError: a file is missing or damaged, or the variables of the checkpoint differ from those of the model.
    """
    folder = hub.folder(model_dir)
    options = dict(heads=heads, num_labels=num_labels, labels=labels, pool=pool, embed=embed, dtype=dtype)
    options["model_class"] = model_class
    if not is_run(folder) and huggingface.is_folder(folder):
        for name, value in (("checkpoint", checkpoint_dir), ("role", role)):
            if value is not None:
                raise UserError(f"--{name}={value}: {folder} is not a run folder (it contains no flags.cfg); omit it")
        return huggingface.load(folder, **options)
    tokenizer = tokenizer_of(folder)
    model = load_model(folder, checkpoint_dir, role, **options)
    # Special tokens are added as in training: determined by the family's module.
    tokenizer.frames, tokenizer.adds_bos = None, model.can_generate and not model.is_encoder_decoder
    return model, tokenizer


def load_model(run_dir: str | os.PathLike, checkpoint_dir: str | os.PathLike | None = None, role=None, **options):
    """Loads the model of a run without its tokenizer; arguments and errors are those of `load`."""
    folder = pathlib.Path(run_dir)
    record = _read_config(folder)
    role = role or _main_role(record)
    if role not in record["models"]:
        names = list(record["models"])
        raise UserError(
            f"--role={role}: {folder} contains no model {role!r}{suggest(role, names)}; its models are "
            f"{', '.join(names)}"
        )
    embed, sentence = _embedding(folder, record, role)
    options["embed"] = options.get("embed") or embed
    model = _build(record["models"][role], **options)
    if sentence is not None and "embed" in model.head_names:
        model.record = FolderRecord(sentence=sentence)
    if role == _main_role(record):
        if (folder / GENERATION_CONFIG).exists():
            model.record = folder_record(folder)
        task = record.get("task", {})
        if "classify" in model.head_names:
            model.problem_type = task.get("problem_type")
        if "relation" in model.head_names:
            model.markers = tuple(task.get("markers", ()))
        if "span" in model.head_names:
            model.no_answer_threshold = task.get("no_answer_threshold")
    store = checkpoint.Checkpoints(folder / "checkpoints", read_only=True, run_id=record.get("run"))
    step, _, arrays = store.read(store.selected(checkpoint_dir))
    _assign(store.path(step), model, role, arrays, fresh_heads=options.get("heads") is not None)
    return model


def _build(entry, heads=None, num_labels=None, labels=None, pool=None, embed=None, dtype=None, model_class=None):
    """Creates a newly initialized model as described in config.json, except for the arguments that are not None."""
    page = _page_of(entry["model"])
    config = config_lib.from_mapping(entry["config"], models_lib.config_class(page))
    if labels is None and num_labels in (None, entry.get("num_labels")):
        labels = entry.get("labels")
    return models_lib.class_of(page, model_class)(
        config,
        heads=entry["heads"] if heads is None else heads,
        num_labels=num_labels or entry.get("num_labels") or 2,
        labels=labels,
        pool=pool or entry.get("pool"),
        embed=embed,
        dtype=dtype,
    )


def _assign(path: pathlib.Path, model, role: str, arrays: Mapping[str, Any], fresh_heads: bool) -> None:
    """Assigns a checkpoint's variables to a model, using the averages of --ema_decay if there are any, and logs which
    heads are only in the model or only in the checkpoint."""
    prefix, slots = checkpoint.prefixes(role)
    values = {name: array for name, array in arrays.items() if name.startswith(prefix)}
    average = re.compile(re.escape(slots) + "(?:inner/)?(.+)/average")
    averages = {prefix + match[1]: array for name, array in arrays.items() if (match := average.fullmatch(name))}
    # Matched by paths within the model, because a user-defined class may have another name.
    values = _within(values | {name: array for name, array in averages.items() if name in values})
    variables = _within(checkpoint.model_variables({role: model}))
    if fresh_heads:
        fresh = {name for name in variables.keys() - values.keys() if not table.is_body(name)}
        left = {name for name in values.keys() - variables.keys() if not table.is_body(name)}
        for names, outcome in ((fresh, "newly initialized"), (left, "in the checkpoint but unused")):
            if listed := sorted(name for name in names if not name.endswith(table.STATE)):
                logging.info("%s: %s: %s", path, outcome, ", ".join(listed))
        variables = {name: variable for name, variable in variables.items() if name not in fresh}
        values = {name: array for name, array in values.items() if name not in left}
    for name, variable in variables.items():
        if variable.dtype in ("bfloat16", "float16") and name in values:  # The requested dtype.
            values[name] = values[name].astype(variable.dtype)
    checkpoint.assign_all(path, variables, values)


def _within(named: Mapping[str, Any]) -> dict[str, Any]:
    """Renames variables of checkpoint.model_variables to paths within the model: "model/bert/lm/bias" -> "lm/bias"."""
    paths = {name: name.partition("/")[2] for name in named}
    most_common = collections.Counter(path.partition("/")[0] for path in paths.values()).most_common(1)
    model_prefix = f"{most_common[0][0]}/" if most_common else ""
    return {paths[name].removeprefix(model_prefix): value for name, value in named.items()}
