"""Make folders as transformers lays them out, with tiny random models, and record what they answer.

    python tests/assets/layouts.py --output=build/layouts/5.23
    python tests/assets/layouts.py --check=build/layouts/5.23

The second loads what tests/layouts.py read and wrote again beside each folder, and compares. Run by the transformers
whose layout is wanted: its major versions differ. Needs torch, tokenizers and sentencepiece; does not import tfzoo.
"""

import argparse
import io
import json
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import sentencepiece
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "text"))
from varied import CHINESE, CODE, MORE, SENTENCES

CORPUS = [*SENTENCES, *CHINESE, *CODE, *MORE] * 2
TEXTS = ["The quick brown fox, doesn't it?", "人工智能和机器学习 in 2024", "a"]
LINES = [*SENTENCES, *CHINESE, *CODE, *MORE, *TEXTS, "", " ", "<think>ok</think>  Yes COVID-19"]
PAIR = ("a text", "two words")
NEW_TOKENS = 8
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SCRATCH = tempfile.TemporaryDirectory()
MAJOR = int(transformers.__version__.split(".")[0])


def from_files(class_name: str, files: dict[str, bytes], **config):
    """The tokenizer that transformers makes of a vocabulary's own files."""
    cls = getattr(transformers, class_name + ("" if MAJOR >= 5 else "Fast"), None) or getattr(transformers, class_name)
    folder = tempfile.mkdtemp(dir=SCRATCH.name)  # Saving copies the files.
    for name, content in files.items():
        pathlib.Path(folder, name).write_bytes(content)
    config = {"tokenizer_class": class_name, "model_max_length": 64, **config}
    pathlib.Path(folder, "tokenizer_config.json").write_text(json.dumps(config))
    return cls.from_pretrained(folder)


def word_pieces(lowercase: bool) -> dict[str, bytes]:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=700, special_tokens=BERT_SPECIAL, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    vocab = made.get_vocab()
    return {"vocab.txt": "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__)).encode()}


def byte_level(special: list[str], *before, **options) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(**options))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not any("Split" in str(part) for part in before))
    made.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def vocab_and_merges(made: tokenizers.Tokenizer) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        made.model.save(folder)
        return {name: pathlib.Path(folder, name).read_bytes() for name in ("vocab.json", "merges.txt")}


def spiece(name: str, kind: str, **options) -> dict[str, bytes]:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=900, model_type=kind, hard_vocab_limit=False,
        minloglevel=3, **options,
    )  # fmt: skip
    return {name: model.getvalue()}


def bert_added():
    made = from_files("BertTokenizer", word_pieces(True), do_lower_case=True)
    made.add_tokens(["newword", "covid-19", AddedToken("alone", single_word=True)])
    made.add_special_tokens({"additional_special_tokens": ["[E1]", "[E2]"]})
    return made


def qwen(**options):
    made = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.Split(Regex(QWEN2), "isolated"))
    made.normalizer = normalizers.NFC()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=64
    )
    made.add_tokens([AddedToken(token, normalized=False) for token in ("<think>", "</think>", "<tool_call>")])
    return made


def llama3():
    made = byte_level(
        ["<|begin_of_text|>", "<|eot_id|>"], pre_tokenizers.Split(Regex(LLAMA3), "isolated"), ignore_merges=True
    )
    begin = "<|begin_of_text|>"
    frame = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, made.token_to_id(begin))]
    )
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), frame])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token=begin, eos_token="<|eot_id|>")


def smollm2():
    digits = pre_tokenizers.Digits(individual_digits=True)
    made = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], digits)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>"
    )


LLAMA2 = dict(
    byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
    unk_id=0, bos_id=1, eos_id=2,
)  # fmt: skip


def llama2(**config):
    return from_files("LlamaTokenizer", spiece("tokenizer.model", "bpe", **LLAMA2), **config)


def t5(**config):
    files = spiece("spiece.model", "unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return from_files("T5Tokenizer", files, extra_ids=100, **config)


def fairseq(class_name: str, **config):
    return from_files(class_name, spiece("sentencepiece.bpe.model", "unigram", unk_id=0, bos_id=1, eos_id=2), **config)


def marian():
    """Ids of the pieces of both languages, some of them no pieces of the source's model."""
    source = spiece("source.spm", "unigram")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4), model_writer=model, vocab_size=400, hard_vocab_limit=False, minloglevel=3
    )
    pieces = ["</s>", "<unk>", ">>fra<<", ">>deu<<", "人工智能", "智"]
    for content in (*source.values(), model.getvalue()):
        one = sentencepiece.SentencePieceProcessor(model_proto=content)
        pieces += [one.id_to_piece(i) for i in range(3, one.get_piece_size()) if i % 7]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "<pad>"]))}
    files = {**source, "target.spm": model.getvalue(), "vocab.json": json.dumps(vocab).encode()}
    return from_files("MarianTokenizer", files)


