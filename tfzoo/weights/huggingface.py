"""Hugging Face folders, read and written without torch or transformers.

config.json                the model: model_type, architectures, and sizes under the family's own names
model.safetensors          its weights, in one file or, with model.safetensors.index.json, in several
generation_config.json     decoding: copied, or the ids with which texts begin and end
README.md                  the model card
chat_template.jinja        the format of conversations, with additional_chat_templates/: copied
vocab.txt, ...             the tokenizer

A sentence-transformers folder contains these and more files (tfzoo.weights.sentence_transformers); its model has the
head "embed".

The pages of tfzoo.models contain the tables that map fields and tensors: MODEL_TYPES, ARCHITECTURES, CONFIG, REQUIRED,
PREFIX, PREFIXES and WEIGHTS. A family that Hugging Face does not support (WEIGHTS is None) is written to the same files
under tfzoo's own names.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from tfzoo import config as config_lib
from tfzoo import files, json_files, models, nn, text
from tfzoo.errors import UserError, suggest
from tfzoo.json_files import Field, Fields
from tfzoo.models.record import FolderRecord
from tfzoo.text import framing, template
from tfzoo.text.settings import CONFIG_FILE, ROLES
from tfzoo.text.tokenizer import Tokenizer
from tfzoo.weights import config_fields, model_card, safetensors_files, sentence_transformers, table

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_IDS = (Field(int), Field(list, items=Field(int)))
# Fields of every family's config.json; the sizes are validated by the config that they become.
_FIELDS: Fields = {
    "model_type": Field(str),
    "architectures": Field(list, items=Field(str)),
    "id2label": Field(dict),
    "num_labels": Field(int, low=1, high=1_000_000),
    **{f"{name}_id": _IDS for name in ROLES.values()},
}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def load(
    folder: str | os.PathLike,
    *,
    heads: Sequence[str] | None = None,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    pool: str | None = None,
    embed: config_lib.EmbeddingConfig | None = None,
    dtype: Any = None,
    tokenizer: bool = True,
    model_class: type | None = None,
):
    """Loads the model and the tokenizer of a Hugging Face or sentence-transformers folder.

    Args:
      folder: a folder with config.json and safetensors, or with modules.json.
      heads: the model's heads, such as ("classify",) for fine-tuning. Heads that the folder lacks are newly
        initialised; weights of other heads are not used; both are logged. None uses the heads of the folder's
        architecture.
      num_labels: number of classes of the heads classify, tag and relation; None uses the folder's.
      labels: the names of these classes, which also determine their number; None uses the folder's.
      pool: the input of the head classify; None uses the family's default.
      embed: how a new head embed computes a text's vector; None uses the mean. A sentence-transformers folder specifies
        it.
      dtype: a Keras dtype or policy. It also determines the dtype of the weights in memory, whatever that of the file:
        float32, except for "bfloat16", "float16" and "float64".
      tokenizer: whether to load the tokenizer.
      model_class: a subclass of the family's Model to instantiate; None uses the family's Model.

    Returns:
      (model, tokenizer); the tokenizer is None if the folder has none that tfzoo reads.

    Raises:
      UserError: the folder is not consistent or not supported; the one-line message names the file and tensor. No
        weights are read, and no memory is allocated for them, before names and shapes agree.
    """
    folder = pathlib.Path(folder)
    loaded_tokenizer = _tokenizer(folder) if tokenizer else None
    options = dict(heads=heads, num_labels=num_labels, labels=labels, pool=pool, embed=embed)
    model, account = load_model(folder, **options, dtype=dtype, model_class=model_class)
    for label, names in (("newly initialised", account.not_assigned), ("in the file but not used", account.not_used)):
        if names:
            logging.info("%s: %s: %s", folder, label, ", ".join(names))
    return model, loaded_tokenizer


def load_model(
    folder, *, heads=None, num_labels=None, labels=None, pool=None, embed=None, dtype=None, model_class=None
):
    """Returns the model of a Hugging Face folder, and the table.Account that matches it with the file's tensors.

    Arguments and errors are those of `load`.
    """
    folder = pathlib.Path(folder)
    modules, fresh = sentence_transformers.find(folder), heads is not None
    if modules is not None:
        folder = modules.transformer
        heads = ("embed",) if heads is None else heads
    record, page, config = _read(folder)
    folder_labels = FolderRecord(record).labels
    if labels is None and num_labels in (None, len(folder_labels)):
        labels = folder_labels or None
    arguments: dict[str, Any] = dict(
        heads=_heads(folder, record, page) if heads is None else tuple(heads),
        num_labels=num_labels or _num_labels(record),
        labels=labels,
        pool=pool,
        embed=embed,
    )
    make = models.class_of(page, model_class)
    with safetensors_files.open_folder(folder) if modules is None else modules.open() as file:
        if modules is not None and "embed" in arguments["heads"]:
            arguments["embed"] = modules.embedding(config, file)
        table.check_layers(config, file, page, folder)
        with nn.shapes_only():
            skeleton = make(config, **arguments)
            account = table.account(table.slots(page.WEIGHTS, skeleton), file, page, folder, fresh)
            _check_computed(page, skeleton, record["model_type"], file)
        if modules is not None and "embed" in arguments["heads"]:
            modules.check(account)
        with nn.unset_weights(unless=bool(account.not_assigned)):
            model = make(config, **arguments, dtype=dtype)
        table.load(table.slots(page.WEIGHTS, model), file, account)
    generation = folder / "generation_config.json"
    model.record = FolderRecord(
        config=record,
        generation_config=json_files.read(generation) if generation.exists() else {},
        chat_templates={name: source for name, (_, source) in template.read_chat_templates(folder).items()},
        sentence=None if modules is None else modules.record_for(config),
    )
    return model, account


def _computed(page, model, model_type, written: bool = False) -> dict[str, np.ndarray]:
    """Returns computed (not learned) tables of files by name; with `written`, those that Hugging Face writes."""
    return page.computed(model, model_type, written) if hasattr(page, "computed") else {}


def _check_computed(page, model, model_type, file) -> None:
    """Compares computed tables with the file's.

    Raises:
      UserError: a table in the file differs from the computed one.
    """
    tables = _computed(page, model, model_type)
    for stored in file.names:
        array = next((tables[name] for name in table.prefixed(stored, page) if name in tables), None)
        if array is None:
            continue
        stored_array = np.asarray(file.read(stored), np.float32)
        if stored_array.shape != array.shape or not np.abs(stored_array - array).max() < 0.01:  # Allows for bfloat16.
            raise UserError(
                f"{file.file(stored)}: {stored} is not the sinusoidal table of a {model_type} with {len(array)} "
                "positions; such a model is not supported"
            )


def page_and_config(folder: pathlib.Path):
    """Returns the page of a folder's family, and its config in tfzoo's terms; errors are those of `load`."""
    return _read(folder)[1:]


def _read(folder: pathlib.Path):
    """Returns a folder's config.json, the page of its family, and its config in tfzoo's terms."""
    path = sentence_transformers.transformer_of(folder) / "config.json"
    record = json_files.read(path)
    json_files.check(record, _FIELDS, path)
    page = _page(path, record)
    return record, page, decode_config(path, record, page)


def _tokenizer(folder: pathlib.Path):
    """Returns the folder's tokenizer, checked against config.json; None if it has none that tfzoo reads."""
    folder = sentence_transformers.transformer_of(folder)
    record, _, config = _read(folder)
    kind = text.find(folder)
    if kind is None:
        return None
    tokenizer, path, vocab_size = text.load(folder), folder / "config.json", config.vocab_size
    description = "the tokenizer"
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{path}: vocab_size is {vocab_size}, but {description} has {tokenizer.vocab_size} tokens; "
            "replace it with the model's own tokenizer"
        )
    differing = []
    for role, name in ROLES.items():
        config_id, tokenizer_id = record.get(f"{name}_id"), getattr(tokenizer, f"{role}_id")
        if None not in (config_id, tokenizer_id) and tokenizer_id not in (
            config_id if isinstance(config_id, list) else [config_id]
        ):
            differing.append(f"{name}_id is {config_id}, but {tokenizer_id} in {description}")
    if differing:
        logging.warning(
            "%s: %s; texts use the tokenizer's ids, generation those of config.json", path, "; ".join(differing)
        )
    return tokenizer


