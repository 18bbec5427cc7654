"""Reads tokenizer.json and the files next to it as Hugging Face's libraries do.

tokenizer.json defines how a text becomes ids. tokenizer_config.json, special_tokens_map.json and added_tokens.json
assign roles to tokens, add tokens, and take precedence for a few options.
"""

import dataclasses
import json
import pathlib
from typing import Any

from tfzoo.errors import UserError
from tfzoo.json_files import show
from tfzoo.text import byte_level_files, settings, token_files, wordpiece
from tfzoo.text.byte_level import ByteLevelBPE
from tfzoo.text.components import pre_tokenizers, processors, schema, word_models
from tfzoo.text.pipeline import Pipeline
from tfzoo.text.settings import CONFIG_FILE, SPLIT_PATTERNS, TOKENIZER_FILE
from tfzoo.text.tokenizer import Tokenizer
from tfzoo.text.wordpiece import WordPiece

# Classes that add their own special tokens around a text, regardless of add_bos_token and add_eos_token.
_OWN_FRAME = {
    "Bert", "DistilBert", "Electra", "T5", "Roberta", "Bart", "XLNet", "Albert", "XLMRoberta", "MBart", "Camembert",
}  # fmt: skip


def read(folder: pathlib.Path, kind: str) -> dict[str, Any]:
    """Returns the content of a folder's tokenizer.json; for a folder with older files, the equivalent content.

    Args:
      kind: tokenizer_json, wordpiece or byte_level: see `tfzoo.text.find`.

    Raises:
      UserError: a file is missing or damaged.
    """
    if kind != "tokenizer_json":
        return (wordpiece if kind == "wordpiece" else byte_level_files).read(folder)
    return schema.read(folder / TOKENIZER_FILE)


def pack(record: dict[str, Any]) -> bytes:
    """Returns the content of a tokenizer.json in a form that `unpack` reads in a fraction of the time of JSON.

    A vocabulary whose ids are 0, 1, 2, ... is written one token per line; for any other vocabulary the result is b"".
    """
    vocab = record["model"].get("vocab")
    tokens = [*vocab] if isinstance(vocab, dict) else []
    if not tokens or any("\n" in token for token in tokens) or not word_models.is_in_order(vocab):
        return b""
    rest = json.dumps({**record, "model": {**record["model"], "vocab": None}})
    return "\n".join([rest, *tokens]).encode(errors="surrogatepass")


def unpack(content: bytes | None) -> dict[str, Any] | None:
    """Returns the argument of `pack`; None if it, or the cache, kept nothing."""
    if not content:
        return None
    rest, *tokens = content.decode(errors="surrogatepass").split("\n")
    record = json.loads(rest)
    record["model"]["vocab"] = dict(zip(tokens, range(len(tokens))))
    return record


def make(record: dict[str, Any], folder: pathlib.Path, kind: str) -> tuple[Tokenizer, dict[str, Any]]:
    """Returns a folder's tokenizer and its tokenizer.json's content, with the changes of the files next to it.

    Args:
      record: the result of `read`.

    Raises:
      UserError: a file is damaged, or requires something that is not supported.
    """
    path = folder / {"wordpiece": "vocab.txt", "byte_level": "vocab.json"}.get(kind, TOKENIZER_FILE)
    config = settings.read(folder)
    ids = dict(word_models.vocabulary(record["model"], f"{path}: model"))
    added = token_files.added_tokens(folder, record, config, ids)
    roles = token_files.roles_of(folder, config, ids)
    defaults = settings.ROLES_OF_CLASS.get(settings.class_of(folder), {})
    if kind == "wordpiece" or (not defaults and not roles and _is_bert(record)):
        defaults = {**wordpiece.ROLES_OF_BERT, **defaults}
    elif not defaults and not roles and _is_byte_level(record):  # No file specifies roles: use the usual ones.
        special = {token.content for token in added if token.special}
        defaults = {
            role: token for token, names in byte_level_files.USUAL.items() for role in names if token in special
        }
    padding = (record.get("padding") or {}).get("pad_token")
    defaults = {**defaults, **({"pad": padding} if padding else {})}
    roles = {**{role: token for role, token in defaults.items() if token in ids}, **roles}
    added = [dataclasses.replace(t, special=t.special or t.content in roles.values()) for t in added]
    vocab = [*ids] if word_models.is_in_order(ids) else _by_id(ids, path)
    record = _overridden(record, config, folder / CONFIG_FILE)
    maker = _wordpiece if _is_bert(record) else _byte_level if _is_byte_level(record) else _pipeline
    tokenizer = maker(record, vocab, roles, added, path)
    # transformers 5 does not clean up texts of byte-pair encoding: a space before a full stop is kept there.
    tokenizer.cleans_up = bool(config.get("clean_up_tokenization_spaces")) and record["model"].get("type") != "BPE"
    tokenizer.frames = _frames(folder, record, config, tokenizer, ids, path)
    return tokenizer, record