def xlnet():
    controls = ["<cls>", "<sep>", "<pad>", "<mask>"]
    options = dict(unk_id=0, bos_id=1, eos_id=2, control_symbols=controls, user_defined_symbols=["<eod>", "<eop>"])
    return from_files("XLNetTokenizer", spiece("spiece.model", "unigram", **options))


def albert():
    options = dict(pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"])
    return from_files("AlbertTokenizer", spiece("spiece.model", "unigram", **options))


def gpt2(**config):
    return from_files("GPT2Tokenizer", vocab_and_merges(byte_level(["<|endoftext|>"])), **config)


def roberta(class_name: str = "RobertaTokenizer", **config):
    return from_files(class_name, vocab_and_merges(byte_level(ROBERTA_SPECIAL)), **config)


BERT = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=160,
    num_labels=3,
)  # fmt: skip
LLAMA = BERT | dict(num_key_value_heads=1, head_dim=8, num_labels=2)
BART = dict(
    d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=160,
)  # fmt: skip
MBART = BART | dict(decoder_start_token_id=2)
T5 = dict(d_model=16, d_kv=8, num_heads=2, num_layers=1, num_decoder_layers=1, d_ff=24, decoder_start_token_id=0)
GPT2 = dict(n_embd=16, n_layer=2, n_head=2, n_positions=160)
DISTILBERT = dict(dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=160, num_labels=3)
XLNET = dict(d_model=16, n_layer=2, n_head=2, d_inner=24, num_labels=3)
MARIAN = BART | dict(eos_token_id=0, forced_eos_token_id=0)
CLASSIFY, CAUSAL, SEQ2SEQ = "SequenceClassification", "CausalLM", "Seq2SeqLM"

# Name -> model_type, head, the tokenizer, sizes, and how many ids the model has that the tokenizer does not know.
LAYOUTS: dict[str, tuple[str, str, Callable, dict, int]] = {
    "bert": ("bert", CLASSIFY, lambda: from_files("BertTokenizer", word_pieces(True), do_lower_case=True), BERT, 0),
    "bert-cased": (
        "bert", CLASSIFY, lambda: from_files("BertTokenizer", word_pieces(False), do_lower_case=False), BERT, 0
    ),
    "bert-added": ("bert", CLASSIFY, bert_added, BERT, 0),
    "distilbert": (
        "distilbert", CLASSIFY, lambda: from_files("DistilBertTokenizer", word_pieces(True)), DISTILBERT, 0
    ),
    "electra": (
        "electra", CLASSIFY, lambda: from_files("ElectraTokenizer", word_pieces(True)), BERT | {"embedding_size": 8}, 0
    ),
    "albert": ("albert", CLASSIFY, albert, BERT | {"embedding_size": 8}, 0),
    "roberta": ("roberta", CLASSIFY, roberta, BERT, 0),
    "roberta-prefix": ("roberta", CLASSIFY, lambda: roberta(add_prefix_space=True), BERT, 0),
    "xlm-roberta": ("xlm-roberta", CLASSIFY, lambda: fairseq("XLMRobertaTokenizer"), BERT, 0),
    "xlnet": ("xlnet", CLASSIFY, xlnet, XLNET, 0),
    "gpt2": ("gpt2", CAUSAL, gpt2, GPT2, 0),
    "gpt2-bos": ("gpt2", CAUSAL, lambda: gpt2(add_bos_token=True), GPT2, 0),
    "llama-2": ("llama", CAUSAL, lambda: llama2(add_bos_token=True), LLAMA, 0),
    "llama-2-new": ("llama", CAUSAL, lambda: llama2(legacy=False, add_bos_token=True), LLAMA, 0),
    "llama-2-no-prefix": ("llama", CAUSAL, lambda: llama2(legacy=False, add_prefix_space=False), LLAMA, 0),
    "llama-2-eos": ("llama", CAUSAL, lambda: llama2(add_bos_token=True, add_eos_token=True), LLAMA, 0),
    "llama-3": ("llama", CAUSAL, llama3, LLAMA, 0),
    "smollm2": ("llama", CAUSAL, smollm2, LLAMA, 0),
    "mistral": ("mistral", CAUSAL, lambda: llama2(add_bos_token=True), LLAMA, 0),
    "qwen2": ("qwen2", CAUSAL, qwen, LLAMA, 0),
    "qwen3-padded": ("qwen3", CAUSAL, qwen, LLAMA, 64),
    "t5-padded": ("t5", SEQ2SEQ, t5, T5, 28),
    "mt5": ("mt5", SEQ2SEQ, t5, T5, 0),
    "bart": ("bart", SEQ2SEQ, lambda: roberta("BartTokenizer"), BART, 0),
    "camembert": ("camembert", CLASSIFY, lambda: fairseq("CamembertTokenizer"), BERT, 0),
    "data2vec-text": ("data2vec-text", CLASSIFY, roberta, BERT, 0),
    "ernie": ("ernie", CLASSIFY, lambda: from_files("BertTokenizer", word_pieces(True)), BERT, 0),
    "marian": ("marian", SEQ2SEQ, marian, MARIAN, 0),
    "mbart": ("mbart", SEQ2SEQ, lambda: fairseq("MBartTokenizer", src_lang="en_XX"), MBART, 0),
}  # fmt: skip


