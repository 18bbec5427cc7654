"""The files that a sentence-transformers folder has in addition to those of a Hugging Face model, read and written.

modules.json                         the sequence of modules: Transformer, Pooling, then Dense and Normalize
sentence_bert_config.json            settings of the Transformer: maximum text length, lower-casing
1_Pooling/config.json                how the tokens' states become one vector
2_Dense/config.json, model.safetensors
config_sentence_transformers.json    prompts, and the function that compares vectors

The formats are those of sentence-transformers 6.2 and the spellings of earlier versions. Unknown settings that would
change the vectors are rejected by name.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from absl import logging

from tfzoo import json_files
from tfzoo.config import EmbeddingConfig, Projection, TransformerConfig
from tfzoo.errors import UserError, suggest
from tfzoo.json_files import Field, Fields, show
from tfzoo.models.record import SentenceRecord
from tfzoo.weights import safetensors_files
from tfzoo.weights.table import EMBED as PREFIX
from tfzoo.weights.table import Account
from tfzoo.weights.tensors import Tensors

MODULES, MODEL_CONFIG = "modules.json", "config_sentence_transformers.json"
# The first existing file is used.
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# sentence-transformers' names -> tfzoo's, in the order in which flags of older files concatenate the vectors.
_POOLINGS = {
    "cls": ("first", "pooling_mode_cls_token"),
    "max": ("max", "pooling_mode_max_tokens"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "mean_sqrt_len_tokens": ("mean_sqrt_len", "pooling_mode_mean_sqrt_len_tokens"),
    "weightedmean": ("weighted_mean", "pooling_mode_weightedmean_tokens"),
    "lasttoken": ("last", "pooling_mode_lasttoken"),
}
_FLAGS = {flag: ours for ours, flag in _POOLINGS.values()}
_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "none",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
}
_SIZE = Field(int, low=1)
_VECTOR = Field(str, choices=("sentence_embedding",))

_MODULE: Fields = {
    "idx": Field(int),
    "name": Field(str),
    "path": Field(str, required=True),
    "type": Field(str, required=True),
}
_TRANSFORMER: Fields = {
    "max_seq_length": _SIZE,
    "do_lower_case": Field(bool),
    "transformer_task": Field(str, choices=("feature-extraction",)),
    "modality_config": Field(dict),
    "module_output_name": Field(str, choices=("token_embeddings",)),
    "unpad_inputs": Field(bool),  # How padding is handled.
}
_POOLING: Fields = {
    "word_embedding_dimension": _SIZE,
    "embedding_dimension": _SIZE,
    "pooling_mode": (Field(str, choices=tuple(_POOLINGS)), Field(list, items=Field(str, choices=tuple(_POOLINGS)))),
    **{flag: Field(bool) for flag in _FLAGS},
    "include_prompt": Field(bool),
}
_DENSE: Fields = {
    "in_features": dataclasses.replace(_SIZE, required=True),
    "out_features": dataclasses.replace(_SIZE, required=True),
    "bias": Field(bool),
    "activation_function": Field(str, choices=tuple(_ACTIVATIONS)),
    "module_input_name": _VECTOR,
    "module_output_name": _VECTOR,
    "use_residual": Field(bool),
}
_NORMALIZE: Fields = {"module_input_name": _VECTOR, "module_output_name": _VECTOR}
_MODEL: Fields = {
    "model_type": Field(str, choices=("SentenceTransformer",)),
    "prompts": Field(dict),
    "default_prompt_name": Field(str),
    "similarity_fn_name": Field(str, choices=("cosine", "dot", "euclidean", "manhattan")),
}


@dataclasses.dataclass(frozen=True)
class Modules:
    """The modules of a folder.

    Attributes:
      transformer: the folder of the model and its tokenizer.
      embed: the modules after the model.
      size: size of a token's state according to Pooling; None if not specified.
      pooling: the file of Pooling.
      dense: the folders of the Dense modules.
      record: how texts are read.
      tokenizer_limit: the tokenizer's model_max_length, which applies if `record` has no max_length; None if not
        specified.
    """

    transformer: pathlib.Path
    embed: EmbeddingConfig
    size: int | None
    pooling: pathlib.Path
    dense: tuple[pathlib.Path, ...]
    record: SentenceRecord
    tokenizer_limit: int | None

    def open(self) -> Tensors:
        """Opens the model's weights, and those of the Dense modules as embed.dense_0.linear.weight, ...

        Raises:
          UserError: as for safetensors_files.open_folder.
        """
        tensors = safetensors_files.open_folder(self.transformer)
        for i, path in enumerate(self.dense):
            tensors = tensors.joined(safetensors_files.open_folder(path), f"{PREFIX}dense_{i}.")
        return tensors

    def embedding(self, config: TransformerConfig, file: Tensors) -> EmbeddingConfig:
        """Returns the modules after the model, given its config and tensors.

        Raises:
          UserError: Pooling specifies states of another size.
        """
        if self.size not in (None, config.hidden_size):
            raise UserError(
                f"{self.pooling}: the size of a token's vector is {self.size}, but hidden_size is {config.hidden_size} "
                "in config.json; both must belong to the same model"
            )
        return dataclasses.replace(self.embed, pooler=any("pooler." in name for name in file.names))

    def check(self, found: Account) -> None:
        """Raises UserError if a Dense module has a missing or unexpected tensor."""
        for article, names in (("no", found.not_assigned), ("a", found.not_used)):
            for name in names:
                if name.startswith(PREFIX):
                    number, _, tensor = name.removeprefix(f"{PREFIX}dense_").partition(".")
                    raise UserError(
                        f"{self.dense[int(number)]}: has {article} tensor {tensor}, contrary to its config.json; "
                        "both must belong to the same model"
                    )

    def record_for(self, config: TransformerConfig) -> SentenceRecord:
        """Returns `record`, with the maximum text length of this config if the files do not specify one."""
        if self.record.max_length is not None:
            return self.record
        limits = [self.tokenizer_limit, None if config.positions == "relative" else config.max_positions]
        return dataclasses.replace(self.record, max_length=min(filter(None, limits), default=None))


def is_folder(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a sentence-transformers folder."""
    return (folder / MODULES).exists()


