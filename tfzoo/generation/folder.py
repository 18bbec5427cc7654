"""The decoding options of a model's folder: generation_config.json, or config.json in older folders.

Every key is either read, known not to change the text, or refused by name.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfzoo import json_files, models
from tfzoo.errors import UserError, suggest
from tfzoo.generation.options import BOUNDS
from tfzoo.json_files import Field, Fields
from tfzoo.models.record import FolderRecord
from tfzoo.text import framing
from tfzoo.weights import config_fields

_OWN = "generation_config.json"
_COUNT, _SIZE, _NUMBER, _SWITCH = Field(int, low=1), Field(int, low=0), Field(float), Field(bool)
_ID, _IDS = Field(int, low=0), Field(list, items=Field(int, low=0))
_WORDS = Field(list, items=_IDS)
_SPECIAL: Fields = {
    "eos_token_id": (_ID, _IDS),
    "pad_token_id": _ID,
    "decoder_start_token_id": _ID,
    "forced_bos_token_id": (_ID, _IDS),
    "forced_eos_token_id": (_ID, _IDS),
}
# The options that `folder_options` returns. Those that may differ between rows must also be within BOUNDS.
_OPTIONS: Fields = {
    "max_length": _COUNT,
    "max_new_tokens": _COUNT,
    "min_length": _SIZE,
    "min_new_tokens": _SIZE,
    "stop_strings": (Field(str), Field(list, items=Field(str))),
    "do_sample": _SWITCH,
    "num_return_sequences": _COUNT,
    "temperature": _NUMBER,
    "top_k": _SIZE,
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "typical_p": _NUMBER,
    "epsilon_cutoff": _NUMBER,
    "eta_cutoff": _NUMBER,
    "repetition_penalty": _NUMBER,
    "presence_penalty": _NUMBER,  # vLLM's.
    "encoder_repetition_penalty": _NUMBER,
    "no_repeat_ngram_size": _SIZE,
    "encoder_no_repeat_ngram_size": _SIZE,
    "bad_words_ids": _WORDS,
    "sequence_bias": Field(list, items=Field(list)),
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "exponential_decay_length_penalty": Field(list, items=_NUMBER),
    "renormalize_logits": _SWITCH,
    "num_beams": _COUNT,
    "length_penalty": _NUMBER,
    "early_stopping": (_SWITCH, Field(str, choices=("never",))),
    "num_beam_groups": _COUNT,
    "diversity_penalty": _NUMBER,
    "penalty_alpha": Field(float, low=0, high=1),
    "prompt_lookup_num_tokens": _SIZE,
    "max_matching_ngram_size": _COUNT,
    "num_assistant_tokens": _COUNT,
}
# Keys that do not change the text: how it is computed, what is returned in addition, how an assistant drafts, and how
# non-finite logits are repaired, which are an error in tfzoo.
_IGNORED = frozenset(
    "transformers_version bos_token_id use_cache cache_config max_cache_len return_legacy_cache "
    "return_dict_in_generate output_attentions output_hidden_states output_scores output_logits is_assistant "
    "num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind target_lookbehind "
    "assistant_early_exit compile_config disable_compile continuous_batching_config prefill_chunk_size low_memory "
    "remove_invalid_values".split()
)
_CACHES = ("dynamic", "dynamic_full", "static", "hybrid", "sliding_window", "offloaded", "offloaded_static")
# Keys that change the text in ways that tfzoo does not support, with the values that have no effect.
_REFUSED: Mapping[str, tuple] = {
    "cache_implementation": (*_CACHES, "hybrid_chunked", "offloaded_hybrid", "offloaded_hybrid_chunked"),
    "max_time": (),
    "top_h": (),
    "token_healing": (False,),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "constraints": (),
    "force_words_ids": (),
    "dola_layers": (),
    "use_mtp": (False,),
    "assistant_ensemble_weight": (),
    "speculation_type": (),
}
_TOP_K = 50  # The default of transformers for a folder that sets do_sample but not top_k.


def check_can_generate(model) -> None:
    """Raises UserError if a model has no causal decoder with a language-model head."""
    if not model.can_generate:
        raise UserError(
            f"model {model.name!r} has no causal decoder with an 'lm' head; use a model such as gpt2, llama or t5"
        )


def folder_options(model) -> dict[str, Any]:
    """Returns the decoding options that the model's folder specifies, except special ids.

    Raises:
      UserError: a key is unknown or not supported, or a value has the wrong type or is out of bounds.
    """
    return options_of(model.record or FolderRecord(), model.is_encoder_decoder)


def options_of(source: FolderRecord, is_encoder_decoder: bool) -> dict[str, Any]:
    """Returns `folder_options` of a folder with these files.

    Raises:
      UserError: as for `folder_options`.
    """
    name, record = _source(source)
    for key, value in record.items():
        allowed = _REFUSED.get(key)
        if allowed is not None and value is not None and value not in allowed:
            raise UserError(f"{name}: {key} is {json_files.show(value)}, which tfzoo does not support; remove it")
        is_known = key in _OPTIONS or key in _SPECIAL or key in _IGNORED or key in _REFUSED or key.startswith("_")
        if not is_known and value is not None and name == _OWN:
            raise UserError(
                f"{name}: {key} ({json_files.show(value)}) is an unknown option{suggest(key, _OPTIONS)}; remove it"
            )
    json_files.check(record, _OPTIONS, name)
    options = {key: record[key] for key in _OPTIONS if record.get(key) is not None}
    for key, bounds in BOUNDS.items():
        if key in options and not bounds.hold(np.float64(options[key])):
            raise UserError(f"{name}: {key} ({options[key]}) {bounds}; correct it")
    forced = record.get("forced_bos_token_id")
    if isinstance(forced, int) and not is_encoder_decoder:
        raise UserError(
            f"{name}: forced_bos_token_id is {forced}, which transformers applies to a decoder only after prompts of "
            "a single token; remove it"
        )
    if options.get("do_sample"):
        options.setdefault("top_k", _TOP_K)
    return options


def special_ids(model) -> dict[str, Any]:
    """Returns the ids of special tokens in generation_config.json or config.json of the model's folder, by the names of
    the options.

    Raises:
      UserError: a value is not an id or a list of ids.
    """
    source, ids = model.record or FolderRecord(), dict[str, Any]()
    for name, record in (("config.json", source.config), (_OWN, source.generation_config)):
        json_files.check(record, _SPECIAL, name)
        ids |= {key: record[key] for key in _SPECIAL if record.get(key) is not None}
    if not source.generation_config and source.config.get("force_bos_token_to_be_generated"):  # Old BART files.
        ids.setdefault("forced_bos_token_id", source.config.get("bos_token_id"))
    if model.is_encoder_decoder and "decoder_start_token_id" not in ids:
        begin = config_fields.default(source.config.get("model_type", ""), "decoder_start_token_id")
        if begin is None:
            begin = source.generation_config.get("bos_token_id", source.config.get("bos_token_id"))
        ids |= {} if begin is None else {"decoder_start_token_id": begin}
    if not model.is_encoder_decoder and isinstance(ids.get("forced_bos_token_id"), int):
        del ids["forced_bos_token_id"]  # `folder_options` refuses it.
    return ids


def decoder_start_id(model, tokenizer: Any) -> int:
    """Returns the id of the decoder's first token: the one that the model's folder specifies or, for a run, the one
    with which tfzoo's objectives begin."""
    start = special_ids(model).get("decoder_start_token_id")
    if start is None and not (model.record and model.record.config):
        start = framing.encoder_decoder_ends(tokenizer).start
    return models.page_of(model).new_config(model.config)["decoder_start_token_id"] if start is None else start


def _source(source: FolderRecord) -> tuple[str, Mapping[str, Any]]:
    """Returns the name of the file with the decoding options, and its content."""
    return (_OWN, source.generation_config) if source.generation_config else ("config.json", source.config)
