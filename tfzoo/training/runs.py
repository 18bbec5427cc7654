"""A run's folder: what training writes, and what every other entry point reads.

flags.cfg       every flag but run_dir: python -m tfzoo.train --flagfile=flags.cfg repeats the run
config.json     {"model": name, "heads": [names], "config": TransformerConfig's fields, "tokenizer": its fingerprint}
corpus.json     the corpus's fingerprint and counts
tokenizer/      in Hugging Face's layout: vocab.txt, or vocab.json and merges.txt, or spiece.model, ...
checkpoints/    the newest few; best -> the one with the lowest held-out loss
metrics.jsonl   one object a line; events for TensorBoard; loss.png
"""

import dataclasses
import json
import os
import pathlib
import re

from tfzoo import config as config_lib
from tfzoo import files, models, text
from tfzoo.errors import UserError
from tfzoo.training import checkpoint
from tfzoo.weights import huggingface


def write_config(run_dir: str | os.PathLike, name: str, model, tokenizer=None) -> None:
    record = {"model": name, "heads": list(model.head_names), "config": dataclasses.asdict(model.config)}
    if tokenizer is not None:
        record["tokenizer"] = tokenizer.fingerprint()
    files.atomic_write(pathlib.Path(run_dir, "config.json"), json.dumps(record, indent=2) + "\n")


def _read_config(folder: pathlib.Path) -> dict:
    path = folder / "config.json"
    try:
        record = json.loads(path.read_text())
        assert {"model", "heads"} <= record.keys() and isinstance(record["config"], dict)
    except OSError as error:
        raise UserError(
            f"--model_dir={folder}: {path} cannot be read ({error.strerror}); name a run's or a Hugging Face folder"
        ) from None
    except (ValueError, AssertionError, AttributeError, KeyError):
        raise UserError(f"{path} is not a run's config; name a folder that tfzoo.train wrote") from None
    return record


def tokenizer_of(run_dir: str | os.PathLike):
    """The tokenizer of a run.

    Raises:
      UserError: it is missing, damaged, or not the one that the run began with.
    """
    return _tokenizer(pathlib.Path(run_dir), _read_config(pathlib.Path(run_dir)))


def _tokenizer(folder: pathlib.Path, record: dict):
    tokenizer = text.load(folder / "tokenizer")
    vocab_size, fingerprint = record["config"].get("vocab_size"), record.get("tokenizer")
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{folder / 'tokenizer'} has {tokenizer.vocab_size} tokens, the model's vocab_size is {vocab_size}; "
            "put the run's own tokenizer back"
        )
    if fingerprint not in (None, tokenizer.fingerprint()):  # Runs of an earlier day have none.
        raise UserError(
            f"{folder / 'tokenizer'}: is not the tokenizer of the run (fingerprint {tokenizer.fingerprint()[:12]}, in "
            f"{folder / 'config.json'} {str(fingerprint)[:12]}); put the run's own back"
        )
    return tokenizer


def _averages(arrays: dict) -> dict:
    """What --ema_decay kept, under the names of the weights that it averages."""
    pattern = re.compile(r"optimizer/(?:inner/)?(.+)/average")
    return {f"model/{match[1]}": arrays[key] for key in arrays if (match := pattern.fullmatch(key))}


def load(model_dir: str | os.PathLike, checkpoint_dir: str | os.PathLike | None = None, **options):
    """A model and its tokenizer, from a run's folder or from one of Hugging Face's.

    Args:
      model_dir: the --run_dir of a training run, or a folder with config.json and safetensors.
      checkpoint_dir: one of the run's checkpoints; None takes best/ where there is one, else the newest.
      **options: of huggingface.load: heads, num_labels, pool, dtype.

    Returns:
      (model, tokenizer): the Keras model in float32 and the tokenizer it was trained with.

    Raises:
      UserError: a file is missing or damaged, or the checkpoint holds other variables than the model.
    """
    folder = pathlib.Path(model_dir)
    path = folder / "config.json"
    if path.exists() and not (folder / "flags.cfg").exists():
        if checkpoint_dir is not None:
            raise UserError(
                f"--checkpoint={checkpoint_dir}: {folder} is no run's folder (it has no flags.cfg); omit it"
            )
        return huggingface.load(folder, **options)
    if options:
        raise UserError(
            f"{folder} is a run's folder, and {', '.join(options)} are for Hugging Face's; convert it first"
        )
    record = _read_config(folder)
    name, heads, config = record["model"], record["heads"], record["config"]
    tokenizer = _tokenizer(folder, record)
    if checkpoint_dir is None and (folder / "best").exists():
        checkpoint_dir = folder / "best"
    store = checkpoint.Checkpoints(folder / "checkpoints", read_only=True)
    step, _, arrays = store.read(checkpoint_dir)
    page = models.find(name)[0]
    model = page.Model(config_lib.from_mapping(config, models.config_class(page)), heads=heads)
    variables = checkpoint.model_variables(model)
    arrays = {key: value for key, value in (arrays | _averages(arrays)).items() if key in variables}
    checkpoint.assign_all(store.path(step), variables, arrays)
    tokenizer.adds_bos = model.can_generate and not model.is_encoder_decoder  # As the objective begins a document.
    return model, tokenizer