def _by_id(ids: dict[str, int], path: pathlib.Path) -> list[str]:
    """Returns the text of each id, "" for an id without a token; raises UserError if two tokens share an id."""
    by_id = dict(zip(ids.values(), ids))
    if max(by_id) >= settings.MAX_TOKENS:
        raise UserError(
            f"{path}: {show(by_id[max(by_id)])} has id {max(by_id)}, but a vocabulary has at most "
            f"{settings.MAX_TOKENS} tokens; get the file again"
        )
    if len(by_id) < len(ids):
        twice = next(token for token, i in ids.items() if by_id[i] != token)
        raise UserError(
            f"{path}: {show(twice)} and {show(by_id[ids[twice]])} both have id {ids[twice]}; get the file again"
        )
    return [by_id.get(i, "") for i in range(max(by_id) + 1)]


def _wordpiece(record, vocab, roles, added, path):
    model, normalizer = record["model"], record["normalizer"]
    unknown = model.get("unk_token", "[UNK]")
    if unknown not in vocab:
        raise UserError(
            f"{path}: model.unk_token is {show(unknown)}, which is not in the vocabulary; get the file again"
        )
    return WordPiece(
        vocab,
        normalizer.get("lowercase", True),
        strip_accents=normalizer.get("strip_accents"),
        roles={"unknown": unknown, **roles},
        added_tokens=added,
        max_characters=model.get("max_input_chars_per_word", 100),
        cleanup=bool((record.get("decoder") or {}).get("cleanup", False)),
        name=str(path),
    )


def _byte_level(record, vocab, roles, added, path):
    model, where = record["model"], f"{path}: model"
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise UserError(f"{where}.{name}: is {show(model[name])}, which is not supported")
    unknown = model.get("unk_token")
    normalizer = record.get("normalizer") or {}
    kinds = [part.get("type") for part in normalizer.get("normalizers", [normalizer])]
    if kinds not in ([None], ["NFC"], []):
        raise UserError(f"{path}: normalizer is {kinds}; only NFC or none is supported before ByteLevel")
    *before, last = pre_tokenizers.parts(record["pre_tokenizer"])
    pattern = "gpt2" if last.get("use_regex", True) else ""
    if not pattern and before and (name_of_pattern := _known_pattern(before[-1])):
        pattern = name_of_pattern
        before.pop()
    return ByteLevelBPE(
        vocab,
        word_models.pairs(model, where),
        roles=roles,
        added_tokens=added,
        pattern=pattern,
        splits=before,
        ignore_merges=bool(model.get("ignore_merges")),
        add_prefix_space=bool(last.get("add_prefix_space", True)),
        nfc=kinds == ["NFC"],
        unknown=unknown if unknown in vocab else None,
        name=str(path),
    )


def _pipeline(record, vocab, roles, added, path):
    return Pipeline(record, vocab, roles=roles, added_tokens=added, name=str(path))


