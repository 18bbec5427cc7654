"""Defaults of missing config.json fields, as Hugging Face defines them, and fields that affect no outputs.

config_defaults.json, next to this module, contains the fields, defaults and alternative field names of each model_type,
as in transformers' own classes; tests/assets/config_references.py generates it.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from tfzoo import json_files
from tfzoo.errors import UserError, suggest

# Fields of every family that do not affect the model's outputs, or are read elsewhere (labels, texts, decoding).
IGNORED = frozenset(
    "architectures model_type transformers_version dtype torch_dtype tokenizer_class auto_map name_or_path language "
    "prefix id2label label2id num_labels labels problem_type finetuning_task task_specific_params heads "
    "no_answer_threshold use_cache use_return_dict return_dict output_attentions output_hidden_states output_past "
    "torchscript use_bfloat16 tf_legacy_loss xla_device gradient_checkpointing chunk_size_feed_forward "
    "attn_implementation experts_implementation tie_last_hidden_states cross_attention_hidden_size classifier_dropout "
    "initializer_range initializer_factor name author license created_date model_max_length sentence_transformers "
    "sbert_ce_default_activation_function unsloth_version unsloth_fixed transformers.js_config total_flos".split()
)
# Fields of generation_config.json that older folders have in config.json; tfzoo.generation reads or rejects them.
GENERATION = frozenset(
    "max_length max_new_tokens min_length min_new_tokens early_stopping max_time stop_strings do_sample num_beams "
    "use_mtp cache_implementation cache_config max_cache_len temperature top_k top_p min_p top_h typical_p "
    "epsilon_cutoff eta_cutoff repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size "
    "bad_words_ids renormalize_logits remove_invalid_values exponential_decay_length_penalty suppress_tokens "
    "begin_suppress_tokens sequence_bias token_healing guidance_scale watermarking_config num_return_sequences "
    "output_scores output_logits return_dict_in_generate encoder_no_repeat_ngram_size is_assistant "
    "num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold prompt_lookup_num_tokens "
    "max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind "
    "assistant_ensemble_weight speculation_type compile_config disable_compile continuous_batching_config "
    "low_memory penalty_alpha dola_layers diversity_penalty num_beam_groups constraints force_words_ids "
    "prefill_chunk_size force_bos_token_to_be_generated return_legacy_cache presence_penalty".split()
)
# Fields of every family that would change the model, and the values that do not.
REQUIRED: dict[str, tuple] = {
    "add_cross_attention": (False,),
    "per_layer_config": ({},),
    "pruned_heads": ({}, []),
    "tie_encoder_decoder": (False,),
}


class Record(dict):
    """A config.json with the reference's defaults for missing fields; `asked` has the names looked up so far."""

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any]):
        super().__init__({**defaults, **given})
        self.given, self.defaults, self.asked = given, defaults, set[str]()

    def __getitem__(self, name):
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.asked.add(name)
        return super().get(name, default)


def complete(given: Mapping[str, Any], where) -> Record:
    """Returns the record of a config.json with a known model_type, with each field under its canonical name.

    Raises:
      UserError: a field occurs under two names with different values, or is null but must not be.
    """
    reference = _known(given["model_type"])
    fields = dict(given)
    for alias, name in reference["names"].items():
        if alias in fields:
            value = fields.pop(alias)
            if name in fields and fields[name] != value:
                raise UserError(
                    f"{where}: {alias} is {json_files.show(value)} and {name} is {json_files.show(fields[name])}, but "
                    "both name the same field; correct one"
                )
            fields[name] = value
    for name, value in fields.items():
        default = reference["defaults"].get(name)
        if value is None and default is not None and default is not False and name not in reference["null"]:
            raise UserError(f"{where}: {name} is null; give it a value, or omit it for {json_files.show(default)}")
    return Record(fields, reference["defaults"])


def default(model_type: str, name: str) -> Any:
    """Returns the reference's value of a missing field."""
    return _known(model_type)["defaults"].get(name)


def num_labels(model_type: str) -> int:
    """Returns the number of classes if config.json does not specify it."""
    return _known(model_type)["num_labels"]


def other_names(model_type: str) -> set[str]:
    """Returns the alternative names of fields in some files."""
    return {*_known(model_type)["names"], "torch_dtype", "rope_scaling", "rope_theta"}


def check_required(record: Record, required: Mapping[str, Any], family: str, where) -> None:
    """Checks the fields whose values the family restricts.

    Raises:
      UserError: the weights are quantised, or a field has a value that the family does not support.
    """
    for name in ("quantization_config", "quantization"):  # The second is MLX's.
        kind = record.get(name)
        if kind is None:
            continue
        kind = kind.get("quant_method", kind) if isinstance(kind, Mapping) else kind
        raise UserError(
            f"{where}: {name} declares quantised weights ({json_files.show(kind)}), which tfzoo does not support; "
            "get a folder with unquantised weights, or dequantise this one"
        )
    for name, allowed in {**REQUIRED, **required}.items():
        allowed = allowed if isinstance(allowed, tuple) else (allowed,)
        value = record.get(name)
        if name in record and value not in allowed and not (value is None and (False in allowed or name in REQUIRED)):
            raise UserError(
                f"{where}: {name} is {json_files.show(value)}, but tfzoo's {family} supports only "
                f"{' or '.join(repr(value) for value in allowed)}"
            )


def check_all_asked(record: Record, ignored, where) -> None:
    """Checks that no unknown field affects the model.

    Raises:
      UserError: a field was not looked up, is neither in `ignored` nor ignored for all families, and its value differs
        from the reference's default.
    """
    ignorable = {*record.asked, *ignored, *IGNORED, *GENERATION}
    for name, value in record.given.items():
        harmless = name in ignorable or name.startswith("_") or name.endswith("_token_id") or value is None
        if not harmless and (name not in record.defaults or value != record.defaults[name]):
            close = suggest(name, {*record.defaults, *record.asked})
            raise UserError(
                f"{where}: {name} is {json_files.show(value)}, an unknown field for model_type "
                f"{record.given['model_type']}{close}; remove it if the model's outputs do not depend on it"
            )


def _known(model_type: str) -> dict[str, Any]:
    return _table().get(model_type, {"defaults": {}, "names": {}, "null": [], "num_labels": 2})


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads((pathlib.Path(__file__).with_name("config_defaults.json")).read_text())["model_types"]
