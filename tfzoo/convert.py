"""Converts a model to a Hugging Face folder: config.json, safetensors and the tokenizer's files.

    python -m tfzoo.convert --from=uncased_L-12_H-768_A-12 --to=bert-base-uncased

--from is one of: a Hugging Face folder (to store its weights with another dtype or in other shards), the folder of a
training run, a TF1 checkpoint of google-research's BERT or ELECTRA, or a KerasHub preset, including the head of its
task. Tensors and files that are not converted are listed.
"""

import dataclasses
import math
import pathlib
import re
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, hub, json_files
from tfzoo.errors import UserError
from tfzoo.json_files import Field
from tfzoo.text.template import TEMPLATE_FOLDER

# Files that Hugging Face's tokenizers and generation read.
_CARRIED = {
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "generation_config.json",
}
# KerasHub's names of vocabularies -> Hugging Face's; that of a SentencePiece model depends on the family.
_ASSETS = {"vocabulary.txt": "vocab.txt"}
_SPM = {
    "albert": "spiece.model",
    "t5": "spiece.model",
    "roberta": "sentencepiece.bpe.model",
    "llama": "tokenizer.model",
}
# google-research/bert, tokenization.py, validate_case_matches_checkpoint: the case that a checkpoint's name implies.
_LOWERCASE = re.compile(r"(?:^|_)(uncased|multilingual_L|chinese_L|electra)", re.IGNORECASE)
_CASED = re.compile(r"(?:^|_)cased", re.IGNORECASE)


def define_flags(flags: absl_flags.FlagValues) -> None:
    def string(name, default, text):
        absl_flags.DEFINE_string(name, default, text, flag_values=flags)

    string("from", None, "Model to convert: a folder, hf://NAME[@REVISION], or the prefix of a TF1 checkpoint.")
    string("to", None, "Hugging Face folder to write; must not exist or must be empty.")
    string(
        "checkpoint",
        None,
        "Checkpoint to read if the folder has several: one of a run, or the prefix of a TF1 checkpoint.",
    )
    string(
        "role",
        None,
        "Which model of a run with several models to convert, such as generator; by default, the main model.",
    )
    absl_flags.DEFINE_enum(
        "dtype",
        "same",
        ["same", "float32", "float16", "bfloat16"],
        "Type of the stored weights; same keeps that of the source.",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "max_shard_mb",
        5000,
        "Maximum size of a weight file in MB; a larger model is split into several files.",
        flag_values=flags,
    )
    absl_flags.DEFINE_boolean(
        "lowercase",
        None,
        "Whether the vocab.txt of a TF1 checkpoint is uncased; by default, the folder's name decides.",
        flag_values=flags,
    )
    absl_flags.DEFINE_enum(
        "part",
        "discriminator",
        ["discriminator", "generator"],
        "Model to convert from a TF1 checkpoint of ELECTRA, which contains both.",
        flag_values=flags,
    )
    absl_flags.DEFINE_boolean(
        "task", True, "Also convert the head of a KerasHub preset's task (task.json).", flag_values=flags
    )
    absl_flags.mark_flags_as_required(["from", "to"], flag_values=flags)
    cli.positive(flags, "max_shard_mb")


@dataclasses.dataclass
class Found:
    """A model that was read, and the files that belong to it."""

    kind: str
    folder: pathlib.Path
    model: Any
    dtype: str = "float32"  # The dtype in which the weights were stored.
    tokenizer: Any = None
    carried: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)  # To copy: target name -> file.
    tensors_left: Sequence[str] = ()
    files_left: Sequence[str] = ()

    def save(self, folder: pathlib.Path) -> None:
        """Writes the files next to the weights; huggingface.save calls it in place of a tokenizer's."""
        if self.tokenizer is not None:
            self.tokenizer.save(folder)
        for name, path in self.carried.items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)


