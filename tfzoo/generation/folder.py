"""What a model's folder says of decoding: generation_config.json, or config.json of an older one.

Every key is read, is known to change no text, or is refused by name.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfzoo import json_files, models
from tfzoo.errors import UserError, suggest
from tfzoo.generation.options import BOUNDS
from tfzoo.json_files import Field, Fields
from tfzoo.models.record import FolderRecord
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
# What `folder_options` returns; numbers that may differ from row to row are held within BOUNDS besides.
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
# What changes no text: how it is computed, what is returned beside it, what an assistant drafts, and what mends logits
# that are not numbers, which here are an error.
_IGNORED = frozenset(
    "transformers_version bos_token_id use_cache cache_config max_cache_len return_legacy_cache "
    "return_dict_in_generate output_attentions output_hidden_states output_scores output_logits is_assistant "
    "num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind target_lookbehind "
    "assistant_early_exit compile_config disable_compile continuous_batching_config prefill_chunk_size low_memory "
    "remove_invalid_values".split()
)
_CACHES = ("dynamic", "dynamic_full", "static", "hybrid", "sliding_window", "offloaded", "offloaded_static")
# What would change the text in ways that tfzoo does not have, and the values that do not.
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
_TOP_K = 50  # transformers' own, where a folder says do_sample and no top_k.


def folder_options(model) -> dict[str, Any]:
    """The options of decoding, but for special ids, that the model's folder names.

    Raises:
      UserError: a key that tfzoo does not know or does not have, or a value of another type or out of bounds.
    """
    name, record = _source(model)
    for key, value in record.items():
        allowed = _REFUSED.get(key)
        if allowed is not None and value is not None and value not in allowed:
            raise UserError(f"{name}: {key} is {json_files.show(value)}, which tfzoo does not do; remove it")
        known = key in _OPTIONS or key in _SPECIAL or key in _IGNORED or key in _REFUSED or key.startswith("_")
        if not known and value is not None and name == _OWN:
            raise UserError(
                f"{name}: {key} is {json_files.show(value)}, which is not known{suggest(key, _OPTIONS)}; remove it"
            )
    json_files.check(record, _OPTIONS, name)
    found = {key: record[key] for key in _OPTIONS if record.get(key) is not None}
    for key, bounds in BOUNDS.items():
        if key in found and not bounds.hold(np.float64(found[key])):
            raise UserError(f"{name}: {key} ({found[key]}) {bounds}; correct it")
    forced = record.get("forced_bos_token_id")
    if isinstance(forced, int) and not model.is_encoder_decoder:
        raise UserError(
            f"{name}: forced_bos_token_id is {forced}, which transformers forces in a decoder behind prompts of one "
            "token alone; remove it"
        )
    if found.get("do_sample"):
        found.setdefault("top_k", _TOP_K)
    return found


def special_ids(model) -> dict[str, Any]:
    """The ids that generation_config.json or config.json of the model's folder has, by options' names.

    Raises:
      UserError: one is not an id, or ids.
    """
    source, found = model.record or FolderRecord(), dict[str, Any]()
    for name, record in (("config.json", source.config), (_OWN, source.generation_config)):
        json_files.check(record, _SPECIAL, name)
        found |= {key: record[key] for key in _SPECIAL if record.get(key) is not None}
    if not source.generation_config and source.config.get("force_bos_token_to_be_generated"):  # BART's first files.
        found.setdefault("forced_bos_token_id", source.config.get("bos_token_id"))
    if model.is_encoder_decoder and "decoder_start_token_id" not in found:
        begin = config_fields.default(source.config.get("model_type", ""), "decoder_start_token_id")
        if begin is None:
            begin = source.generation_config.get("bos_token_id", source.config.get("bos_token_id"))
        found |= {} if begin is None else {"decoder_start_token_id": begin}
    if not model.is_encoder_decoder and isinstance(found.get("forced_bos_token_id"), int):
        del found["forced_bos_token_id"]  # Which `folder_options` refuses.
    return found


def decoder_start_id(model, tokenizer: Any) -> int:
    """What the decoder reads first: as the model's folder says; padding in a run, as tfzoo's objectives begin."""
    start = special_ids(model).get("decoder_start_token_id")
    if start is None and not (model.record and model.record.config):
        start = getattr(tokenizer, "pad_id", None)
    return models.page_of(model).new_config(model.config)["decoder_start_token_id"] if start is None else start


def _source(model) -> tuple[str, Mapping[str, Any]]:
    """The file's name, and what it says."""
    source = model.record or FolderRecord()
    return (_OWN, source.generation_config) if source.generation_config else ("config.json", source.config)
