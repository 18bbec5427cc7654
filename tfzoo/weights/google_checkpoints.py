"""TF1 checkpoints of https://github.com/google-research/bert and https://github.com/google-research/electra.

Checkpoints of other projects are recognised by their variables' names, for errors.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from tfzoo import json_files, models
from tfzoo.errors import UserError
from tfzoo.models.markers import Turned
from tfzoo.weights import huggingface, table, tf1_files
from tfzoo.weights.foreign import Source

PARTS = ("discriminator", "generator")  # Of an ELECTRA checkpoint, which contains both.

# Variable names of other projects. The first match is named in the error.
_PROJECTS = (
    ("ALBERT", r"bert/encoder/transformer/group_\d+/"),
    ("MobileBERT", r"bert/encoder/layer_\d+/bottleneck/"),
    ("RemBERT", r"bert/encoder/embedding_hidden_mapping_in/"),
    ("TAPAS", r"bert/embeddings/token_type_embeddings_\d+$"),
    ("CANINE", r"bert/(char_embeddings|initial_char_encoder|final_char_encoder)/"),
    ("ConvBERT", r"electra/encoder/layer_\d+/attention/self/conv_"),
    ("XLNet", r"model/transformer/(layer_\d+/rel_attn/|r_w_bias$)"),
    ("Funnel-Transformer", r"model/(encoder|decoder)/layer_\d+/rel_attn/"),
    ("Transformer-XL", r"transformer/(adaptive_embed/|layer_\d+/rel_attn/|r_w_bias$)"),
    ("GPT-2", r"model/(wte|wpe|h\d+/attn/c_attn/w)$"),
    ("T5 (Mesh TensorFlow)", r"(encoder|decoder)/block_\d+/layer_\d+/"),
    ("PEGASUS", r"decoder/layer_\d+/memory_attention/"),
    ("Tensor2Tensor", r"transformer/(body/(encoder|decoder)/|symbol_modality_|parallel_0)"),
    ("ELMo", r"(bi)?lm/(CNN|RNN|char_embed)"),
    ("TF-Slim", r"(resnet_v\d_\d+|InceptionV\d|MobilenetV\d|vgg_\d+)/"),
)
_READ = "the only TF1 checkpoints supported are those of google-research's BERT and ELECTRA"

TF1 = table.Naming(
    {"kernel": "/kernel", "bias": "/bias", "gamma": "/gamma", "beta": "/beta", "embeddings": ""},
    transposed=False,
    canonical=lambda name: name,
)


def _tf1_encoder(scope, embeddings):
    layer, ours = f"{scope}/encoder/layer_{{}}", "encoder/stack/layer_{}"
    return {
        f"{embeddings}/word_embeddings": "encoder/embeddings/tokens",
        f"{embeddings}/position_embeddings": "encoder/embeddings/positions",
        f"{embeddings}/token_type_embeddings": "encoder/embeddings/segments",
        f"{embeddings}/LayerNorm": "encoder/embeddings/norm",
        f"{scope}/embeddings_project": "encoder/embeddings/projection",
        f"{layer}/attention/self/query": f"{ours}/attention/query",
        f"{layer}/attention/self/key": f"{ours}/attention/key",
        f"{layer}/attention/self/value": f"{ours}/attention/value",
        f"{layer}/attention/output/dense": f"{ours}/attention/output",
        f"{layer}/attention/output/LayerNorm": f"{ours}/self_norm",
        f"{layer}/intermediate/dense": f"{ours}/mlp/up",
        f"{layer}/output/dense": f"{ours}/mlp/down",
        f"{layer}/output/LayerNorm": f"{ours}/mlp_norm",
    }


# The pre-training heads of run_pretraining.py, and those of run_classifier.py and run_squad.py.
_BERT_HEADS = {
    "lm": "cls/predictions/output_bias",
    "next_sentence": "cls/seq_relationship/output_bias",
    "classify": "output_bias",
    "span": "cls/squad/output_bias",
}
BERT = _tf1_encoder("bert", "bert/embeddings") | {
    "bert/pooler/dense": "pooler/dense",
    "cls/predictions/transform/dense": "lm/transform",
    "cls/predictions/transform/LayerNorm": "lm/norm",
    "cls/predictions/output_bias": "lm/bias",
    "cls/seq_relationship/output_weights": Turned("next_sentence/dense/kernel"),
    "cls/seq_relationship/output_bias": "next_sentence/dense/bias",
    "output_weights": Turned("classify/dense/kernel"),
    "output_bias": "classify/dense/bias",
    "cls/squad/output_weights": Turned("span/dense/kernel"),
    "cls/squad/output_bias": "span/dense/bias",
}
_ELECTRA_HEADS = {
    "discriminator": {
        "discriminator_predictions/dense": "discriminate/hidden",
        "discriminator_predictions/dense_1": "discriminate/dense",
    },
    "generator": {
        "generator_predictions/dense": "lm/transform",
        "generator_predictions/LayerNorm": "lm/norm",
        "generator_predictions/output_bias": "lm/bias",
    },
}


def electra_table(part: str, own_embeddings: bool = False) -> dict[str, Any]:
    """Returns the table of one part of an ELECTRA checkpoint, with None for the names of the other part.

    Args:
      part: "discriminator" or "generator".
      own_embeddings: whether the generator's embeddings differ from the discriminator's.
    """
    tables = {
        "discriminator": _tf1_encoder("electra", "electra/embeddings") | _ELECTRA_HEADS["discriminator"],
        "generator": _tf1_encoder("generator", "generator/embeddings" if own_embeddings else "electra/embeddings")
        | _ELECTRA_HEADS["generator"],
    }
    return {name: None for other in PARTS for name in tables[other]} | tables[part]


def open_tf1(folder: str | os.PathLike, checkpoint: str | None = None, part: str = PARTS[0]) -> Source:
    """Opens a BERT or ELECTRA checkpoint as saved by google-research's code.

    BERT's sizes are in bert_config.json. ELECTRA's checkpoints have no such file, so the sizes are derived from the
    tensors, with heads of size 64 (electra/util/training_utils.py); a bert_config.json next to them applies to the
    discriminator.

    Args:
      folder: a folder with one checkpoint. The slots of its optimizer, of any kind, are ignored.
      checkpoint: the prefix of a checkpoint, such as bert_model.ckpt, if the folder has several.
      part: "discriminator" or "generator", for ELECTRA.

    Raises:
      UserError: the checkpoint cannot be read, or is neither BERT nor ELECTRA.
    """
    folder = pathlib.Path(folder)
    path = folder / "bert_config.json"
    record = json_files.read(path) if path.exists() else {}
    file = tf1_files.open_tf1(folder / checkpoint if checkpoint else folder)
    try:
        _refuse_other_projects(folder, file.names)
        if any(name.startswith(("electra/", "generator/")) for name in file.names):
            family = "electra"
            heads: tuple[str, ...] = ("discriminate",) if part == "discriminator" else ("lm",)
            own_embeddings = "generator/embeddings/word_embeddings" in file
            table: Mapping[str, Any] = electra_table(part, own_embeddings)
            scope = {"discriminator": "electra", "generator": "generator"}[part]
            sizes = _electra_sizes(file, scope, "generator" if own_embeddings and scope == "generator" else "electra")
            record = sizes | record if part == "discriminator" else record | sizes
        elif "bert/embeddings/word_embeddings" in file:
            family, table = "bert", BERT
            heads = tuple(head for head, name in _BERT_HEADS.items() if name in file)
            if not record:
                raise UserError(f"{path}: no such file, so the number of attention heads is unknown; restore it")
        else:
            raise UserError(
                f"{folder}: the checkpoint is neither BERT nor ELECTRA, nor of another known project: it contains "
                f"{', '.join(file.names[:3]) or 'no weights'}; {_READ}"
            )
        config = huggingface.decode_config(path, record | {"model_type": family}, models.page(family))
    except Exception:
        file.close()
        raise
    prefix = file.file(file.names[0]).stem
    used = {path.name, *(p.name for p in folder.iterdir() if re.match(re.escape(prefix) + r"\.(index$|data-)", p.name))}
    return Source(
        kind="a TF1 checkpoint",
        where=folder,
        family=family,
        model_type=family,
        config=config,
        heads=heads,
        num_labels=file.shape("output_bias")[0] if "output_bias" in file else 2,
        file=file,
        WEIGHTS=table,
        naming=TF1,
        adapt=lambda slot, _: slot,
        used=frozenset(used),
    )


def _refuse_other_projects(folder, names) -> None:
    for project, pattern in _PROJECTS:
        example = next((name for name in names if re.match(pattern, name)), None)
        if example:
            raise UserError(
                f"{folder}: the checkpoint looks like {project} (it contains {example}), but {_READ}; "
                "use the model's Hugging Face folder, or convert it to one with transformers"
            )
    for name in names:
        scope, example, _ = name.partition("/bert/embeddings/word_embeddings")
        if example:
            raise UserError(
                f"{folder}: the checkpoint has BERT's variables in a scope, {scope}/ ({name}), which is not supported; "
                "save them without the scope (tf.compat.v1.train.Saver takes a dict of names)"
            )


def _electra_sizes(file, scope, embeddings) -> dict[str, int]:
    """Returns config.json's sizes, derived from the tensors' shapes."""
    layer = f"{scope}/encoder/layer_0"

    def shape(name):
        if name not in file or len(file.shape(name)) != 2:
            raise UserError(f"the checkpoint has no matrix {name}, which every ELECTRA checkpoint has")
        return file.shape(name)

    tokens = shape(f"{embeddings}/embeddings/word_embeddings")
    hidden, intermediate = shape(f"{layer}/intermediate/dense/kernel")
    layers = {m[1] for name in file.names if (m := re.match(rf"{scope}/encoder/layer_(\d+)/", name))}
    return {
        "vocab_size": tokens[0],
        "embedding_size": tokens[1],
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, hidden // 64),
        "intermediate_size": intermediate,
        "max_position_embeddings": shape(f"{embeddings}/embeddings/position_embeddings")[0],
        "type_vocab_size": shape(f"{embeddings}/embeddings/token_type_embeddings")[0],
    }