def main(flags: absl_flags.FlagValues) -> None:
    from tfzoo.training import history  # Not needed for --help; importing TensorFlow takes seconds.
    from tfzoo.weights import huggingface, safetensors_files

    reference, target = flags["from"].value or "", pathlib.Path(flags.to)
    source = hub.folder(reference, "from") if hub.is_reference(reference) else pathlib.Path(reference)
    huggingface.check_new(target)
    converted = _read(source, flags)
    dtype = converted.dtype if flags.dtype == "same" else flags.dtype
    if converted.model.record and "generation_config.json" in converted.carried:  # It is copied unchanged.
        converted.model.record = dataclasses.replace(converted.model.record, generation_config={})
    try:
        huggingface.save(
            converted.model,
            target,
            converted,
            dtype=dtype,
            max_shard_bytes=flags.max_shard_mb * 10**6,
            origin=history.origin_of(reference, flags.checkpoint, flags.role),
        )
    except OSError as error:
        raise UserError(
            f"--to={target}: cannot be written ({error.strerror or error}); specify another folder"
        ) from None
    with safetensors_files.open_folder(target) as file:
        count = sum(math.prod(file.shape(name)) for name in file.names)
        shards = len({file.file(name) for name in file.names})
        size = f"{count:,} parameters, {len(file)} tensors in {shards} file{'s' if shards > 1 else ''}, {dtype}"
    record = json_files.read(target / "config.json")
    cli.show(f"read {reference}: {converted.kind}")
    cli.show(f"wrote {target}: {(record.get('architectures') or [record['model_type']])[0]}, {size}")
    other_files = (path.name for path in target.iterdir() if path.name != "config.json" and path.name[:5] != "model")
    for label, names in (
        ("other files written", sorted(other_files)),
        ("tensors not converted", converted.tensors_left),
        ("files not converted", converted.files_left),
    ):
        if names:
            cli.show(f"{label}: {', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}")


def _read(source: pathlib.Path, flags: absl_flags.FlagValues) -> Found:
    from tfzoo.training import runs
    from tfzoo.weights import huggingface

    checkpoint = flags.checkpoint
    if not source.is_dir():
        if not source.with_name(source.name + ".index").is_file():
            raise UserError(f"--from={source}: no such folder; specify one that contains a model")
        source, checkpoint = source.parent, source.name
    config = source / "config.json"
    if (source / "flags.cfg").exists():
        _omit(flags, "a run's folder", "part", "lowercase", "task")
        model, tokenizer = runs.load(source, checkpoint, role=flags.role)
        return Found("a run's folder", source, model, tokenizer=tokenizer)
    if config.exists() and any(source.glob("*.weights.*")) and "class_name" in json_files.read(config):
        _omit(flags, "a KerasHub preset", "checkpoint", "role", "part", "lowercase")
        return _keras(source, flags.task)
    if any(source.glob("*.index")) and not any(source.glob("*.safetensors")):
        _omit(flags, "a TF1 checkpoint", "role", "task")
        return _tf1(source, checkpoint, flags)
    if huggingface.is_folder(source):
        _omit(flags, "a Hugging Face folder", "checkpoint", "role", "part", "lowercase", "task")
        return _hugging_face(source)
    raise UserError(
        f"--from={source}: contains neither config.json nor a checkpoint (*.index); specify the folder of a "
        "Hugging Face model, a run, a TF1 checkpoint or a KerasHub preset"
    )


def _omit(flags: absl_flags.FlagValues, kind: str, *names: str) -> None:
    for name in names:
        if flags[name].present:
            raise UserError(f"--{name}={flags[name].value}: does not apply to {kind}; omit it")


