"""Record what Hugging Face's configurations take a missing field of config.json for.

    python tests/assets/config_references.py --defaults=tfzoo/weights/config_defaults.json
    python tests/assets/config_references.py --golden=tests/assets/golden_configs/golden.json

Needs transformers 5; does not import tfzoo. The first file is part of the package: of each model_type "defaults", its
class's fields and their defaults, "names", other names of fields, "null", fields that may be null, and "num_labels",
where neither id2label nor num_labels is there. The second is for tests/weights/configs_test.py: of each model_type
"record", a config.json in which no field that may differ is at its default, "whole", what the class makes of it, and
"without", for each field what differs in `whole` where the field is left out ("refused": the class raises an error).
"""

import argparse
import dataclasses
import json
import pathlib
import typing

import transformers
from transformers import CONFIG_MAPPING

MODEL_TYPES = (
    "albert bart bert camembert data2vec-text distilbert electra ernie gpt2 llama marian mbart mistral mt5 pegasus "
    "plbart qwen2 qwen3 reformer roberta t5 xlm-roberta xlnet"
).split()
NOT_OF_A_MODEL = {"transformers_version", "architectures", "dtype", "id2label", "label2id", "problem_type"}
# Sizes: heads are a multiple of every default of key and value heads, widths of every default of heads.
SIZES: dict[str, typing.Any] = dict(vocab_size=70, hidden_size=384, num_hidden_layers=5, num_attention_heads=64)
SIZES |= dict(num_key_value_heads=4, head_dim=10, intermediate_size=40, type_vocab_size=3, max_position_embeddings=90)
SIZES |= dict(embedding_size=20, sliding_window=7, n_positions=90, n_embd=384, n_layer=5, n_head=64, n_inner=33)
SIZES |= dict(d_model=384, d_kv=6, d_ff=40, num_layers=5, num_decoder_layers=3, num_heads=64, dim=384, n_layers=5)
SIZES |= dict(n_heads=64, hidden_dim=40, encoder_layers=5, decoder_layers=3, encoder_ffn_dim=40, decoder_ffn_dim=40)
SIZES |= dict(encoder_attention_heads=64, decoder_attention_heads=64, d_inner=40, mem_len=9)
SIZES |= dict(relative_attention_num_buckets=12, relative_attention_max_distance=50, pad_token_id=4)
SIZES |= dict(bos_token_id=5, eos_token_id=6, decoder_start_token_id=7, forced_eos_token_id=6, max_window_layers=3)
SIZES |= dict(feed_forward_proj="gated-silu", scale_embedding=True, chunk_size_feed_forward=4, use_cache=False)
SIZES |= dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=500.0))
for _name in ("hidden_act", "activation", "activation_function", "ff_activation"):
    SIZES[_name] = "gelu_new"
REFORMER: dict[str, typing.Any] = dict(attention_head_size=10, attn_layers=["lsh", "local", "lsh"], num_hidden_layers=3)
REFORMER |= dict(axial_pos_shape=[9, 10], axial_pos_embds_dim=[100, 284], feed_forward_size=40, is_decoder=True)
REFORMER |= dict(local_num_chunks_before=2, local_attn_chunk_length=8, lsh_attn_chunk_length=4, lsh_num_chunks_before=3)
REFORMER |= dict(num_buckets=[2, 4], num_hashes=3, hidden_act="gelu_new")
OTHERS = {"albert": dict(hidden_act="gelu"), "gpt2": dict(activation_function="gelu"), "reformer": REFORMER}


def fields_of(model_type: str) -> dict[str, dataclasses.Field]:
    cls = CONFIG_MAPPING[model_type]
    return {field.name: field for field in dataclasses.fields(cls) if field.name not in NOT_OF_A_MODEL}


def default_of(field: dataclasses.Field):
    made: typing.Any = field.default_factory
    value = field.default if made is dataclasses.MISSING else made()
    return list(value) if isinstance(value, tuple) else value


def defaults() -> dict:
    found = {}
    for model_type in MODEL_TYPES:
        cls, fields = CONFIG_MAPPING[model_type], fields_of(model_type)
        found[model_type] = {
            "defaults": {name: default_of(field) for name, field in sorted(fields.items())},
            "names": dict(sorted(cls.attribute_map.items())),
            "null": sorted(name for name, field in fields.items() if "None" in str(field.type)),
            "num_labels": cls().num_labels,
        }
    return {"transformers": transformers.__version__, "model_types": found}


def made(model_type: str, record: dict):
    """What the class makes of a config.json, as JSON has it; None where it raises an error."""
    try:
        config = CONFIG_MAPPING[model_type].from_dict(json.loads(json.dumps(record)))
    except Exception:
        return None
    return json.loads(config.to_json_string(use_diff=False))


def changed(value):
    """Another value of the kind; the same where there is none."""
    return round(value * 1.5 + 0.001, 13) if isinstance(value, float) else value


def golden() -> dict:
    found = {}
    for model_type in MODEL_TYPES:
        given = SIZES | OTHERS.get(model_type, {})
        record = {name: given.get(name, changed(default_of(field))) for name, field in fields_of(model_type).items()}
        record |= {name: value for name, value in OTHERS.get(model_type, {}).items() if name == "num_hidden_layers"}
        record |= {"model_type": model_type}
        whole = made(model_type, record)
        if whole is None:
            raise SystemExit(f"{model_type}: the record is refused")
        without = {}
        for name in sorted(set(record) - {"model_type"}):
            other = made(model_type, {key: value for key, value in record.items() if key != name})
            without[name] = "refused" if other is None else {k: v for k, v in other.items() if whole.get(k) != v}
        found[model_type] = {"record": record, "whole": whole, "without": without}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--defaults", type=pathlib.Path)
    parser.add_argument("--golden", type=pathlib.Path)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    for path, content, indent in ((args.defaults, defaults, 1), (args.golden, golden, None)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content(), indent=indent, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
