"""Folders of models from elsewhere: Hugging Face and sentence-transformers, and their tokenizers."""

import dataclasses
import pathlib
import random
import shutil
from typing import Any

from tests.fuzz.harness import Kind
from tests.fuzz.mutations import damage_file, damage_one

_ASSETS = pathlib.Path(__file__).parents[1] / "assets"
_MODELS = {
    name: _ASSETS / "golden" / name
    for name in (
        *("albert_classify", "bart", "bert", "bert_tag", "distilbert_span", "electra_discriminator", "gpt2", "llama3"),
        *("llama_longrope", "llama_yarn", "marian", "mistral", "pegasus", "reformer", "roberta", "t5_v1_1", "xlnet"),
    )
}
_MODELS |= {f"writes_{name}": _ASSETS / "golden_generation" / name for name in ("bart", "gpt2", "llama", "t5")}
_MODELS |= {f"sentence_{name}": _ASSETS / "golden_sentence" / name for name in ("bert", "cased", "gpt2", "roberta")}
_TOKENIZERS = {name: _ASSETS / "golden_sentence" / name for name in ("bert", "gpt2", "roberta")}
_TOKENIZERS |= {name: _ASSETS / "golden_chat" / name for name in ("bytes", "merges", "metaspace")}
_TEXT = "Hello, Wörld of 12 tokens!"


def one_of(folder: pathlib.Path, draw: random.Random) -> pathlib.Path:
    """Removes all folders in a folder but one, and returns that one."""
    *others, kept = draw.sample(sorted(folder.iterdir()), len(list(folder.iterdir())))
    for other in others:
        shutil.rmtree(other)
    return kept


def damage_settings(folder: pathlib.Path, draw: random.Random) -> str:
    """Damages a JSON file of one folder in a folder; rarely any file, or the kind of file."""
    kept = one_of(folder, draw)
    settings = sorted(path for path in kept.rglob("*.json"))
    if draw.random() < 0.15 or not settings:
        return f"{kept.name}: {damage_one(kept, draw)}"
    return f"{kept.name}: {damage_file(draw.choice(settings), draw)}"


def _make_models(folder: pathlib.Path) -> None:
    for name, source in _MODELS.items():
        unused = ("golden.*", "case.json", "folders.json")
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(*unused))


def described(model) -> dict[str, Any]:
    """Returns what the files of a folder say about a model, without its weights."""
    from tfzoo.generation import folder as decoding

    record = model.record
    return {
        "config": model.config.resolved(),
        "heads": (model.head_names, model.num_labels, model.labels, model.pool),
        "embed": repr(getattr(model, "embed", None)),
        "sentence": None if record is None or record.sentence is None else dataclasses.asdict(record.sentence),
        "special_ids": decoding.special_ids(model) if model.can_generate else None,
        "options": decoding.folder_options(model) if model.can_generate else None,
    }


def _read_model(folder: pathlib.Path) -> Any:
    """Loads a model, as all commands do; and reads all that it might be asked for."""
    from tfzoo.training import runs

    models = []
    for inner in sorted(folder.iterdir()):
        model, tokenizer = runs.load(inner)
        models.append((described(model), tokenizer and tokenizer.fingerprint(), runs.embedding_of(inner)))
    return models


def _make_tokenizers(folder: pathlib.Path) -> None:
    names = shutil.ignore_patterns("*.safetensors", "*.npz", "config.json", "modules.json", "*_Pooling", "*_Dense")
    for name, source in _TOKENIZERS.items():
        shutil.copytree(source, folder / name, ignore=names)


def _read_tokenizer(folder: pathlib.Path) -> Any:
    from tfzoo import text

    read = []
    for inner in sorted(folder.iterdir()):
        tokenizer = text.load(inner)
        limits = tokenizer.max_length, tokenizer.padding_side, tokenizer.truncation_side
        ids = tokenizer.tokenize([_TEXT]).to_list()
        read.append((ids, tokenizer.special_ids, limits, dict(tokenizer.chat_templates), tokenizer.fingerprint()))
    return read


_MODULES = ("tensorflow", "tfzoo.training.runs", "tfzoo.generation", "tfzoo.text.proof")
KINDS = {
    "models": Kind(_make_models, damage_settings, _read_model, modules=_MODULES),
    "tokenizers": Kind(_make_tokenizers, damage_settings, _read_tokenizer, modules=_MODULES),
}