def write(name: str, folder: pathlib.Path) -> None:
    kind, head, make, sizes, more = LAYOUTS[name]
    tokenizer = make()
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
    ids = {role: i for role, i in ids.items() if i is not None}
    if kind == "marian":
        sizes = sizes | {"decoder_start_token_id": ids["pad_token_id"]}
    if kind in ("roberta", "camembert", "data2vec-text"):
        sizes = sizes | {"max_position_embeddings": sizes["max_position_embeddings"] + 2}
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer) + more, **{**ids, **sizes})
    torch.manual_seed(sorted(LAYOUTS).index(name))
    model = getattr(transformers, f"AutoModelFor{head}").from_config(config).eval()
    with torch.no_grad():
        for where, parameter in model.named_parameters():
            if kind == "marian" and "embed_positions" in where:
                continue  # A table that is computed.
            parameter.add_(0.15 * torch.randn_like(parameter))
    if head != CLASSIFY:
        model.generation_config.max_length = None
    if kind == "mt5":  # Published ones have a matrix of their own.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record, arrays = answers(folder, head)
    (folder / "answers.json").write_text(json.dumps(record))
    np.savez(folder / "answers.npz", **arrays)


def answers(folder: pathlib.Path, head: str) -> tuple[dict, dict]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, f"AutoModelFor{head}").from_pretrained(folder).eval()
    record = {
        "head": head,
        "transformers": transformers.__version__,
        "class": type(tokenizer).__name__,
        "ids": [tokenizer(line).input_ids for line in LINES],
        "plain": [tokenizer(line, add_special_tokens=False, split_special_tokens=True).input_ids for line in LINES],
        "pair": [] if head == CAUSAL else tokenizer(*PAIR).input_ids,
        "decoded": [tokenizer.decode(tokenizer(line).input_ids, skip_special_tokens=True) for line in LINES],
        "size": len(tokenizer),
    }
    arrays, texts = {}, []
    for i, text in enumerate(TEXTS):
        segments = {"return_token_type_ids": True} if model.config.model_type == "xlnet" else {}  # As it was trained.
        inputs = tokenizer(text, return_tensors="pt", **segments)
        if head != CLASSIFY:
            inputs.pop("token_type_ids", None)
            options = dict(max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)
            found = model.generate(**inputs, **options, pad_token_id=tokenizer.pad_token_id or 0)[0]
            whole = tokenizer.decode(found, skip_special_tokens=True)
            given = tokenizer.decode(inputs.input_ids[0], skip_special_tokens=True) if head == CAUSAL else ""
            texts.append(whole.removeprefix(given))
        if head == SEQ2SEQ:
            inputs["decoder_input_ids"] = torch.full((1, 1), model.config.decoder_start_token_id)
        with torch.no_grad():
            arrays[f"logits_{i}"] = model(**inputs).logits.numpy()
    return record | {"texts": texts}, arrays


def check(root: pathlib.Path) -> int:
    """Compares what the reference makes of each folder NAME.again with what it made of NAME."""
    bad = 0
    for folder in sorted(path for path in root.iterdir() if path.name.endswith(".again")):
        first = root / folder.name.removesuffix(".again")
        record = json.loads((first / "answers.json").read_text())
        arrays = np.load(first / "answers.npz")
        found, found_arrays = answers(folder, record["head"])
        wrong = [name for name in record if found[name] != record[name]]
        wrong += [name for name in arrays if np.abs(arrays[name] - found_arrays[name]).max() > 1e-5]
        print(f"{folder.name}: {'differs in ' + ', '.join(wrong) if wrong else 'equal'}")
        bad += bool(wrong)
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, help="folder to write the layouts into")
    parser.add_argument("--check", type=pathlib.Path, help="folder whose layouts were written again")
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="which of them, comma-separated")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if arguments.check:
        return check(arguments.check)
    for name in arguments.layouts.split(","):
        folder = arguments.output / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(name, folder)
        print(f"{name}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
