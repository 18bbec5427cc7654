"""Make tiny random sentence-transformers folders, and record the vectors that the library gives.

    python tests/assets/sentence_references.py --output=tests/assets/golden_sentence
    python tests/assets/sentence_references.py --check FOLDER

The second is the other direction: the library reads every folder in FOLDER that tfzoo wrote and that has a
golden.npz, and gives the recorded vectors. Needs sentence-transformers 6.2; does not import tfzoo.

golden.npz: `texts`; `vectors/PROMPT`, of encode(prompt_name=PROMPT), "" being what it does by default; `modes/MODE`, of
each mode of pooling, with nothing behind it and no prompt. Each text was computed by itself.
"""

import argparse
import json
import pathlib
import shutil
import string
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

NOISE = 0.15
TEXTS = [
    "The function of the words.",
    "",
    "  Tea of ÉÀ \n",
    "a",
    "of the the the function of a long text, which is cut where it is the longest that there is",
    "東京 ΣΑΣ İ ß!",
]
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
SIZES = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)


def wordpiece(folder: pathlib.Path, lowercase: bool):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = list(string.ascii_lowercase)
    others = ["the", "of", "function", "query", ":", ".", ",", "!", "東", "京", "σ", "##σ", "##α", "é", "##à"]
    if not lowercase:
        others += ["T", "The", "É", "##À"]
    vocab = [*special, *letters, *(f"##{letter}" for letter in letters), *others]
    path = folder / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in vocab), encoding="utf-8")
    tokens = {token: i for i, token in enumerate(vocab)}
    return BertTokenizer(vocab=tokens, do_lower_case=lowercase, strip_accents=lowercase), len(vocab)


def byte_level(folder: pathlib.Path, special: list[str], template: bool, **roles):
    """Bytes and two merges; with a template, <s> and </s> stand around a text."""
    pieces = ["Ġt", "he"]
    tokens = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces])}
    merges = [("Ġ", "t"), ("h", "e")]
    inner = Tokenizer(models.BPE(tokens, merges))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if template:
        inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    (folder / "vocab.json").write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    return PreTrainedTokenizerFast(tokenizer_object=inner, **roles), len(tokens)


def bert(folder):
    tokenizer, size = wordpiece(folder, lowercase=True)
    return BertModel(BertConfig(vocab_size=size, max_position_embeddings=24, **SIZES)), tokenizer


def cased(folder):
    tokenizer, size = wordpiece(folder, lowercase=False)
    return BertModel(BertConfig(vocab_size=size, max_position_embeddings=24, **SIZES)), tokenizer


def roberta(folder):
    roles = dict(
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )
    tokenizer, size = byte_level(folder, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], True, **roles)
    ids = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1, max_position_embeddings=42)
    return RobertaModel(RobertaConfig(vocab_size=size, **ids, **SIZES)), tokenizer


def gpt2(folder):
    end = "<|endoftext|>"
    roles = dict(bos_token=end, eos_token=end, unk_token=end, pad_token=end)
    tokenizer, size = byte_level(folder, [end], False, **roles)
    ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    config = GPT2Config(vocab_size=size, n_positions=40, n_embd=8, n_layer=2, n_head=2, n_inner=12, **ids)
    return GPT2Model(config), tokenizer


def dense(inputs: int, outputs: int, **options):
    return modules.Dense(inputs, outputs, **options)


# name -> (model and tokenizer, what follows the model, keywords of SentenceTransformer, tokens of the longest text).
CASES: dict[str, tuple[Callable, Callable, dict[str, Any], int]] = {
    "bert": (
        bert,
        lambda: [
            modules.Pooling(8, MODES),
            dense(48, 10),
            modules.Normalize(),
            dense(10, 6, bias=False, activation_function=torch.nn.GELU()),
        ],
        dict(similarity_fn_name="dot", prompts={"query": "query: ", "plain": ""}),
        16,
    ),
    "cased": (cased, lambda: [modules.Pooling(8, "mean"), modules.Normalize()], {}, 20),
    "roberta": (
        roberta,
        lambda: [modules.Pooling(8, ("weightedmean", "cls", "max", "lasttoken"), include_prompt=False)],
        dict(prompts={"query": "the query:  ", "long": "the " * 9}, default_prompt_name="query"),
        40,
    ),
    "gpt2": (gpt2, lambda: [modules.Pooling(8, "lasttoken"), modules.Normalize()], dict(prompts={"to": "to: "}), 24),
}