def _hugging_face(folder: pathlib.Path) -> Found:
    from tfzoo import models
    from tfzoo.weights import huggingface, model_card, safetensors_files, sentence_transformers, table

    source, folder = folder, sentence_transformers.transformer_of(folder)
    with safetensors_files.open_folder(folder) as file:
        stored, dtype = file.names, _dtype(file)
        used = {file.file(name).name for name in stored} | {safetensors_files.INDEX, "config.json"}
    model, _ = huggingface.load(source, tokenizer=False)
    used |= sentence_transformers.files_of(source)
    page = models.page_of(model)
    prefix, canonical = getattr(page, "PREFIX", ""), table.HUGGING_FACE.canonical
    assigned = {slot.name.removeprefix(prefix) for slot in table.slots(page.WEIGHTS, model)}
    carried = {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_file() and (path.name in _CARRIED or path.name.startswith("chat_template."))
    }
    carried |= {path.name: path for path in [source / model_card.NAME] if path.is_file()}  # Its author's, unchanged.
    carried |= {f"{TEMPLATE_FOLDER}/{path.name}": path for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    return Found(
        "a sentence-transformers folder" if sentence_transformers.is_folder(source) else "a Hugging Face folder",
        folder,
        model,
        dtype,
        carried=carried,
        tensors_left=[name for name in stored if canonical(name).removeprefix(prefix) not in assigned],
        files_left=_left(folder, used | {pathlib.PurePath(name).parts[0] for name in carried}),
    )


def _tf1(folder: pathlib.Path, checkpoint: str | None, flags: absl_flags.FlagValues) -> Found:
    from tfzoo.text.wordpiece import WordPiece
    from tfzoo.weights import google_checkpoints

    source = google_checkpoints.open_tf1(folder, checkpoint, flags.part)
    with source.file:
        tokenizer = None
        vocabulary = folder / "vocab.txt"
        if vocabulary.exists():
            lowercase = _lowercase(folder, source.family) if flags.lowercase is None else flags.lowercase
            tokenizer = WordPiece.from_file(vocabulary, lowercase)
            if tokenizer.vocab_size > source.config.vocab_size:
                raise UserError(
                    f"{vocabulary}: has {tokenizer.vocab_size} tokens, but the model's vocab_size is "
                    f"{source.config.vocab_size}; restore the model's own vocabulary"
                )
        return _foreign(source, tokenizer, {}, {"vocab.txt"})


def _lowercase(folder: pathlib.Path, family: str) -> bool:
    name = folder.resolve().name
    if family == "electra" or _LOWERCASE.search(name):
        return True
    if _CASED.search(name):
        return False
    raise UserError(f"{folder}: cannot determine whether vocab.txt is cased; pass --lowercase or --nolowercase")


def _keras(folder: pathlib.Path, task: bool) -> Found:
    from tfzoo.text.wordpiece import WordPiece
    from tfzoo.weights import keras_presets, keras_tokenizers

    source = keras_presets.open_keras(folder, task)
    with source.file:
        assets = folder / "assets" / "tokenizer"
        names = _ASSETS | {"vocabulary.spm": _SPM.get(source.family, "spiece.model")}
        carried = {names[path.name]: path for path in sorted(assets.glob("*")) if path.name in names}
        tokenizer: Any = None
        settings, ids = folder / keras_tokenizers.SETTINGS, dict[str, Any]()
        if (assets / keras_tokenizers.VOCABULARY).exists():
            tokenizer = keras_tokenizers.ByteLevelFiles.from_preset(folder, source.backbone)
            ids = tokenizer.config_fields()
        elif "vocab.txt" in carried:
            record = json_files.read(settings) if settings.exists() else {}
            json_files.check(record, {"config": Field(dict)}, settings)
            lowercase = (record.get("config") or {}).get("lowercase")
            if not isinstance(lowercase, bool):
                raise UserError(
                    f"{settings}: does not specify whether the vocabulary is lowercase; restore the preset's own file"
                )
            tokenizer = WordPiece.from_file(carried["vocab.txt"], lowercase)
            ids = {} if tokenizer.pad_id is None else {"pad_token_id": tokenizer.pad_id}
        _check_ids(assets, source.config, tokenizer, ids)
        source = dataclasses.replace(source, record={**source.record, **ids})
        return _foreign(source, tokenizer, carried, {"assets", "tokenizer.json"})


def _check_ids(assets: pathlib.Path, config, tokenizer, ids: Mapping[str, Any]) -> None:
    """Raises UserError if a preset's vocabulary and its weights cannot belong to the same model."""
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{assets}: its vocabulary has {tokenizer.vocab_size} tokens, but the model's vocabulary_size is "
            f"{config.vocab_size}; restore the preset's own files"
        )
    pad = ids.get("pad_token_id")
    if config.position_offset and pad not in (None, config.position_offset - 1):
        raise UserError(
            f"{assets}: the padding token has id {pad}, but the family's Hugging Face model requires "
            f"{config.position_offset - 1} because its positions start after it; only such presets are supported"
        )


def _foreign(source, tokenizer, carried: Mapping[str, pathlib.Path], beside: Collection[str]) -> Found:
    """Returns the model in another library's files; `beside` has the names of further files that were read."""
    from tfzoo.weights import foreign

    model, not_used = foreign.load(source)
    return Found(
        f"{source.kind}, {source.model_type}",
        source.where,
        model,
        _dtype(source.file),
        tokenizer,
        carried,
        not_used,
        _left(source.where, {*source.used, *beside}),
    )


def _left(folder: pathlib.Path, used: Collection[str]) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in used)


def _dtype(file) -> str:
    """Returns the type of all weights of a file, or float32 if they differ or have another type."""
    names = {"F16": "float16", "BF16": "bfloat16"}
    kinds = {file.dtype(name) for name in file.names} & {"F16", "BF16", "F32", "F64"}
    return names.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