def find(folder: pathlib.Path) -> Modules | None:
    """Returns `read(folder)` for a sentence-transformers folder, None for any other folder."""
    return read(folder) if is_folder(folder) else None


def files_of(folder: pathlib.Path) -> set[str]:
    """Returns the names of the files and folders that `write` creates anew; the empty set for any other folder."""
    if not is_folder(folder):
        return set()
    return {
        MODULES,
        MODEL_CONFIG,
        *_TRANSFORMER_CONFIGS,
        *(e["path"] for e in json_files.read(folder / MODULES, kind=list)),
    }


def transformer_of(folder: pathlib.Path) -> pathlib.Path:
    """Returns the folder with the model's and tokenizer's files: the folder itself, or that of a module."""
    return read(folder).transformer if is_folder(folder) else folder


def read(folder: pathlib.Path) -> Modules:
    """Returns the modules that the files of a sentence-transformers folder define; no weights are read.

    Raises:
      UserError: a module, or a field of a module, is unknown; the one-line message names the file.
    """
    path = folder / MODULES
    entries = json_files.read(path, kind=list)
    kinds = [_kind(path, i, entry) for i, entry in enumerate(entries)]
    folders = [folder / entry["path"] for entry in entries]
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & {*kinds[2:]}:
        raise UserError(
            f"{path}: the modules are {', '.join(kinds)}; supported are a Transformer, one Pooling and then any number "
            "of Dense and Normalize"
        )
    embed, size = _pooling(folders[1])
    layers: list[Projection | str] = []
    width = None if size is None else size * len(embed.pooling)
    for kind, where in zip(kinds[2:], folders[2:]):
        if kind == "Normalize":
            _read(where / "config.json", _NORMALIZE, "Normalize", missing=True)
            layers.append("normalize")
            continue
        layer, inputs = _dense(where)
        if width not in (None, inputs):
            raise UserError(
                f"{where / 'config.json'}: in_features is {inputs}, but the previous module outputs {width} numbers; "
                "both must belong to the same model"
            )
        layers.append(layer)
        width = layer.units
    return Modules(
        transformer=folders[0],
        embed=dataclasses.replace(embed, layers=tuple(layers)),
        size=size,
        pooling=folders[1] / "config.json",
        dense=tuple(where for kind, where in zip(kinds, folders) if kind == "Dense"),
        record=_record(folder, folders[0]),
        tokenizer_limit=_model_max_length(folders[0]),
    )


