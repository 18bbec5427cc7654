"""Conventions of tokenizer files: the roles of tokens, and tokenizer_config.json. Does not import TensorFlow."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tfzoo import json_files
from tfzoo.errors import UserError
from tfzoo.json_files import Field, Fields

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
CHARACTERS_FILE = "characters.txt"
# The files that a folder's tokenizer depends on, which are saved unchanged.
FILES = (
    TOKENIZER_FILE, CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "source.spm", "target.spm", *SENTENCEPIECE_FILES, CHARACTERS_FILE,
)  # fmt: skip
MAX_TOKENS = 10_000_000  # Of a vocabulary.
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # In the order of tfzoo's own vocabularies.

# Role -> its name in tokenizer_config.json.
ROLES = {
    "pad": "pad_token", "unknown": "unk_token", "bos": "bos_token", "eos": "eos_token", "cls": "cls_token",
    "sep": "sep_token", "mask": "mask_token",
}  # fmt: skip

# Hugging Face's classes whose own files are supported, without Fast.
CLASSES = {
    "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "RetriBertTokenizer", "LxmertTokenizer",
    "MobileBertTokenizer",
    "GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer", "LEDTokenizer", "Qwen2Tokenizer",
    "T5Tokenizer", "LlamaTokenizer", "XLNetTokenizer", "AlbertTokenizer", "XLMRobertaTokenizer", "MBartTokenizer",
    "MarianTokenizer",
    "PreTrainedTokenizer", "TokenizersBackend", "Characters",
}  # fmt: skip
_BERT = dict(zip(("pad", "unknown", "cls", "sep", "mask"), SPECIAL_TOKENS, strict=True))
_FAIRSEQ = {
    "bos": "<s>", "pad": "<pad>", "eos": "</s>", "unknown": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>",
}  # fmt: skip
_END = "<|endoftext|>"
# The default roles of each class's tokens, which older folders do not specify.
ROLES_OF_CLASS = {
    **dict.fromkeys(("Bert", "DistilBert", "Electra", "MobileBert", "Lxmert", "RetriBert"), _BERT),
    **dict.fromkeys(("Roberta", "Bart", "Longformer", "LED", "XLMRoberta", "MBart", "Camembert"), _FAIRSEQ),
    "GPT2": {"unknown": _END, "bos": _END, "eos": _END},
    "Qwen2": {"unknown": _END, "eos": _END, "pad": _END},
    "T5": {"pad": "<pad>", "eos": "</s>", "unknown": "<unk>"},
    "Llama": {"bos": "<s>", "eos": "</s>", "unknown": "<unk>"},
    "XLNet": {**_FAIRSEQ, "cls": "<cls>", "sep": "<sep>"},
    "Albert": {**_BERT, "unknown": "<unk>", "pad": "<pad>", "bos": "[CLS]", "eos": "[SEP]"},
}
_CLASS_OF_MODEL = {
    "bert": "Bert", "distilbert": "DistilBert", "electra": "Electra", "roberta": "Roberta", "bart": "Bart",
    "gpt2": "GPT2", "qwen2": "Qwen2", "qwen3": "Qwen2", "t5": "T5", "mt5": "T5", "llama": "Llama", "mistral": "Llama",
    "xlnet": "XLNet", "albert": "Albert", "xlm-roberta": "XLMRoberta", "mbart": "MBart", "camembert": "Camembert",
}  # fmt: skip
# Classes whose ids are computed by other software, and its name.
_ELSEWHERE = {
    "BertJapaneseTokenizer": "MeCab, Sudachi or Juman++", "BertweetTokenizer": "fastBPE and a tweet normaliser",
    "HerbertTokenizer": "sacremoses", "FlaubertTokenizer": "sacremoses", "XLMTokenizer": "sacremoses",
    "FSMTTokenizer": "sacremoses", "BioGptTokenizer": "sacremoses", "CpmTokenizer": "jieba", "CpmAntTokenizer": "jieba",
    "RoFormerTokenizer": "jieba", "PhobertTokenizer": "a Vietnamese word segmenter", "TapasTokenizer": "pandas",
    "CanineTokenizer": "code points", "ByT5Tokenizer": "bytes", "TransfoXLTokenizer": "sacremoses",
}  # fmt: skip

# The patterns by which byte-level tokenizers split a text into words, as in tokenizer.json.
SPLIT_PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
}

# A token is written as its text, or as an object with its text as "content".
TOKENS: Fields = {name: (Field(str), Field(dict)) for name in ROLES.values()}
_FIELDS: Fields = {
    "tokenizer_class": Field(str),
    "add_bos_token": Field(bool),
    "add_eos_token": Field(bool),
    "add_prefix_space": Field(bool),
    "clean_up_tokenization_spaces": Field(bool),
    "do_lower_case": Field(bool, null=False),
    "legacy": Field(bool),
    "model_max_length": (Field(int, low=1), Field(float, low=1)),
    "padding_side": Field(str, choices=("right", "left")),
    "strip_accents": Field(bool),
    "tokenize_chinese_chars": Field(bool, null=False),
    "truncation_side": Field(str, choices=("right", "left")),
    **dict.fromkeys(("additional_special_tokens", "extra_special_tokens"), (Field(list), Field(dict))),
    "added_tokens_decoder": Field(dict),
    "chat_template": (Field(str), Field(list)),
    **TOKENS,
}


def read(folder: str | os.PathLike, fields: Fields | None = None) -> dict[str, Any]:
    """Returns the content of a folder's tokenizer_config.json; an empty dict if there is no such file.

    Args:
      folder: the tokenizer's folder.
      fields: definitions of fields that only one kind of tokenizer reads.

    Raises:
      UserError: the file cannot be read, or a field that is read has an invalid type or value.
    """
    path = pathlib.Path(folder, CONFIG_FILE)
    if not path.exists():
        return {}
    record = json_files.read(path)
    json_files.check(record, {**_FIELDS, **(fields or {})}, path)
    check_tokens(record, path)
    return record


def check_tokens(record: Mapping[str, Any], path: pathlib.Path) -> None:
    """Raises UserError if a role is an object without the text of a token."""
    for name in ROLES.values():
        if isinstance(record.get(name), dict):
            json_files.check(record[name], {"content": Field(str, required=True)}, f"{path}: {name}")


def check_class(folder: str | os.PathLike, has_json: bool) -> None:
    """Rejects a tokenizer whose ids are computed by a program that tfzoo does not include.

    Raises:
      UserError: tokenizer_config.json, or else config.json, names such a class.
    """
    path, model_config = pathlib.Path(folder, CONFIG_FILE), pathlib.Path(folder, "config.json")
    config = read(folder)
    name = config.get("tokenizer_class")
    if name is None and model_config.is_file():
        path, name = model_config, json_files.read(model_config).get("tokenizer_class")
    if config.get("auto_map"):
        raise UserError(
            f"{path}: auto_map names the folder's own code; only the tokenizer classes of transformers are supported"
        )
    kind = str(name).removesuffix("Fast")
    if name is not None and kind in _ELSEWHERE:
        raise UserError(
            f"{path}: tokenizer_class is {name!r}, which depends on {_ELSEWHERE[kind]} and is not supported"
        )
    if name is not None and not has_json and kind not in CLASSES:
        raise UserError(
            f"{path}: tokenizer_class is {name!r}, which is read only from a tokenizer.json; save the tokenizer with "
            "transformers 5 in the same folder"
        )


def class_of(folder: str | os.PathLike) -> str:
    """Returns the name of the folder's tokenizer class without "Tokenizer" and "Fast".

    This is the tokenizer_class, or else the class for the model_type in config.json; "None" if neither is known.
    """
    name, model_config = read(folder).get("tokenizer_class"), pathlib.Path(folder, "config.json")
    if name is None and model_config.is_file():
        config = json_files.read(model_config)
        name = config.get("tokenizer_class") or _CLASS_OF_MODEL.get(str(config.get("model_type")))
    return str(name).removesuffix("Fast").removesuffix("Tokenizer")


def token_text(value: Any) -> Any:
    """Returns the text of a token as tokenizer files write it; None if there is none."""
    return value.get("content") if isinstance(value, dict) else value
