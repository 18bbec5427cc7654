"""KerasHub's presets: https://github.com/keras-team/keras-hub."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfzoo import config as config_lib
from tfzoo import json_files, models
from tfzoo.errors import UserError, suggest
from tfzoo.json_files import Field, Fields
from tfzoo.weights import hdf5_files, table
from tfzoo.weights.foreign import ABSENT, Source
from tfzoo.weights.tensors import Tensors


def _keras_name(name: str) -> str:
    """Returns a variable's canonical name.

    Example: layers/transformer_encoder/_key_dense/vars/0 -> layers/transformer_encoder_0/key_dense/vars/0

    Keras numbers the layers of a class from the second on. Whether an attribute begins with an underscore has changed
    between versions.
    """
    name = re.sub(r"/_", "/", name).replace("layernorm/", "layer_norm/")
    return re.sub(r"^(task/)?layers/(\w*?[a-z])(?=/)", r"\1layers/\2_0", name)


KERAS = table.Naming(
    {"kernel": "/vars/0", "bias": "/vars/1", "gamma": "/vars/0", "beta": "/vars/1", "embeddings": "/vars/0"},
    transposed=False,
    canonical=_keras_name,
)


def _keras_blocks(theirs, ours):
    """Returns the table of a block; entries for parts that a family lacks (cross attention) match nothing."""
    table = {
        f"{theirs}/self_attention_layer_norm": f"{ours}/self_norm",
        f"{theirs}/cross_attention_layer_norm": f"{ours}/cross_norm",
        f"{theirs}/feedforward_layer_norm": f"{ours}/mlp_norm",
        f"{theirs}/feedforward_intermediate_dense": f"{ours}/mlp/up",
        f"{theirs}/feedforward_gate_dense": f"{ours}/mlp/gate",
        f"{theirs}/feedforward_output_dense": f"{ours}/mlp/down",
        f"{theirs}/self_attention_layer/query_dense_layer_norm": f"{ours}/attention/query_norm",
        f"{theirs}/self_attention_layer/key_dense_layer_norm": f"{ours}/attention/key_norm",
    }
    for name in ("query", "key", "value", "output"):
        table[f"{theirs}/self_attention_layer/{name}_dense"] = f"{ours}/attention/{name}"
        table[f"{theirs}/cross_attention_layer/{name}_dense"] = f"{ours}/cross_attention/{name}"
    return table


_ENCODER = _keras_blocks("layers/transformer_encoder_{}", "encoder/stack/layer_{}")
_BERT = _ENCODER | {
    "layers/reversible_embedding_0": "encoder/embeddings/tokens",
    "layers/position_embedding_0/vars/0": "encoder/embeddings/positions",
    "layers/embedding_0/vars/0": "encoder/embeddings/segments",
    "layers/layer_normalization_0": "encoder/embeddings/norm",
    "layers/dense_0": "pooler/dense",
}
_DISTILBERT = _ENCODER | {
    "layers/token_and_position_embedding_0/token_embedding": "encoder/embeddings/tokens",
    "layers/token_and_position_embedding_0/position_embedding/vars/0": "encoder/embeddings/positions",
    "layers/layer_normalization_0": "encoder/embeddings/norm",
}
# Its pooler was never trained, and Hugging Face's model has none.
_ELECTRA = _BERT | {"layers/dense_0": None}
_ELECTRA_PROJECTED = _BERT | {"layers/dense_0": "encoder/embeddings/projection", "layers/dense_1": None}
_ALBERT = _BERT | {"layers/dense_0": "encoder/embeddings/projection", "layers/dense_1": "pooler/dense"}
_GPT2 = _keras_blocks("layers/transformer_decoder_{}", "decoder/stack/layer_{}") | {
    "layers/reversible_embedding_0": "decoder/embeddings/tokens",
    "layers/position_embedding_0/vars/0": "decoder/embeddings/positions",
    "layers/layer_normalization_0": "decoder/stack/norm",
}
_BART = (
    _ENCODER
    | _keras_blocks("layers/transformer_decoder_{}", "decoder/stack/layer_{}")
    | {
        "layers/reversible_embedding_0": "encoder/embeddings/tokens",
        "layers/position_embedding_0/vars/0": "encoder/embeddings/positions",
        "layers/position_embedding_1/vars/0": "decoder/embeddings/positions",
        "layers/layer_normalization_0": "encoder/embeddings/norm",
        "layers/layer_normalization_1": "decoder/embeddings/norm",
        ABSENT + "final_logits_bias": "lm/bias",
    }
)


def _llama(decoder, norm):
    return _keras_blocks(f"layers/{decoder}_{{}}", "decoder/stack/layer_{}") | {
        "layers/reversible_embedding_0": "decoder/embeddings/tokens",
        "layers/reversible_embedding_0/vars/1": "lm/dense/kernel",
        f"layers/{norm}_0": "decoder/stack/norm",
    }


_T5: dict[str, Any] = {
    "layers/reversible_embedding_0": "encoder/embeddings/tokens",
    "layers/reversible_embedding_0/vars/1": "lm/dense/kernel",
    "layers/t5_layer_norm_0": "encoder/stack/norm",
    "layers/t5_layer_norm_1": "decoder/stack/norm",
}
for _stack in ("encoder", "decoder"):
    # In the files the numbers of the decoder's layers follow those of the encoder's; see _t5_naming.
    _theirs, _ours = f"layers/t5_{_stack}_layer_{{}}", f"{_stack}/stack/layer_{{}}"
    _T5 |= {
        f"layers/t5_{_stack}_layer_0/self_attention": f"{_stack}/stack/relative_bias",
        f"{_theirs}/self_attention_layer_norm": f"{_ours}/self_norm",
        f"{_theirs}/cross_attention_layer_norm": f"{_ours}/cross_norm",
        f"{_theirs}/layer_norm": f"{_ours}/mlp_norm",
        f"{_theirs}/output_projector": f"{_ours}/mlp/down",
    }
    for _name in ("query", "key", "value", "output"):
        _T5[f"{_theirs}/self_attention/{_name}_projector"] = f"{_ours}/attention/{_name}"
        _T5[f"{_theirs}/cross_attention/{_name}_projector"] = f"{_ours}/cross_attention/{_name}"
    # KerasHub calls the activated one of the two input_projector.
    _T5[f"{_theirs}/input_projector"] = f"{_ours}/mlp/GATE"
    _T5[f"{_theirs}/gate_projector"] = f"{_ours}/mlp/up"


def _t5_table(gated: bool):
    first = "gate" if gated else "up"
    return {name: path.replace("GATE", first) for name, path in _T5.items() if gated or "gate_projector" not in name}


def _t5_naming(num_layers: int) -> table.Naming:
    def canonical(name):
        name = _keras_name(name)
        match = re.match(r"layers/t5_transformer_layer_(\d+)/", name)
        if not match:
            return name
        stack, index = (
            ("encoder", int(match[1])) if int(match[1]) < num_layers else ("decoder", int(match[1]) - num_layers)
        )
        return f"layers/t5_{stack}_layer_{index}/{name[match.end() :]}"

    return dataclasses.replace(KERAS, canonical=canonical)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone class of KerasHub in tfzoo's terms; `fields` are the fields of tfzoo's config that the class fixes."""

    family: str
    table: Mapping[str, Any]
    heads: tuple[str, ...] = ()  # Heads without weights of their own: a tied language model.
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_type: str = ""  # If empty, the family's name.