_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")


def _kind(path: pathlib.Path, place: int, entry: Any) -> str:
    where = f"{path}: module {place}"
    if not isinstance(entry, dict):
        raise UserError(f"{where}: is {show(entry)}, not an object; correct it")
    json_files.check(entry, _MODULE, where)
    kind = entry["type"].rpartition(".")[2]
    if kind not in _KINDS:
        raise UserError(
            f"{where}: its type is {show(entry['type'])}, which is not supported{suggest(kind, _KINDS)}; "
            f"use one of {', '.join(_KINDS)}"
        )
    if entry.get("kwargs"):
        raise UserError(f"{where}: its kwargs are {show(entry['kwargs'])}; kwargs are not supported")
    if entry["path"] and (not re.fullmatch(r"[\w.-]+", entry["path"]) or entry["path"] in (".", "..")):
        raise UserError(f"{where}: its path is {show(entry['path'])}; it must be a plain folder name")
    return kind


def _read(path: pathlib.Path, fields: Fields, what: str, missing: bool = False) -> dict[str, Any]:
    """Returns the non-null fields of a module's file; {} if the file is missing and `missing` allows that."""
    if missing and not path.exists():
        return {}
    record = json_files.read(path)
    _check(record, fields, what, path)
    return {name: value for name, value in record.items() if value is not None}


def _check(record: dict[str, Any], fields: Fields, what: str, path: pathlib.Path) -> None:
    """Raises UserError for a field that is not one of `fields` or has an invalid value."""
    for name in record:
        if name not in fields:
            raise UserError(
                f"{path}: {name} is {show(record[name])}, an unknown field of {what}{suggest(name, fields)}"
            )
    json_files.check(record, fields, path)


def _pooling(folder: pathlib.Path) -> tuple[EmbeddingConfig, int | None]:
    record = _read(folder / "config.json", _POOLING, "Pooling")
    modes = record.get("pooling_mode")
    if modes is None:
        # If no flag is set, sentence-transformers uses the mean.
        pooling = tuple(ours for flag, ours in _FLAGS.items() if record.get(flag)) or ("mean",)
    else:
        pooling = tuple(_POOLINGS[mode][0] for mode in ([modes] if isinstance(modes, str) else modes))
        if not pooling:
            raise UserError(f"{folder / 'config.json'}: pooling_mode is empty; use one of {', '.join(_POOLINGS)}")
    size = record.get("embedding_dimension", record.get("word_embedding_dimension"))
    return EmbeddingConfig(pooling=pooling, include_prompt=record.get("include_prompt", True)), size


def _dense(folder: pathlib.Path) -> tuple[Projection, int]:
    path = folder / "config.json"
    record = _read(path, _DENSE, "Dense")
    if record.get("use_residual"):
        raise UserError(f"{path}: use_residual is true, which is not supported")
    function = _ACTIVATIONS[record.get("activation_function", "torch.nn.modules.activation.Tanh")]
    return Projection(record["out_features"], function, record.get("bias", True)), record["in_features"]


def _record(folder: pathlib.Path, transformer: pathlib.Path) -> SentenceRecord:
    path = next((path for name in _TRANSFORMER_CONFIGS if (path := transformer / name).exists()), None)
    texts = {} if path is None else _transformer(path)
    path = folder / MODEL_CONFIG
    config = json_files.read(path) if path.exists() else {}
    json_files.check(config, _MODEL, path)
    prompts = {name: "" if prompt is None else prompt for name, prompt in (config.get("prompts") or {}).items()}
    json_files.check(prompts, {name: Field(str) for name in prompts}, f"{path}: prompts")
    ignored = sorted(config.keys() - _MODEL.keys() - {"__version__", "requirements"})
    if ignored:
        logging.info("%s: %s: ignored, as sentence-transformers does", path, ", ".join(ignored))
    record = SentenceRecord(
        max_length=texts.get("max_seq_length"),
        lowercase=texts.get("do_lower_case", False),
        prompts=prompts,
        default_prompt_name=config.get("default_prompt_name"),
        similarity=config.get("similarity_fn_name"),
        config=config,
    )
    try:
        record.prompt()
    except UserError:
        raise UserError(
            f"{path}: default_prompt_name is {show(record.default_prompt_name)}, which is not in prompts; add it"
        ) from None
    return record