def randomize(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(NOISE * torch.randn(weight.shape, generator=generator))


def make(name: str, output: pathlib.Path) -> None:
    torch.manual_seed(0)
    made, layers, keywords, longest = CASES[name]
    folder, source = output / name, output / f"{name}.source"
    for path in (folder, source):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    model, tokenizer = made(source)
    randomize(model, 1)
    tokenizer.model_max_length = longest
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    behind = layers()
    for i, module in enumerate(behind):
        randomize(module, 2 + i)
    whole = SentenceTransformer(modules=[modules.Transformer(str(source)), *behind], device="cpu", **keywords)
    whole.save_pretrained(str(folder), create_model_card=False)
    for path in source.iterdir():  # The vocabulary on its own, as older folders have it.
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    shutil.rmtree(source)
    if name == "cased":  # As older versions wrote it, and lower-cased in front of a tokenizer that is not.
        older(folder, longest)
    record(folder)


def older(folder: pathlib.Path, longest: int) -> None:
    entries = json.loads((folder / "modules.json").read_text())
    inner = folder / "0_Transformer"
    inner.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(inner / path.name)
    for entry in entries:
        entry["type"] = f"sentence_transformers.models.{entry['type'].rpartition('.')[2]}"
        entry["path"] = entry["path"] or "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(entries, indent=2) + "\n")
    fields = {"max_seq_length": longest, "do_lower_case": True}
    (inner / "sentence_bert_config.json").write_text(json.dumps(fields) + "\n")
    flags = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    fields = {"word_embedding_dimension": 8} | {f"pooling_mode_{flag}": flag == "mean_tokens" for flag in flags}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(fields) + "\n")
    shutil.rmtree(folder / "2_Normalize")


def encode(model: SentenceTransformer, prompt: str, texts=TEXTS) -> np.ndarray:
    return np.stack([model.encode([text], prompt_name=prompt or None, batch_size=1)[0] for text in texts])


def record(folder: pathlib.Path) -> None:
    model = SentenceTransformer(str(folder), device="cpu")
    # A decoder's text of no tokens has no state.
    texts = [text for text in TEXTS if text or model[0].config.model_type != "gpt2"]
    arrays: dict[str, Any] = {"texts": np.array(texts)}
    for prompt in ("", *(name for name in model.prompts if model.prompts[name])):
        arrays[f"vectors/{prompt}"] = encode(model, prompt, texts)
    for mode in MODES:
        one = SentenceTransformer(modules=[model[0], modules.Pooling(8, mode)], device="cpu")
        arrays[f"modes/{mode}"] = encode(one, "", texts)
    np.savez_compressed(folder / "golden.npz", **arrays)


def check(folder: pathlib.Path) -> None:
    """Reads each case by the library, and compares."""
    worst = 0.0
    for path in sorted(folder.rglob("golden.npz")):
        golden = np.load(path)
        model = SentenceTransformer(str(path.parent), device="cpu")
        texts = golden["texts"].tolist()
        for name in golden.files:
            if name.startswith("vectors/"):
                want, prompt = golden[name], name.removeprefix("vectors/")
                for got in (encode(model, prompt, texts), model.encode(texts, prompt_name=prompt or None)):
                    worst = max(worst, float(np.abs(got - want).max()))
        length, similarity = model.max_seq_length, model.similarity_fn_name
        print(f"{path.parent.name}: {len(model)} modules, {length} tokens, {similarity}, prompts {model.prompts}")
    print(f"largest difference {worst:.2g}")
    if worst > 1e-6:
        raise SystemExit("which is too much")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--check", type=pathlib.Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.check:
        check(arguments.check)
    else:
        for name in CASES:
            make(name, arguments.output)


if __name__ == "__main__":
    main()
