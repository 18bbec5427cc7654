"""Tiny random KerasHub presets, and what KerasHub answers with them: the references of tests/convert_test.py.

    python tests/assets/presets.py --output=tests/assets/keras_hub

Made with keras-hub 0.32.0, keras 3.15.1 and tensorflow 2.20.0. FOLDER/NAME/ is a preset as its save_to_preset writes
it, but for the files of weights, which are compressed: at these sizes HDF5 is mostly air. golden.npz has `input.*` by
our names, and `output.sequence`, `output.pooled`, `output.memory` and `output.logits` where the backbone or its
embedding gives them; of a task what the task gives, `output.logits` (of a language model at every position) or
`output.classify_logits`, as KerasHub's activation leaves them; `ids.TEXT` of byte-level tokenizers. Every weight has
normal noise: what a converter leaves out shows.
"""

import argparse
import gzip
import json
import pathlib
import shutil

import keras
import keras_hub
import numpy as np

LENGTH, VOCAB = 9, 29
SIZES = dict(vocabulary_size=VOCAB, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=12)
LEARNED = SIZES | dict(max_sequence_length=11)
PROJECTED = LEARNED | dict(embedding_dim=6)
ROTARY = dict(vocabulary_size=VOCAB, num_layers=2, num_query_heads=4, num_key_value_heads=2, hidden_dim=16)
ROTARY |= dict(intermediate_dim=12)
LLAMA3 = dict(
    rope_max_wavelength=500.0,
    rope_frequency_adjustment_factor=8.0,
    rope_low_freq_factor=1.0,
    rope_high_freq_factor=4.0,
    rope_pretraining_sequence_length=16,
)