def _transformer(path: pathlib.Path) -> dict[str, Any]:
    record = json_files.read(path)
    # Arguments for transformers: they have no effect if empty.
    empty = [name for name, value in record.items() if value in ({}, None) and name.endswith(("_args", "_kwargs"))]
    settings = {name: value for name, value in record.items() if name not in empty and value is not None}
    _check(settings, _TRANSFORMER, "Transformer", path)
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    for name, value in settings.get("modality_config", {}).items():
        if name != "text" or value != text:
            raise UserError(
                f"{path}: modality_config has {name}: {show(value)}; only the last_hidden_state of text is supported"
            )
    return settings


def _model_max_length(folder: pathlib.Path) -> int | None:
    """Returns tokenizer_config.json's model_max_length, or None; a huge number there means no limit."""
    path = folder / "tokenizer_config.json"
    value = json_files.read(path).get("model_max_length") if path.exists() else None
    return value if isinstance(value, int) and 0 < value < 10**9 else None


def write(folder: pathlib.Path, model, weights: Sequence[safetensors_files.Source]) -> None:
    """Adds the files of a sentence-transformers folder to the Hugging Face folder of a model with the head "embed".

    Args:
      folder: the Hugging Face folder.
      model: the model.
      weights: the model's weights; those of the modules after the pooling are written here.
    """
    embed = model.embed
    record = (model.record and model.record.sentence) or SentenceRecord(max_length=model.config.max_positions)
    kinds = ["Transformer", "Pooling", *("Normalize" if layer == "normalize" else "Dense" for layer in embed.layers)]
    entries = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    _write(folder / MODULES, entries)
    _write(folder / _TRANSFORMER_CONFIGS[0], {"max_seq_length": record.max_length, "do_lower_case": record.lowercase})
    _write(folder / "1_Pooling" / "config.json", _pooling_of(embed, model.sequence_size))
    width, count = model.sequence_size * len(embed.pooling), 0
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    for i, layer in enumerate(embed.layers, 2):
        if not isinstance(layer, Projection):
            continue
        where = folder / f"{i}_Dense"
        fields = {"in_features": width, "out_features": layer.units, "bias": layer.use_bias}
        _write(where / "config.json", fields | {"activation_function": names[layer.activation]})
        prefix = f"{PREFIX}dense_{count}."
        layer_weights = [
            (weight[0].removeprefix(prefix), *weight[1:]) for weight in weights if weight[0].startswith(prefix)
        ]
        safetensors_files.write_folder(where, layer_weights)
        width, count = layer.units, count + 1
    fields = {
        "prompts": dict(record.prompts),
        "default_prompt_name": record.default_prompt_name,
        "similarity_fn_name": record.similarity,
    }
    _write(folder / MODEL_CONFIG, {"model_type": "SentenceTransformer"} | dict(record.config) | fields)


def _pooling_of(embed: EmbeddingConfig, size: int) -> dict[str, Any]:
    """Returns Pooling's config, with flags, which every version reads, if they can express the pooling."""
    fields: dict[str, Any] = {"word_embedding_dimension": size}
    if embed.pooling == tuple(ours for ours in _FLAGS.values() if ours in embed.pooling):
        fields |= {flag: ours in embed.pooling for flag, ours in _FLAGS.items()}
    else:
        theirs = {ours: name for name, (ours, _) in _POOLINGS.items()}
        fields = {"embedding_dimension": size, "pooling_mode": [theirs[mode] for mode in embed.pooling]}
    return fields | {"include_prompt": embed.include_prompt}


def _write(path: pathlib.Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