_ROBERTA = _DISTILBERT | {
    ABSENT + "token_type_embeddings": "encoder/embeddings/segments",
    ABSENT + "pooler": "pooler/dense",
}
_ROBERTA_FIELDS = dict(position_offset=2, num_segments=1, norm_epsilon=1e-5)
_LM = ("lm",)
BACKBONES = {
    "BertBackbone": Backbone("bert", _BERT, fields=dict(activation="gelu_tanh")),
    "RobertaBackbone": Backbone("roberta", _ROBERTA, fields=_ROBERTA_FIELDS),
    "XLMRobertaBackbone": Backbone("roberta", _ROBERTA, fields=_ROBERTA_FIELDS, model_type="xlm-roberta"),
    "DistilBertBackbone": Backbone("distilbert", _DISTILBERT),
    "ElectraBackbone": Backbone("electra", _ELECTRA, fields=dict(activation="gelu_tanh")),
    "AlbertBackbone": Backbone("albert", _ALBERT),
    "GPT2Backbone": Backbone("gpt2", _GPT2, _LM),
    "BartBackbone": Backbone("bart", _BART, _LM),
    "T5Backbone": Backbone("t5", _T5, _LM),
    "LlamaBackbone": Backbone("llama", _llama("llama_transformer_decoder", "llama_layer_norm"), _LM),
    "Llama3Backbone": Backbone("llama", _llama("llama_transformer_decoder", "llama_layer_norm"), _LM),
    "MistralBackbone": Backbone(
        "llama",
        _llama("mistral_transformer_decoder", "mistral_layer_normalization"),
        _LM,
        dict(max_positions=32768),
        "mistral",
    ),
    "QwenBackbone": Backbone(
        "llama", _llama("qwen_transformer_decoder", "qwen_layer_norm"), _LM, dict(max_positions=32768), "qwen2"
    ),
    "Qwen3Backbone": Backbone(
        "llama", _llama("qwen3_transformer_decoder", "qwen3_layer_norm"), _LM, dict(max_positions=40960), "qwen3"
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What the class in task.json adds to a backbone; names are those in task.weights.h5, with task/ before them."""

    head: str
    table: Mapping[str, Any]


_CLASSIFIER = Task("classify", {"task/layers/dense_0": "classify/dense"})
_HIDDEN_CLASSIFIER = Task(
    "classify", {"task/layers/dense_0": "classify/hidden", "task/layers/dense_1": "classify/dense"}
)
_MASKED_LM = Task(
    "lm",
    {
        "task/layers/masked_lm_head_0/intermediate_dense": "lm/transform",
        "task/layers/masked_lm_head_0/intermediate_layer_norm": "lm/norm",
        "task/layers/masked_lm_head_0/vars/0": "lm/bias",
    },
)
_CAUSAL_LM = Task("lm", {})  # Its weights are the backbone's.
TASKS = {
    "BertTextClassifier": _CLASSIFIER,
    "AlbertTextClassifier": _CLASSIFIER,
    "DistilBertTextClassifier": _HIDDEN_CLASSIFIER,
    "RobertaTextClassifier": _HIDDEN_CLASSIFIER,
    "XLMRobertaTextClassifier": _HIDDEN_CLASSIFIER,
    "RobertaMaskedLM": _MASKED_LM,
    "XLMRobertaMaskedLM": _MASKED_LM,
    **{f"{name}CausalLM": _CAUSAL_LM for name in ("GPT2", "Llama", "Llama3", "Mistral", "Qwen", "Qwen3")},
    **{f"{name}Seq2SeqLM": _CAUSAL_LM for name in ("Bart", "T5")},
}
# Heads of KerasHub whose computation differs from Hugging Face's heads of the family.
_OTHERWISE = {
    "BertMaskedLM": "with the exact gelu and an epsilon of 1e-05, while its blocks use the approximate gelu and 1e-12",
    "DistilBertMaskedLM": "with an epsilon of 1e-05, while Hugging Face's uses 1e-12",
    "AlbertMaskedLM": "with an epsilon of 1e-05, while its blocks use 1e-12",
}
_CLASSIFIER_FIELDS: Fields = {
    "num_classes": Field(int, low=1, required=True),
    "activation": (Field(str), Field(dict)),
    "dropout": Field(float, low=0.0, high=1.0),
}
# Classifiers: KerasHub's activation after the logits -> Hugging Face's problem_type.
_PROBLEMS = {"linear": "", "softmax": "", "sigmoid": "multi_label_classification"}
_HEAD_DROPOUT = {
    "bert": "classifier_dropout",
    "roberta": "classifier_dropout",
    "albert": "classifier_dropout_prob",
    "distilbert": "seq_classif_dropout",
}
_FIELDS = {
    "vocabulary_size": "vocab_size",
    "vocab_size": "vocab_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "num_query_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "embedding_dim": "embedding_size",
    "head_dim": "head_dim",
    "key_value_dim": "head_dim",
    "max_sequence_length": "max_positions",
    "num_segments": "num_segments",
    "dropout": "dropout",
    "layer_norm_epsilon": "norm_epsilon",
    "rope_max_wavelength": "rotary_theta",
    "sliding_window": "window",
    "use_gated_activation": "gated_mlp",
    "activation": "activation",
}
_FIXED = {
    "num_groups": 1,
    "num_inner_repetitions": 1,
    "rope_scaling_factor": 1.0,
    "rope_position_scaling_factor": 1.0,  # KerasHub 0.32 accepts it but does not use it.
    "use_sliding_window_attention": False,
}
# Further fields of configs: Keras's own, those that the weight file implies, and those read below. Qwen's window is off
# or, in Qwen3, as long as the training sequences.
_ELSEWHERE = {"name", "trainable", "dtype", "tie_word_embeddings", "tie_embedding_weights", "sliding_window_size"}
_ELSEWHERE |= {"rope_frequency_adjustment_factor", "rope_low_freq_factor", "rope_high_freq_factor"}
_ELSEWHERE |= {"rope_pretraining_sequence_length"}


def open_keras(folder: str | os.PathLike, task: bool = True) -> Source:
    """Opens a KerasHub preset: config.json with a backbone of BACKBONES, and model.weights.h5.

    With a task.json, the head of that task is included; its weights are in task.weights.h5.

    Args:
      folder: the preset's folder.
      task: whether to read the task. A head without weights of its own (a tied language model) is read in any case.

    Raises:
      UserError: the backbone or task is unknown, or cannot be expressed as Hugging Face's model of the family.
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    record = json_files.read(path)
    name, settings = record.get("class_name"), record.get("config")
    if name not in BACKBONES or not isinstance(settings, dict):
        raise UserError(
            f"{path}: class_name {name!r} is not supported{suggest(str(name), BACKBONES)}; "
            f"use one of {', '.join(BACKBONES)}"
        )
    backbone = BACKBONES[name]
    page = models.page(backbone.family)
    model_type = backbone.model_type or backbone.family
    for key, value in settings.items():
        if key in _FIXED and value != _FIXED[key]:
            raise UserError(f"{path}: {key} is {value!r}; only {_FIXED[key]!r} is supported")
        if key not in _FIELDS | _FIXED and key not in _ELSEWHERE and value not in (None, False):
            raise UserError(f"{path}: {key} is {value!r}, an unknown field of {name}")
    head = _open_task(folder, name, backbone.family) if task else None
    file = hdf5_files.open_h5(folder)
    try:
        if head and head.file:
            file = file.joined(head.file, "task/")
        fields = {ours: settings[theirs] for theirs, ours in _FIELDS.items() if settings.get(theirs) is not None}
        fields = page.MODEL_TYPES[model_type] | dict(backbone.fields) | fields
        # Keras has one rate for both.
        fields["attention_dropout"] = fields.get("dropout", 0.0)
        table, naming = backbone.table, KERAS
        if "lm/dense/kernel" in table.values():
            fields["tie_embeddings"] = not any(n.endswith("reversible_embedding/vars/1") for n in file.names)
        try:
            # Sizes equal to another size are written explicitly, as Hugging Face does.
            if "num_decoder_layers" in page.CONFIG:
                fields["num_decoder_layers"] = fields["num_layers"]
            if "head_dim" in page.CONFIG:
                fields.setdefault("head_dim", fields["hidden_size"] // fields["num_heads"])
            if backbone.family == "t5":
                table, naming = _t5_table(bool(fields.get("gated_mlp"))), _t5_naming(fields["num_layers"])
                # The authors' gated models use the approximate gelu, which KerasHub's presets call gelu.
                fields["activation"] = {"gelu": "gelu_tanh"}.get(fields["activation"], fields["activation"])
            if backbone.family == "llama":
                fields |= _rope(settings)
            if backbone.family == "electra" and fields["embedding_size"] == fields["hidden_size"]:
                fields["embedding_size"] = 0  # There is no projection.
            elif backbone.family == "electra":
                table = _ELECTRA_PROJECTED
            config = config_lib.from_mapping(fields, models.config_class(page))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: {type(error).__name__} {error}; it must be a config of {name}") from None
    except Exception:
        file.close()
        raise
    used = {"config.json", "metadata.json", hdf5_files.KERAS_INDEX, *(file.file(n).name for n in file.names)}
    return Source(
        kind="a KerasHub preset",
        where=folder,
        family=backbone.family,
        model_type=model_type,
        config=config,
        heads=(head.task.head,) if head else backbone.heads,
        num_labels=head.num_labels if head else 2,
        file=file,
        WEIGHTS={**table, **(head.task.table if head else {})},
        naming=naming,
        adapt=_adapt,
        used=frozenset(used | ({"task.json"} if head else set())),
        backbone=name,
        record=head.record if head else {},
    )


@dataclasses.dataclass(frozen=True)
class _Head:
    """The task of a preset."""

    task: Task
    file: Tensors | None
    num_labels: int = 2
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # Fields of Hugging Face's config.json.


def _open_task(folder: pathlib.Path, backbone: str, family: str) -> _Head | None:
    """Returns the head that task.json and task.weights.h5 define; None if there is no task."""
    path = folder / "task.json"
    if not path.exists():
        return None
    record = json_files.read(path)
    if not record:  # The file is empty.
        return None
    json_files.check(record, {"class_name": Field(str, required=True), "config": Field(dict, required=True)}, path)
    # Its name before KerasHub 0.17.
    name = re.sub(r"(?<!Text)Classifier$", "TextClassifier", record["class_name"])
    backbone_alone = "use --notask for the backbone alone"
    if name in _OTHERWISE:
        raise UserError(
            f"{path}: the head of {name} normalises {_OTHERWISE[name]}, which Hugging Face's head cannot do; "
            f"{backbone_alone}"
        )
    if name not in TASKS:
        raise UserError(
            f"{path}: class_name {name!r} is not supported{suggest(name, TASKS)}; use one of "
            f"{', '.join(TASKS)}; {backbone_alone}"
        )
    if re.sub("(TextClassifier|MaskedLM|CausalLM|Seq2SeqLM)$", "Backbone", name) != backbone:
        raise UserError(f"{path}: is a {name}, but config.json is a {backbone}; both must belong to the same model")
    task, settings = TASKS[name], record["config"]
    if not task.table:
        return _Head(task, None)
    if not (folder / "task.weights.h5").exists():
        raise UserError(f"{folder / 'task.weights.h5'}: no such file, but {name} has weights; {backbone_alone}")
    number, fields = 2, dict[str, Any]()
    if task.head == "classify":
        json_files.check(settings, _CLASSIFIER_FIELDS, path)
        number, activation = settings["num_classes"], settings.get("activation") or "linear"
        if isinstance(activation, dict):
            activation = activation.get("config")
        if activation not in _PROBLEMS:
            raise UserError(f"{path}: activation is {activation!r}; only {', '.join(_PROBLEMS)} are supported")
        fields = {_HEAD_DROPOUT[family]: settings.get("dropout", 0.0)}
        if _PROBLEMS[activation]:
            fields["problem_type"] = _PROBLEMS[activation]
    file = hdf5_files.open_h5(folder / "task.weights.h5").without("optimizer/")
    return _Head(task, file, number, fields)


def _rope(settings) -> dict[str, Any]:
    """Returns the config's fields for rotary positions, which are scaled as in Llama 3.1 or not at all."""
    theta, length = float(settings["rope_max_wavelength"]), settings.get("rope_pretraining_sequence_length")
    if not length:
        return {"rotary_theta": theta}
    names = {name: f"rope_{name}" for name in ("low_freq_factor", "high_freq_factor")}
    names["factor"] = "rope_frequency_adjustment_factor"
    scaling = {name: float(settings[theirs]) for name, theirs in names.items()}
    return {
        "rotary_theta": theta,
        "rotary_scaling": scaling | {"rope_type": "llama3", "original_max_position_embeddings": length},
        "max_positions": int(length * scaling["factor"]),
    }


def _adapt(slot: table.Slot, config) -> table.Slot:
    """Adapts a slot to Keras's storage: heads have an axis, and position tables begin with the first position."""
    path = table.relative_path(slot.variables[0])
    shape_of_variable = tuple(slot.variables[0].shape)
    match = re.search(r"attention/(query|key|value|output)/(kernel|bias)$", path)
    if match and config.positions != "relative":  # T5's attention is a layer of its own.
        heads = config.num_kv_heads if match[1] in ("key", "value") and config.num_kv_heads else config.num_heads
        if match[1] != "output":
            shape = (*shape_of_variable[:-1], heads, shape_of_variable[-1] // heads)
        elif match[2] == "kernel":
            shape = (heads, shape_of_variable[0] // heads, shape_of_variable[1])
        else:
            return slot
        return dataclasses.replace(
            slot,
            shape=shape,
            to_stored=lambda arrays: arrays[0].reshape(shape),
            from_stored=lambda array: [array.reshape(shape_of_variable)],
            rows="",
        )
    offset = config.position_offset
    if path.endswith("embeddings/positions") and offset:
        # The rows before the first position belong to padding, to which nothing attends.
        return dataclasses.replace(
            slot,
            shape=(shape_of_variable[0] - offset, shape_of_variable[1]),
            to_stored=lambda arrays: arrays[0][offset:],
            from_stored=lambda array: [np.pad(array, ((offset, 0), (0, 0)))],
            rows="",
        )
    return slot
