"""Models of the Hugging Face hub, which hf://NAME[@REVISION] specifies wherever a model's folder is expected.

    hub.folder("hf://openai-community/gpt2")    # downloaded to the cache of the hub: .../snapshots/COMMIT
    hub.pin("hf://openai-community/gpt2")       # "hf://openai-community/gpt2@COMMIT": always the same files
    hub.folder("runs/bert")                     # a local folder is returned unchanged

Files are downloaded and cached by huggingface_hub, an optional dependency; HF_ENDPOINT, HF_HOME, HF_HUB_CACHE,
HF_HUB_OFFLINE and HF_TOKEN have the same meaning as there. Only FILES are downloaded: weights in safetensors format,
and files that describe how they are used. None of them can execute code.
"""

import functools
import importlib
import os
import pathlib
import re
import sys

from tfzoo.errors import UserError, one_line

SCHEME = "hf://"
_OWN = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "characters.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "sentence_bert_config.json",
)
# The files of a model, and those of sentence-transformers, whose modules are in folders such as 1_Pooling.
FILES = (*_OWN, "modules.json", "config_sentence_transformers.json", *(f"[0-9]_*/{name}" for name in _OWN))
_REFERENCE = re.compile(r"hf://?(?P<name>[^@]+)(?:@(?P<revision>.+))?")  # pathlib replaces two slashes with one.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def is_reference(source: str | os.PathLike | None) -> bool:
    """Returns whether a folder is specified as hf://NAME."""
    return source is not None and os.fspath(source).startswith(("hf://", "hf:/"))


def folder(source: str | os.PathLike, flag: str = "model_dir") -> pathlib.Path:
    """Returns a local folder, or the folder with the files of hf://NAME[@REVISION], which are downloaded if necessary.

    Args:
      source: a folder, or hf://NAME[@REVISION].
      flag: the flag that specifies it, for messages.

    Raises:
      UserError: the folder does not exist, and its name may be that of a model on the hub; or the files cannot be
        downloaded.
    """
    if is_reference(source):
        return _fetch(os.fspath(source), flag)
    path = pathlib.Path(source)
    if _NAME.fullmatch(os.fspath(source)) and not path.exists():
        name = os.fspath(source)
        raise UserError(
            f"--{flag}={name}: no such folder; for the model of that name on the Hugging Face hub, write "
            f"--{flag}={SCHEME}{name}"
        )
    return path


def pin(source: str, flag: str = "model_dir") -> str:
    """Returns hf://NAME@COMMIT for a reference, whose files are downloaded; any other source is returned unchanged.

    Raises:
      UserError: the files cannot be downloaded.
    """
    if not is_reference(source):
        return source
    return f"{SCHEME}{_split(source, flag)[0]}@{folder(source, flag).name}"


def stands_for(pinned: str | None, source: str) -> bool:
    """Returns whether a pinned reference may be the commit to which `source` was once pinned."""
    if not is_reference(pinned) or not is_reference(source):
        return False
    (name, commit), (other, revision) = _split(str(pinned), ""), _split(source, "")
    return name == other and revision in (None, commit)


def _split(source: str, flag: str) -> tuple[str, str | None]:
    match = _REFERENCE.fullmatch(source)
    if not match or not _NAME.fullmatch(match["name"]):
        raise UserError(
            f"--{flag}={source}: is not a valid model name; write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        )
    return match["name"], match["revision"]


@functools.cache  # The commit must not change within a process.
def _fetch(source: str, flag: str) -> pathlib.Path:
    name, revision = _split(source, flag)
    try:
        library, errors, utils = (importlib.import_module(f"huggingface_hub{n}") for n in ("", ".errors", ".utils"))
    except ImportError:
        raise UserError(
            f"--{flag}={source}: requires huggingface_hub, which is not installed; run pip install 'tfzoo[hub]'"
        ) from None
    # huggingface_hub reads its variables once, when it is imported.
    endpoint, cache, offline = os.environ.get("HF_ENDPOINT") or None, _cache(), _is_offline()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        snapshot = library.snapshot_download(
            name,
            revision=revision,
            cache_dir=cache,
            endpoint=endpoint.rstrip("/") if endpoint else None,
            local_files_only=offline,
            allow_patterns=list(FILES),
            library_name="tfzoo",
        )
    except errors.GatedRepoError:
        problem = "is gated; accept the terms on its web page, and log in (hf auth login, or HF_TOKEN)"
    except errors.RepositoryNotFoundError:
        where = endpoint or "the Hugging Face hub"
        problem = f"does not exist on {where}, or is private; correct the name, or log in (hf auth login, or HF_TOKEN)"
    except errors.RevisionNotFoundError:
        problem = f"has no revision {revision}; specify an existing branch, tag or commit"
    except errors.LocalEntryNotFoundError as error:
        reason, remedy = "HF_HUB_OFFLINE is set", "unset it once, or copy the cache of a machine that has the model"
        if not offline:
            reason, remedy = one_line(error.__cause__ or error, 200), "check the network connection, and try again"
        where = f"the cache {cache}" if cache else "the hub's cache"
        problem = f"cannot be downloaded ({reason}) and is missing or incomplete in {where}; {remedy}"
    except errors.HFValidationError as error:
        problem = f"is not a valid model name ({one_line(error, 200)}); write hf://OWNER/NAME"
    except Exception as error:  # Any error of its HTTP client or of the file system.
        problem = f"cannot be downloaded ({type(error).__name__}: {one_line(error, 200)}); try again"
    else:
        return _checked(pathlib.Path(snapshot), source, flag, offline)
    raise UserError(f"--{flag}={source}: {problem}")


def _checked(snapshot: pathlib.Path, source: str, flag: str, offline: bool) -> pathlib.Path:
    """Returns a snapshot if it contains a model.

    Raises:
      UserError: config.json or the weights are missing.
    """
    if (snapshot / "modules.json").is_file():
        return snapshot  # The code that reads it checks the modules that the file lists.
    weights = ("model.safetensors", "model.safetensors.index.json")
    for names, content in ((("config.json",), "config.json"), (weights, "weights in safetensors format")):
        if not any((snapshot / name).is_file() for name in names):
            remedy = "pickle files such as pytorch_model.bin are not downloaded: use a model with safetensors weights"
            if offline:
                remedy = "HF_HUB_OFFLINE is set, and the cache may be incomplete: unset it once"
            elif content == "config.json":
                remedy = "use a model of the transformers library"
            raise UserError(f"--{flag}={source}: has no {content}; {remedy}")
    return snapshot


def _cache() -> str | None:
    """Returns the cache folder that the environment specifies; None means huggingface_hub's default."""
    for name, inside in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if os.environ.get(name):
            return os.path.expanduser(os.path.join(os.environ[name], inside).rstrip("/"))
    return None


def _is_offline() -> bool:
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")
