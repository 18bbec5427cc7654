"""Exports of tiny models for the tests of OpenAI's routes, written without being replayed."""

import dataclasses
import pathlib
import shutil

import tensorflow as tf

from tests.export import small
from tfzoo.export import answers, interface, manifest, tokenizer_files
from tfzoo.export.answers import Options
from tfzoo.export.onnx import emit, graph
from tfzoo.text.extended import extended

TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] + ':' + message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)


def export(model, tokenizer, folder: pathlib.Path, options: Options, profile: str = "standard") -> None:
    """Writes an ONNX artifact without golden.npz."""
    folder.mkdir(parents=True)
    graphs = emit.save(model, folder, profile=profile, length=options.sequence_length)
    headers = {path.stem: graph.read_header(path) for path in graphs}
    tokenizer_files.write(tokenizer, model.LAYOUT, folder / "tokenizer")
    answer = answers.find(model, tokenizer, dataclasses.replace(options, max_new_tokens=1))
    assert answer is not None
    content = {
        "kind": "onnx",
        "name": folder.parent.name,
        "version": int(folder.name),
        "signatures": {name: interface.stated(graph.describe(header)) for name, header in headers.items()},
        "tolerances": {},
        "model": {"heads": list(model.head_names), "config": dataclasses.asdict(model.config)},
        "labels": list(model.labels or ()),
        "profile": profile,
        "options": dataclasses.asdict(options),
        **answer.facts(),
    }
    manifest.write(folder, content)


def save_all(folder: pathlib.Path) -> str:
    """Writes a decoder, a sentence encoder and a model that ranks pairs as ONNX artifacts, and SavedModels that write
    text and answer messages; returns the text of their models.config."""
    tokenizer = extended(small.byte_level_tokenizer(), chat_templates={"default": TEMPLATE})
    decoder = small.model("gpt2", heads=["lm"], vocab_size=tokenizer.vocab_size)
    export(decoder, tokenizer, folder / "writer" / "1", Options(32))
    encoder = small.model("bert", heads=["embed"], embed=None)
    export(encoder, small.tokenizer(), folder / "encoder" / "1", Options(16))
    ranker = small.model("bert", heads=["classify"], num_labels=2)
    export(ranker, small.tokenizer(), folder / "ranker" / "1", Options(16, text_pair=True))
    save_writer(folder / "graph" / "1")
    shutil.copytree(folder / "graph", folder / "answering")
    options = dataclasses.asdict(Options(16, max_new_tokens=4, messages=True))
    content = {"kind": "savedmodel", "name": "answering", "version": 1, "signatures": {}, "tolerances": {}}
    manifest.write(folder / "answering" / "1", content | {"model": {"heads": ["lm"], "config": {}}, "options": options})
    platforms = {
        "writer": "onnx",
        "encoder": "onnx",
        "ranker": "onnx",
        "graph": "tensorflow",
        "answering": "tensorflow",
    }
    entries = "".join(
        f'config {{ name: "{name}" base_path: "{folder}/{name}" model_platform: "{platform}" }}\n'
        for name, platform in platforms.items()
    )
    return f"model_config_list {{ {entries} }}"


class _Writer(tf.Module):
    """Repeats the last character of a text, once for each token."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, "text"),
            tf.TensorSpec([None], tf.int32, "max_new_tokens"),
            tf.TensorSpec([None], tf.float32, "temperature"),
            tf.TensorSpec([None], tf.int32, "top_k"),
            tf.TensorSpec([None], tf.float32, "top_p"),
            tf.TensorSpec([None], tf.int32, "seed"),
        ]
    )
    def generate(self, text, max_new_tokens, temperature, top_k, top_p, seed):
        last = tf.strings.substr(text, -1, 1)
        count = tf.minimum(max_new_tokens, 5)
        texts = tf.map_fn(
            lambda pair: tf.strings.reduce_join(tf.repeat(pair[0], pair[1])),
            (last, count),
            fn_output_signature=tf.string,
        )
        return {"generated_text": texts, "num_tokens": count}


def save_writer(folder: pathlib.Path) -> None:
    """Writes a SavedModel with the signature `generate`."""
    module = _Writer()
    tf.saved_model.save(module, str(folder), signatures={"generate": module.generate.get_concrete_function()})