def save(
    model,
    folder: str | os.PathLike,
    tokenizer=None,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
    origin: model_card.Origin | None = None,
) -> None:
    """Writes a folder that Hugging Face loads with the same outputs; it is created atomically.

    Args:
      model: a model of one of the families.
      folder: the folder to create; it must not exist or must be empty.
      tokenizer: a tokenizer to write next to the weights, or None.
      dtype: float32, float16 or bfloat16, for the stored weights.
      max_shard_bytes: maximum size of a weight file; a larger model is split into several files.
      origin: where the model comes from, for the model card (README.md); None if unknown.

    Raises:
      UserError: the folder is not empty, the dtype is not supported, or the weights are stored in a reduced form.
    """
    folder = pathlib.Path(folder)
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not supported; weights are stored as one of {', '.join(DTYPES)}")
    check_new(folder)
    if reduced := nn.stored_weights(model):
        raise UserError(
            f"model {model.name!r}: its weights are stored as {reduced}; save it before calling tfzoo.store_weights"
        )
    page = models.page_of(model)
    record = encode_config(model, page) | {"dtype": dtype}
    source = model.record or FolderRecord()
    generation = dict(source.generation_config)
    inner_tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # convert.Found has one.
    is_new = not source.config
    if is_new:  # The config of a model that was read already has them.
        ids = {role: getattr(inner_tokenizer, f"{role}_id", None) for role in ("pad", "bos", "eos")}
        record |= {f"{ROLES[role]}_id": i for role, i in ids.items() if i is not None}
        if model.can_generate:
            ids = {"pad_token_id": ids["pad"], "eos_token_id": ids["eos"]}
            if model.is_encoder_decoder:  # As in training.
                start, _, end = framing.encoder_decoder_ends(inner_tokenizer)
                ids |= {"eos_token_id": end, "decoder_start_token_id": start}
            generation = {name: i for name, i in ids.items() if i is not None} | generation
    if folder.exists():
        folder.rmdir()
    with files.atomic_folder(folder) as partial:
        weights = list(table.stored(table.slots(page.WEIGHTS, model), DTYPES[dtype]))
        kind = record["model_type"]
        for name, array in _computed(page, model, kind, written=True).items():
            weights.append((name, array.shape, DTYPES[dtype], functools.partial(table.as_dtype, array, DTYPES[dtype])))
        body = [
            (saved_name(weight[0], model, kind, page), *weight[1:])
            for weight in weights
            if not weight[0].startswith(table.EMBED)
        ]
        safetensors_files.write_folder(partial, body, max_shard_bytes=max_shard_bytes)
        if "embed" in model.head_names:
            sentence_transformers.write(partial, model, weights)
        if tokenizer is not None:
            tokenizer.save(partial)
            if inner_tokenizer is not None:  # Files that convert copies remain unchanged.
                _write_max_length(partial, model.config)
            template.write_chat_templates(partial, source.chat_templates)
            _write_frames(partial, model, inner_tokenizer)
            is_new_causal = model.is_causal and is_new
            bos = getattr(inner_tokenizer, "bos_id", None)
            if bos is not None and (is_new_causal or inner_tokenizer.adds_bos):
                template.write_bos(partial, inner_tokenizer.vocab[bos], bos)
        if generation and not (partial / "generation_config.json").exists():
            (partial / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        (partial / "config.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        if not (partial / model_card.NAME).exists():  # Otherwise, convert has copied its author's.
            facts = dict(tokenizer=inner_tokenizer, in_transformers=page.WEIGHTS is not None)
            card = model_card.text(model, origin or model_card.Origin(), **facts)
            (partial / model_card.NAME).write_text(card, encoding="utf-8")


def _write_max_length(folder: pathlib.Path, config) -> None:
    """Writes the maximum text length to tokenizer_config.json if it is missing there and positions are limited."""
    path = folder / CONFIG_FILE
    if config.positions != "learned" or not path.exists():
        return
    record = json_files.read(path)
    if "model_max_length" not in record:
        record["model_max_length"] = config.max_positions
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def saved_name(name: str, model, model_type: str, page) -> str:
    """Returns Hugging Face's name of a tensor of tfzoo's table; Hugging Face's models without a head use no prefix."""
    prefix = getattr(page, "PREFIX", "")
    if hasattr(page, "saved_name"):
        return page.saved_name(name, model.head_names)
    if not prefix or not name.startswith(prefix):
        return name
    bare = not set(model.head_names) - {"embed"}
    return ("" if bare else getattr(page, "PREFIXES", {}).get(model_type, prefix)) + name.removeprefix(prefix)


def _write_frames(folder: pathlib.Path, model, tokenizer) -> None:
    """Adds the family's special tokens around a text to a tokenizer's files that do not specify any."""
    if not isinstance(tokenizer, Tokenizer) or tokenizer.frames:
        return
    try:
        single = framing.frame(model.LAYOUT, tokenizer)
    except UserError:  # A language would have to be specified.
        return
    try:
        pair = framing.frame(model.LAYOUT, tokenizer, pair=True)
    except UserError:  # No token separates two texts.
        pair = framing.Frame((*single.parts, framing.PAIR), (*single.segments, 0))
    template.write_frames(folder, dict(enumerate(tokenizer.vocab)), single, pair)


def is_folder(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a Hugging Face or sentence-transformers folder."""
    return (folder / "config.json").exists() or sentence_transformers.is_folder(folder)


def check_new(folder: pathlib.Path) -> None:
    """Checks that a folder does not exist or is empty.

    Raises:
      UserError: the folder is not empty, or the path is not a folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already exists and is not an empty folder; specify a new folder")


def _page(path, record):
    kind = record.get("model_type")
    families = models.model_types()
    if kind is None:
        raise UserError(f'{path}: has no model_type; add it, such as "model_type": "{_kind_of(record)}"')
    if kind not in families:
        raise UserError(
            f"{path}: model_type {kind!r} is not supported{suggest(str(kind), families)}; "
            f"use one of {', '.join(families)}"
        )
    return models.page(families[kind])


def _kind_of(record) -> str:
    """Returns the model_type suggested by the name of an architecture; "bert", as an example, if there is none."""
    names = [name.lower() for name in record.get("architectures") or ()]
    kinds = [kind for kind in models.model_types() for name in names if name.startswith(kind.replace("-", ""))]
    return max(kinds, key=len, default="bert")


def decode_config(path, record, page) -> config_lib.TransformerConfig:
    """Returns tfzoo's config for Hugging Face's config.json.

    Missing fields have the reference's defaults.

    Args:
      path: the path of the config.json, for errors.
      record: its content.
      page: the page of the model's family.

    Raises:
      UserError: a field is missing, out of bounds, contradicts another, requires something that the page does not
        support, or is unknown.
    """
    cls = models.config_class(page)
    family = page.__name__.rpartition(".")[2]
    hub = config_fields.complete(record, path)
    config_fields.check_required(hub, getattr(page, "REQUIRED", {}), family, path)
    fields = dict(page.MODEL_TYPES[record["model_type"]])
    try:
        if page.CONFIG is None:
            fields |= {name: hub[name] for name in config_lib.kinds(cls) if name in hub}
        else:
            values = {ours: hub.get(theirs) for ours, theirs in page.CONFIG.items()}
            fields |= {ours: _decode(ours, value) for ours, value in values.items() if value is not None}
        if hasattr(page, "decode_config"):
            fields |= page.decode_config(hub)
        config = config_lib.from_mapping(fields, cls)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path}: {type(error).__name__} {error}; it must be a config of model_type {record['model_type']}"
        ) from None
    config_fields.check_all_asked(hub, getattr(page, "IGNORED", ()), path)
    return config


def _decode(ours, value):
    if ours == "activation":
        if value not in _ACTIVATIONS:
            raise UserError(f"the activation {value!r} is not one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]
    return value


def _encode(ours, value):
    return "gelu_new" if ours == "activation" and value == "gelu_tanh" else value


def _heads(folder, record, page) -> tuple[str, ...]:
    if page.WEIGHTS is None:
        return tuple(record.get("heads", page.Model.DEFAULT_HEADS))
    for name in record.get("architectures") or ():
        if name in page.ARCHITECTURES:
            return page.ARCHITECTURES[name]
    supported, architectures = ", ".join(page.ARCHITECTURES), record.get("architectures")
    raise UserError(
        f"{folder / 'config.json'}: architectures is {architectures!r}, but tfzoo supports {supported}; "
        f"specify the heads, such as heads={page.Model.DEFAULT_HEADS!r}"
    )


def _num_labels(record: Mapping[str, Any]) -> int:
    labels = record.get("id2label")
    if isinstance(labels, Mapping) and labels:
        return len(labels)
    return record.get("num_labels") or config_fields.num_labels(record["model_type"])


def encode_config(model, page) -> dict[str, Any]:
    """Returns the content of config.json: the source folder's, if any, updated with the model's own fields.

    A page's encode_config provides fields that its CONFIG cannot express, its new_config further fields for a model
    that was not read from a folder, such as ids of special tokens within its vocabulary.
    """
    config = dataclasses.asdict(model.config)
    # The type with the most matching fixed fields; the first if several are equal.
    kind = max(page.MODEL_TYPES, key=lambda kind: sum(config[k] == v for k, v in page.MODEL_TYPES[kind].items()))
    record = dict(model.record.config) if model.record else {}
    record.pop("torch_dtype", None)
    kind = record.get("model_type", kind)
    if page.CONFIG is None:
        if "embed" in model.head_names:
            raise UserError(
                f"sentence-transformers does not support {kind}; save it with other heads, or embed with another family"
            )
        return record | config | {"model_type": kind, "heads": list(model.head_names), "num_labels": model.num_labels}
    # Fields that were read from a folder keep their spelling, because many values have several spellings.
    fields: dict[str, Any] = {}
    if not record or decode_config("config.json", record, page) != model.config:
        fields = {theirs: _encode(ours, config[ours]) for ours, theirs in page.CONFIG.items()}
        if hasattr(page, "encode_config"):
            fields |= page.encode_config(model.config)
        record = {name: value for name, value in record.items() if name not in config_fields.other_names(kind)}
    if not record and hasattr(page, "new_config"):
        fields |= page.new_config(model.config)
    kind = fields.setdefault("model_type", kind)
    # The modules that make a text's vector are in files of their own.
    other_heads = tuple(head for head in model.head_names if head != "embed")
    names = [
        name
        for name, heads in page.ARCHITECTURES.items()
        if heads == other_heads and name.lower().startswith(kind.replace("-", ""))
    ]
    if not names:
        raise UserError(
            f"Hugging Face has no {kind} with the heads {', '.join(model.head_names)}; "
            f"its architectures are {', '.join(page.ARCHITECTURES)}"
        )
    if (fields.get("architectures") or record.get("architectures")) not in [[name] for name in names]:
        fields["architectures"] = names[:1]
    if {"classify", "tag"} & set(model.head_names) and FolderRecord(record).labels != model.labels:
        fields["id2label"] = {str(i): label for i, label in enumerate(model.labels)}
        fields["label2id"] = {label: i for i, label in enumerate(model.labels)}
    if model.problem_type and "classify" in model.head_names:
        fields["problem_type"] = model.problem_type
    if model.no_answer_threshold is not None and "span" in model.head_names:
        fields["no_answer_threshold"] = model.no_answer_threshold
    if "classify" in model.head_names and model.pool != model.POOL:
        raise UserError(
            f"{kind}'s classifier reads the state {model.POOL!r} in Hugging Face's library, but this model's reads "
            f"{model.pool!r}; fine-tune it without --pooling"
        )
    record |= fields
    written, required = _alike(decode_config("config.json", record, page)), _alike(model.config)
    for name, value in required.items():
        if written[name] != value:
            raise UserError(
                f"{name} ({value!r}) cannot be expressed in Hugging Face's config of model_type "
                f"{record['model_type']}, which gives {written[name]!r}"
            )
    return record


def _alike(config) -> dict[str, Any]:
    """Returns the fields that two configs must share for their models to compute the same outputs."""
    fields = config.resolved()
    for name in ("initializer", "attention_initializer", "position_initializer"):
        del fields[name]  # For new models only.
    if config.positions in ("relative", "none"):
        del fields["max_positions"]  # There is no table of that length.
    return fields | ({"attention": "full"} if config.attention == "lean" else {})  # The outputs are the same.