CASES = {
    "bert": ("BertBackbone", LEARNED),
    "roberta": ("RobertaBackbone", LEARNED),
    "xlm_roberta": ("XLMRobertaBackbone", LEARNED | dict(num_layers=1)),
    "distilbert": ("DistilBertBackbone", LEARNED),
    "electra": ("ElectraBackbone", PROJECTED),
    "electra_plain": ("ElectraBackbone", LEARNED | dict(embedding_dim=8, num_layers=1)),
    "albert": ("AlbertBackbone", PROJECTED | dict(num_layers=3)),
    "gpt2": ("GPT2Backbone", LEARNED),
    "bart": ("BartBackbone", LEARNED),
    "t5": ("T5Backbone", SIZES | dict(key_value_dim=6, use_gated_activation=False)),
    "t5_gated": ("T5Backbone", SIZES | dict(num_layers=1, activation="silu", tie_embedding_weights=False)),
    "llama": ("LlamaBackbone", ROTARY | dict(rope_max_wavelength=500.0, layer_norm_epsilon=1e-5)),
    "llama3": ("Llama3Backbone", ROTARY | LLAMA3 | dict(num_layers=1, tie_word_embeddings=True)),
    "mistral": ("MistralBackbone", ROTARY | dict(num_layers=1, sliding_window=4)),
    "qwen": ("QwenBackbone", ROTARY | dict(num_layers=1)),
    # KerasHub's norms of queries and keys have this epsilon whatever the config says.
    "qwen3": ("Qwen3Backbone", ROTARY | dict(num_layers=1, head_dim=6, layer_norm_epsilon=1e-5)),
}
# Tasks, and what they are given besides the backbone. The first one is trained for a step, so that its file holds what
# an optimizer keeps.
TASKS = {
    "bert_classifier": ("BertTextClassifier", "bert", dict(num_classes=3, dropout=0.3)),
    "roberta_classifier": ("RobertaTextClassifier", "roberta", dict(num_classes=3, activation="softmax")),
    "xlm_roberta_classifier": ("XLMRobertaTextClassifier", "xlm_roberta", dict(num_classes=2)),
    "distilbert_classifier": ("DistilBertTextClassifier", "distilbert", dict(num_classes=4, activation="sigmoid")),
    "albert_classifier": ("AlbertTextClassifier", "albert", dict(num_classes=3)),
    "roberta_masked_lm": ("RobertaMaskedLM", "roberta", {}),
    "xlm_roberta_masked_lm": ("XLMRobertaMaskedLM", "xlm_roberta", {}),
    "gpt2_causal_lm": ("GPT2CausalLM", "gpt2", {}),
    "bart_seq2seq_lm": ("BartSeq2SeqLM", "bart", {}),
    "t5_seq2seq_lm": ("T5Seq2SeqLM", "t5", {}),
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrs", "##a", "##b", "##c", "##d", "##e"]
_LETTERS, _SPACED = "abcdefghijklmnopqrstuvwxyz", ["ab", "Ġ", "Ġab"]
_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", *_LETTERS[:21], *_SPACED, "<mask>"]
_LLAMA3 = [f"<|{name}|>" for name in "begin_of_text end_of_text eot_id start_header_id end_header_id".split()]
BYTE_LEVEL = {
    "gpt2": ("GPT2Tokenizer", [*_LETTERS, "ab", "<|endoftext|>"], ["a b"]),
    "roberta": ("RobertaTokenizer", _ROBERTA, ["a b", "Ġ ab"]),
    "bart": ("BartTokenizer", _ROBERTA, ["a b", "Ġ ab"]),
    "llama3": ("Llama3Tokenizer", [*_LETTERS[:21], *_SPACED, *_LLAMA3], ["a b", "Ġ ab"]),
    "qwen": ("QwenTokenizer", [*_LETTERS[:25], *_SPACED, "<|endoftext|>"], ["a b", "Ġ ab"]),
    "qwen3": ("Qwen3Tokenizer", [*_LETTERS[:24], *_SPACED, "<|endoftext|>", "<|im_end|>"], ["a b", "Ġ ab"]),
}
TEXTS = ["abba", "ab ab cab"]


def make(name, random):
    class_name, arguments = CASES[name]
    if class_name == "ElectraBackbone":  # It alone has another word for it.
        arguments = {key.replace("vocabulary_size", "vocab_size"): value for key, value in arguments.items()}
    keras.utils.set_random_seed(0)
    backbone = getattr(keras_hub.models, class_name)(**arguments)
    for variable in backbone.variables:
        variable.assign(variable + random.normal(0, 0.2, variable.shape))
    return backbone


def make_task(name, random):
    class_name, backbone, arguments = TASKS[name]
    task = getattr(keras_hub.models, class_name)(make(backbone, random), **arguments)
    known = {id(variable) for variable in task.backbone.variables}
    for variable in task.variables:
        if id(variable) not in known and "seed" not in variable.path:
            variable.assign(variable + random.normal(0, 0.2, variable.shape))
    return task


def task_answers(task, random):
    """Inputs by our names, and what the task makes of them."""
    given = {key: value for key, value in answers(task.backbone, random).items() if key.startswith("input.")}
    names = {tensor.name for tensor in task.inputs}
    theirs = {key.removeprefix("input."): np.asarray(value, np.int32) for key, value in given.items()}
    theirs = {f"encoder_{key}" if f"encoder_{key}" in names else key: value for key, value in theirs.items()}
    if "mask_positions" in names:
        theirs["mask_positions"] = np.tile(np.arange(LENGTH, dtype=np.int32), (3, 1))
    output = "classify_logits" if "Classifier" in type(task).__name__ else "logits"
    return given | {f"output.{output}": np.asarray(task(theirs))}


def answers(backbone, random):
    """Inputs by our names, and outputs."""
    lengths = (LENGTH, 6, 3)
    token_ids = random.integers(5, VOCAB, (3, LENGTH)).astype(np.int32)
    padding_mask = np.arange(LENGTH) < np.array(lengths)[:, None]
    token_ids *= padding_mask
    names = {tensor.name for tensor in backbone.inputs}
    inputs = {"token_ids": token_ids, "padding_mask": padding_mask}
    if "segment_ids" in names:
        inputs["segment_ids"] = (np.arange(LENGTH) > 2).astype(np.int32) * padding_mask
    if "encoder_token_ids" in names:
        inputs["decoder_token_ids"] = random.integers(5, VOCAB, (3, LENGTH - 2)).astype(np.int32)
        inputs["decoder_padding_mask"] = np.arange(LENGTH - 2) < np.array([LENGTH - 2, 4, 5])[:, None]
    theirs = {f"encoder_{key}" if f"encoder_{key}" in names else key: value for key, value in inputs.items()}
    outputs = backbone({key: np.asarray(value, np.int32) for key, value in theirs.items()})
    if not isinstance(outputs, dict):
        outputs = {"sequence_output": outputs}
    words = {"encoder_sequence_output": "memory", "decoder_sequence_output": "sequence"}
    result = {words.get(key, key.removesuffix("_output")): np.asarray(value) for key, value in outputs.items()}
    if "electra" in backbone.name:
        del result["pooled"]  # The published models have no pooler, and what is in the presets was never trained.
    if any(word in backbone.name for word in ("gpt2", "bart", "llama", "mistral", "qwen")) or not getattr(
        backbone, "tie_embedding_weights", True
    ):
        result["logits"] = np.asarray(backbone.token_embedding(result["sequence"], reverse=True))
    return {f"input.{k}": v for k, v in inputs.items()} | {f"output.{k}": v for k, v in result.items()}


def tokenizer(name):
    if name == "bert":
        return keras_hub.models.BertTokenizer(vocabulary=WORDS, lowercase=True)
    if name in BYTE_LEVEL:
        class_name, tokens, merges = BYTE_LEVEL[name]
        vocabulary = {token: i for i, token in enumerate(tokens)}
        return getattr(keras_hub.models, class_name)(vocabulary=vocabulary, merges=merges)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    output = parser.parse_args().output
    for number, name in enumerate([*CASES, *TASKS]):
        random = np.random.default_rng(number)
        model = make(name, random) if name in CASES else make_task(name, random)
        golden = answers(model, random) if name in CASES else task_answers(model, random)
        folder = output / name
        shutil.rmtree(folder, ignore_errors=True)
        if name == next(iter(TASKS)):
            inputs = {tensor.name: np.ones((2, LENGTH), np.int32) for tensor in model.inputs}
            model.compile(keras.optimizers.SGD(0.0, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(True))
            model.fit(inputs, np.array([0, 1]), verbose=0)
        model.save_to_preset(str(folder))
        if tokenizer(name) is not None:
            tokenizer(name).save_to_preset(str(folder))
        if name in BYTE_LEVEL:
            texts = TEXTS[: 1 if name == "gpt2" else None]  # Its vocabulary has no space.
            golden |= {f"ids.{text}": np.array(tokenizer(name)(text)) for text in texts}
        metadata = json.loads((folder / "metadata.json").read_text())
        metadata["date_saved"] = "2026-11-22@00:00:00"  # The same bytes each time.
        (folder / "metadata.json").write_text(json.dumps(metadata, indent=4))
        for weights in folder.glob("*.weights.h5"):
            (folder / f"{weights.name}.gz").write_bytes(gzip.compress(weights.read_bytes(), mtime=0))
            weights.unlink()
        np.savez_compressed(folder / "golden.npz", **golden)


if __name__ == "__main__":
    main()