def _known_pattern(part: dict[str, Any]) -> str | None:
    """Returns the name of the split pattern of a pre_tokenizer that ByteLevelBPE implements faster itself, or None."""
    pattern_record = part.get("pattern")
    expression = pattern_record.get("Regex") if isinstance(pattern_record, dict) else None
    if part.get("type") != "Split" or part.get("behavior") != "Isolated":
        return None
    return next((name for name, pattern in SPLIT_PATTERNS.items() if pattern == expression), None)


def _is_bert(record: dict[str, Any]) -> bool:
    """Returns whether WordPiece implements all of it: BERT's normaliser, with Chinese characters, and words."""
    model, normalizer = record["model"], record.get("normalizer") or {}
    return (
        model.get("type", "WordPiece") == "WordPiece"
        and model.get("continuing_subword_prefix", "##") == "##"
        and normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text", True)
        and normalizer.get("handle_chinese_chars", True)
        and (record.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
    )


def _is_byte_level(record: dict[str, Any]) -> bool:
    parts = pre_tokenizers.parts(record.get("pre_tokenizer"))
    return record["model"].get("type", "BPE") == "BPE" and bool(parts) and parts[-1].get("type") == "ByteLevel"


def _overridden(record: dict[str, Any], config: dict[str, Any], path) -> dict[str, Any]:
    """Returns the record with the options that tokenizer_config.json overrides."""
    record = dict(record)
    normalizer = record.get("normalizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        names = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
        names |= {"tokenize_chinese_chars": "handle_chinese_chars"}
        options = {field: config[name] for name, field in names.items() if name in config}
        record["normalizer"] = {**normalizer, **options}
    prefix = config.get("add_prefix_space")
    if prefix is not None and _is_byte_level(record):
        record["pre_tokenizer"] = _with_prefix(record["pre_tokenizer"], prefix)
    elif prefix is not None and prefix != (before := _puts_space_before(record)) and before is not None:
        puts = "adds a" if before else "adds no"
        raise UserError(
            f"{path}: add_prefix_space is {prefix}, but {TOKENIZER_FILE} {puts} space before texts; correct the one "
            "that is wrong"
        )
    return record


def _puts_space_before(record: dict[str, Any]) -> bool | None:
    """Returns whether a tokenizer that marks spaces adds one before a text; None if it does not mark spaces."""
    parts = [part for part in pre_tokenizers.parts(record.get("pre_tokenizer")) if part.get("type") == "Metaspace"]
    if parts:
        return (parts[0].get("prepend_scheme") or parts[0].get("add_prefix_space", True)) not in ("never", False)
    normalizer = record.get("normalizer") or {}
    kinds = [part.get("type") for part in normalizer.get("normalizers", [normalizer])]
    return "Prepend" in kinds if "Replace" in kinds and record["model"].get("byte_fallback") else None


def _with_prefix(part: dict[str, Any], prefix: bool) -> dict[str, Any]:
    if part.get("type") == "Sequence":
        return {**part, "pretokenizers": [_with_prefix(inner, prefix) for inner in part["pretokenizers"]]}
    return {**part, "add_prefix_space": prefix} if part.get("type") == "ByteLevel" else part


def _frames(folder, record, config, tokenizer, ids, path) -> processors.Frames | None:
    """Returns the frames with the special tokens around one text and around two.

    They come from the file's post_processor or, if tokenizer_config.json has add_bos_token or add_eos_token and
    transformers' class respects them, from these. None leaves the frames to the tokenizer class, that is, to the model
    family's page.
    """
    class_decides, written = settings.class_of(folder) in _OWN_FRAME, record.get("post_processor")
    flags = [config.get(name) for name in ("add_bos_token", "add_eos_token")]
    if class_decides or flags == [None, None]:
        if written is None and (class_decides or path.name != TOKENIZER_FILE):
            return None
        return processors.compile_processor(written, ids, f"{path}: post_processor")
    bos = [tokenizer.bos_id] if flags[0] and tokenizer.bos_id is not None else []
    eos = [tokenizer.eos_id] if flags[1] and tokenizer.eos_id is not None else []
    return processors.begin_and_end(bos, eos)
