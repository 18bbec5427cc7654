"""Make tiny random Hugging Face models and record what they answer: the golden files beside this page.

    python tests/assets/references.py --output=tests/assets/golden
    python tests/assets/references.py --output=FOLDER --draws=20 --cases=bert,gpt2
    python tests/assets/references.py --check FOLDER

The last is the other direction: what tests/parity.py wrote beside its cases in FOLDER, Hugging Face loads, and answers
as the case says. Needs torch and transformers; does not import tfzoo. README.md beside this page says what the files
hold.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import zlib
from collections.abc import Callable, Sequence
from unittest import mock

import numpy as np
import torch
import transformers
from safetensors import safe_open
from torch.nn import functional
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

NOISE = 0.15  # wide enough that no bias, norm or embedding could be left out unseen
ARGUMENTS = {  # our names -> Hugging Face's
    "token_ids": "input_ids",
    "segment_ids": "token_type_ids",
    "padding_mask": "attention_mask",
    "decoder_token_ids": "decoder_input_ids",
    "decoder_padding_mask": "decoder_attention_mask",
    "target_mapping": "target_mapping",
}
OUTPUTS = {  # head -> the output that its loss is taken of
    "lm": "logits",
    "classify": "classify_logits",
    "tag": "tag_logits",
    "span": "span_logits",
    "discriminate": "discriminate_logits",
    "next_sentence": "next_sentence_logits",
}
LABELS = {"classify": 3, "tag": 5}


class Draw:
    """Sizes of one case: fixed ones for the golden files, random ones for further draws."""

    def __init__(self, seed: list[int], golden: bool):
        self.random = np.random.default_rng(seed)
        self.golden = golden
        self.num_heads = self.pick(2, 1, 4)
        self.head_dim = self.choose(8, (4, 6, 8))
        self.hidden_size = self.num_heads * self.head_dim
        self.num_layers = self.pick(2, 1, 3)
        self.num_decoder_layers = self.pick(1, 1, 3)
        self.vocab_size = self.pick(53, 40, 70)
        self.intermediate_size = self.pick(24, 20, 48)
        self.max_positions = self.pick(16, 14, 20)
        self.batch_size = self.pick(3, 2, 4)
        self.length = self.pick(11, 6, 14)
        self.decoder_length = self.pick(9, 5, 12)

    def pick(self, golden: int, low: int, high: int) -> int:
        return golden if self.golden else int(self.random.integers(low, high + 1))

    def choose(self, golden, options):
        return golden if self.golden else options[self.random.integers(len(options))]


@dataclasses.dataclass(frozen=True)
class Case:
    """One model: `config` gives the keywords of its Hugging Face configuration, `text` says how rows are made."""

    family: str
    model: str
    heads: tuple[str, ...]
    config: Callable[[Draw], dict]
    causal: bool = False
    segments: bool = False
    gradients: bool = False
    pad: int = 0  # -1: the last id of the vocabulary
    left: str = ""  # "row": the last row is padded on the left, "all": every row is
    end: int = -1  # the id that ends each row, where a head looks for it


def bert(draw: Draw) -> dict:
    return dict(
        vocab_size=draw.vocab_size,
        hidden_size=draw.hidden_size,
        num_hidden_layers=draw.num_layers,
        num_attention_heads=draw.num_heads,
        intermediate_size=draw.intermediate_size,
        max_position_embeddings=draw.max_positions,
    )


def roberta(draw: Draw) -> dict:
    special = dict(type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2, layer_norm_eps=1e-5)
    return bert(draw) | special | dict(max_position_embeddings=draw.max_positions + 2)


def electra_projected(draw: Draw) -> dict:
    return bert(draw) | dict(embedding_size=draw.pick(12, 6, 12))


def electra_plain(draw: Draw) -> dict:
    return bert(draw) | dict(embedding_size=draw.hidden_size)


def albert(draw: Draw) -> dict:
    special = dict(embedding_size=draw.pick(12, 6, 12), bos_token_id=2, eos_token_id=3)
    return bert(draw) | special


def distilbert(draw: Draw) -> dict:
    return dict(
        vocab_size=draw.vocab_size,
        dim=draw.hidden_size,
        n_layers=draw.num_layers,
        n_heads=draw.num_heads,
        hidden_dim=draw.intermediate_size,
        max_position_embeddings=draw.max_positions,
    )


def gpt2(draw: Draw) -> dict:
    return dict(
        vocab_size=draw.vocab_size,
        n_embd=draw.hidden_size,
        n_layer=draw.num_layers,
        n_head=draw.num_heads,
        n_inner=draw.choose(None, (None, 24, 40)),
        n_positions=draw.max_positions,
        bos_token_id=1,
        eos_token_id=1,
    )


def gpt2_padded(draw: Draw) -> dict:
    return gpt2(draw) | dict(pad_token_id=0)


def t5(draw: Draw) -> dict:
    # Fewer than the usual 32 and 128, so that short rows reach the buckets that share distances.
    buckets, distance = draw.choose((8, 10), ((8, 10), (8, 20), (12, 20), (16, 20), (32, 128)))
    return dict(
        vocab_size=draw.vocab_size,
        d_model=draw.hidden_size,
        d_kv=draw.choose(6, (4, 6, 10)),
        num_heads=draw.num_heads,
        num_layers=draw.num_layers,
        num_decoder_layers=draw.choose(2, (1, 2, 3)),
        d_ff=draw.intermediate_size,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=distance,
        decoder_start_token_id=0,
    )


def t5_v1_1(draw: Draw) -> dict:
    usual = dict(relative_attention_num_buckets=32, relative_attention_max_distance=128)
    special = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    return t5(draw) | usual | special | dict(num_decoder_layers=draw.num_decoder_layers)


def bart(draw: Draw) -> dict:
    return dict(
        vocab_size=draw.vocab_size,
        d_model=draw.hidden_size,
        encoder_layers=draw.num_layers,
        decoder_layers=draw.num_decoder_layers,
        encoder_attention_heads=draw.num_heads,
        decoder_attention_heads=draw.num_heads,
        encoder_ffn_dim=draw.intermediate_size,
        decoder_ffn_dim=draw.intermediate_size,
        max_position_embeddings=draw.max_positions,
    )


def mbart(draw: Draw) -> dict:
    layers = dict(encoder_layers=draw.pick(1, 1, 3))
    return bart(draw) | layers | dict(scale_embedding=True, decoder_start_token_id=2)


def marian(draw: Draw) -> dict:
    last = draw.vocab_size - 1
    return bart(draw) | dict(
        # As the published translation models have it.
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=last,
        decoder_start_token_id=last,
        eos_token_id=0,
        bos_token_id=0,
        forced_eos_token_id=0,
    )


def plbart(draw: Draw) -> dict:
    return bart(draw) | dict(scale_embedding=True, decoder_start_token_id=2)


def pegasus(draw: Draw) -> dict:
    return bart(draw) | dict(activation_function="relu", scale_embedding=True)  # As the published ones have it.


def xlnet(draw: Draw) -> dict:
    return dict(
        vocab_size=draw.vocab_size,
        d_model=draw.hidden_size,
        n_layer=draw.num_layers,
        n_head=draw.num_heads,
        d_inner=draw.intermediate_size,
    )


def xlnet_memory(draw: Draw) -> dict:
    return xlnet(draw) | dict(mem_len=draw.pick(5, 2, 7))


def reformer(draw: Draw) -> dict:
    rows = draw.pick(4, 2, 5)
    draw.length = 4 * rows
    first = draw.choose(6, (2, 4))
    return dict(
        vocab_size=draw.vocab_size,
        hidden_size=draw.hidden_size,
        num_attention_heads=draw.num_heads,
        attention_head_size=draw.choose(6, (4, 6, 10)),
        attn_layers=draw.choose(["lsh", "local", "lsh"], (["local", "lsh"], ["lsh", "lsh"], ["lsh", "local", "lsh"])),
        feed_forward_size=draw.intermediate_size,
        max_position_embeddings=draw.length,
        axial_pos_shape=[rows, 4],
        axial_pos_embds_dim=[first, draw.hidden_size - first] if draw.hidden_size > first else [2, 2],
        lsh_attn_chunk_length=draw.choose(4, (2, 4)),
        local_attn_chunk_length=draw.choose(4, (2, 4)),
        num_buckets=draw.choose(4, (2, 4, 6, [2, 4])),
        num_hashes=draw.pick(2, 1, 3),
        is_decoder=True,
        # Hugging Face takes this model's gradients in training mode only.
        hidden_dropout_prob=0.0,
        local_attention_probs_dropout_prob=0.0,
        lsh_attention_probs_dropout_prob=0.0,
    )


def reformer_masked(draw: Draw) -> dict:
    values = reformer(draw) | dict(is_decoder=False, num_buckets=draw.choose([2, 4], ([2, 4], [4, 2], 4)))
    draw.length -= draw.pick(3, 0, 3)  # Hugging Face pads to whole chunks
    both = dict(lsh_num_chunks_after=1, local_num_chunks_after=1)
    return values | both


def llama(draw: Draw) -> dict:
    groups = draw.pick(2, 1, 3)
    return bert(draw) | dict(
        hidden_size=2 * groups * draw.head_dim if not draw.golden else 16,
        num_attention_heads=2 * groups,
        num_key_value_heads=groups,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )


def rotary(rope_type: str, golden: dict, drawn: Callable[[Draw], dict], **others) -> Callable[[Draw], dict]:
    """A Llama with scaled rotary positions; a head is wider than its share, for more frequencies than two."""

    def config(draw: Draw) -> dict:
        scaling = dict(rope_type=rope_type) | (golden if draw.golden else golden | drawn(draw))
        if rope_type == "longrope":
            scaling |= {
                name: [float(value) for value in np.round(draw.random.uniform(low, high, 4), 3)]
                for name, low, high in (("short_factor", 1, 1.5), ("long_factor", 2, 8))
            }
        return llama(draw) | dict(head_dim=8, rope_parameters=scaling) | others

    return config


def mistral(draw: Draw) -> dict:
    return llama(draw) | dict(sliding_window=draw.pick(4, 1, 6))


def qwen3(draw: Draw) -> dict:
    return llama(draw) | dict(head_dim=8)


def llama_tied(draw: Draw) -> dict:
    return llama(draw) | dict(num_key_value_heads=1, tie_word_embeddings=True)


LM, PAIR, CLASSIFY, TAG, SPAN = ("lm",), ("lm", "next_sentence"), ("classify",), ("tag",), ("span",)
CASES = {
    "bert": Case("bert", "BertForPreTraining", PAIR, bert, segments=True, gradients=True),
    "bert_classify": Case("bert", "BertForSequenceClassification", CLASSIFY, bert, segments=True),
    "bert_tag": Case("bert", "BertForTokenClassification", TAG, bert, segments=True),
    "bert_span": Case("bert", "BertForQuestionAnswering", SPAN, bert, segments=True),
    "roberta": Case("roberta", "RobertaForMaskedLM", LM, roberta, gradients=True, pad=1),
    "roberta_classify": Case("roberta", "RobertaForSequenceClassification", CLASSIFY, roberta, pad=1),
    "roberta_tag": Case("roberta", "RobertaForTokenClassification", TAG, roberta, pad=1),
    "roberta_span": Case("roberta", "RobertaForQuestionAnswering", SPAN, roberta, pad=1),
    "camembert": Case("roberta", "CamembertForMaskedLM", LM, roberta, pad=1),
    "data2vec_text": Case("roberta", "Data2VecTextForSequenceClassification", CLASSIFY, roberta, pad=1),
    "ernie": Case("bert", "ErnieForPreTraining", PAIR, bert, segments=True),
    "electra_generator": Case("electra", "ElectraForMaskedLM", LM, electra_projected, segments=True, gradients=True),
    "electra_discriminator": Case(
        "electra", "ElectraForPreTraining", ("discriminate",), electra_projected, segments=True, gradients=True
    ),
    "electra_classify": Case("electra", "ElectraForSequenceClassification", CLASSIFY, electra_plain, segments=True),
    "electra_tag": Case("electra", "ElectraForTokenClassification", TAG, electra_plain, segments=True),
    "electra_span": Case("electra", "ElectraForQuestionAnswering", SPAN, electra_plain, segments=True),
    "distilbert": Case("distilbert", "DistilBertForMaskedLM", LM, distilbert, gradients=True),
    "distilbert_classify": Case("distilbert", "DistilBertForSequenceClassification", CLASSIFY, distilbert),
    "distilbert_tag": Case("distilbert", "DistilBertForTokenClassification", TAG, distilbert),
    "distilbert_span": Case("distilbert", "DistilBertForQuestionAnswering", SPAN, distilbert),
    "albert": Case("albert", "AlbertForPreTraining", PAIR, albert, segments=True, gradients=True),
    "albert_classify": Case("albert", "AlbertForSequenceClassification", CLASSIFY, albert, segments=True),
    "albert_tag": Case("albert", "AlbertForTokenClassification", TAG, albert, segments=True),
    "albert_span": Case("albert", "AlbertForQuestionAnswering", SPAN, albert, segments=True),
    "gpt2": Case("gpt2", "GPT2LMHeadModel", LM, gpt2, causal=True, gradients=True),
    "gpt2_classify": Case("gpt2", "GPT2ForSequenceClassification", CLASSIFY, gpt2_padded, causal=True),
    "t5": Case("t5", "T5ForConditionalGeneration", LM, t5, gradients=True, left="row"),
    "t5_v1_1": Case("t5", "T5ForConditionalGeneration", LM, t5_v1_1, gradients=True),
    "bart": Case("bart", "BartForConditionalGeneration", LM, bart, gradients=True, pad=1),
    "bart_classify": Case("bart", "BartForSequenceClassification", CLASSIFY, bart, pad=1, end=2),
    "mbart": Case("bart", "MBartForConditionalGeneration", LM, mbart, gradients=True, pad=1),
    "plbart": Case("bart", "PLBartForConditionalGeneration", LM, plbart, pad=1),
    "pegasus": Case("transformer", "PegasusForConditionalGeneration", LM, pegasus),
    "marian": Case("transformer", "MarianMTModel", LM, marian, gradients=True, pad=-1),
    "xlnet": Case("xlnet", "XLNetLMHeadModel", LM, xlnet, segments=True, gradients=True, pad=5, left="row"),
    "xlnet_permutation": Case("xlnet", "XLNetLMHeadModel", LM, xlnet, segments=True, gradients=True, pad=5),
    "xlnet_memory": Case("xlnet", "XLNetLMHeadModel", LM, xlnet_memory, segments=True, pad=5),
    "xlnet_classify": Case(
        "xlnet", "XLNetForSequenceClassification", CLASSIFY, xlnet, segments=True, pad=5, left="all"
    ),
    "xlnet_tag": Case("xlnet", "XLNetForTokenClassification", TAG, xlnet, segments=True, pad=5),
    "xlnet_span": Case("xlnet", "XLNetForQuestionAnsweringSimple", SPAN, xlnet, segments=True, pad=5),
    "reformer": Case("reformer", "ReformerModelWithLMHead", LM, reformer, causal=True, gradients=True),
    "reformer_masked": Case("reformer", "ReformerForMaskedLM", LM, reformer_masked),
    "llama": Case("llama", "LlamaForCausalLM", LM, llama, causal=True, gradients=True, left="row"),
    "llama_tied": Case("llama", "LlamaForCausalLM", LM, llama_tied, causal=True),
    # With four frequencies, wave lengths 6, 63, 628 and 6283: kept, in between, and divided.
    "llama3": Case(
        "llama",
        "LlamaForCausalLM",
        LM,
        rotary(
            "llama3",
            dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128),
            lambda draw: dict(
                original_max_position_embeddings=draw.pick(128, 100, 1000), factor=float(draw.pick(8, 2, 9))
            ),
            max_position_embeddings=8192,
        ),
        causal=True,
    ),
    "llama_linear": Case(
        "llama",
        "LlamaForCausalLM",
        LM,
        rotary("linear", dict(factor=2.5), lambda draw: dict(factor=float(draw.pick(2, 2, 8)))),
        causal=True,
    ),
    # A small base, so that the ramp between the kept and the divided frequencies has inner points.
    "llama_yarn": Case(
        "llama",
        "LlamaForCausalLM",
        LM,
        rotary(
            "yarn",
            dict(factor=4.0, rope_theta=10.0, original_max_position_embeddings=32),
            lambda draw: dict(rope_theta=float(draw.pick(10, 6, 40)), beta_fast=float(draw.pick(32, 3, 32))),
            max_position_embeddings=128,
        ),
        causal=True,
    ),
    # The row is longer than the positions that it was trained on, where the base begins to grow.
    "llama_dynamic": Case(
        "llama",
        "LlamaForCausalLM",
        LM,
        rotary(
            "dynamic",
            dict(factor=2.0),
            lambda draw: dict(factor=float(draw.pick(2, 2, 5))),
            max_position_embeddings=6,
        ),
        causal=True,
    ),
    "llama_longrope": Case(
        "llama",
        "LlamaForCausalLM",
        LM,
        rotary(
            "longrope",
            dict(original_max_position_embeddings=8, factor=4.0),
            lambda draw: {},
        ),
        causal=True,
    ),
    "mistral": Case("llama", "MistralForCausalLM", LM, mistral, causal=True, gradients=True),
    "qwen2": Case("llama", "Qwen2ForCausalLM", LM, llama, causal=True, gradients=True),
    "qwen3": Case("llama", "Qwen3ForCausalLM", LM, qwen3, causal=True, gradients=True),
}


def make_model(case: Case, draw: Draw, folder: pathlib.Path, seed: int):
    """Save a random model to `folder` as Hugging Face does, and return what Hugging Face loads from there."""
    torch.manual_seed(seed)
    kind = getattr(transformers, case.model)
    values = case.config(draw)
    if case.heads[0] in LABELS:
        values["num_labels"] = LABELS[case.heads[0]]
    config = kind.config_class(**values)
    model = kind(config)
    untied = case.family == "t5" and values.get("tie_word_embeddings") is False
    if untied:
        # transformers 5 ties every new T5, but loads and saves those that are not.
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        model.all_tied_weights_keys.pop("lm_head.weight")
    model.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    with torch.no_grad():
        for name in tensor_names(folder):
            if case.family == "transformer" and "embed_positions" in name:
                continue  # A table that is computed.
            parameters[name].add_(torch.randn(parameters[name].shape, generator=generator), alpha=NOISE)
    shutil.rmtree(folder)
    model.save_pretrained(folder)
    if untied:  # as the published ones say it
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}, indent=2) + "\n")
    model = kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    # Reformer marks a word that sees itself alone by a score of -1e5, where float32 has steps of 0.008, and weighs
    # the rounds of hashing by such scores: 2e-3 off in float32.
    return model.double() if case.family == "reformer" else model


def tensor_names(folder: pathlib.Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "np") as file:
        return sorted(file.keys())


def make_text(draw: Draw, length: int, case: Case, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and padding mask [B, L]: the first row is full, the others are shorter; no word has a special id."""
    lengths = [length, *(int(draw.random.integers(3, length)) for _ in range(draw.batch_size - 1))]
    mask = np.arange(length) < np.array(lengths)[:, None]
    if case.left:
        flipped = slice(None) if case.left == "all" else slice(-1, None)
        mask[flipped] = mask[flipped, ::-1]
    words = draw.random.integers(6, vocab_size - 1, mask.shape)
    if case.end >= 0:
        words[np.arange(draw.batch_size), np.array(lengths) - 1] = case.end
    return np.where(mask, words, case.pad % vocab_size).astype(np.int32), mask


def make_inputs(case: Case, name: str, draw: Draw, config) -> dict[str, np.ndarray]:
    """The model's inputs by our names; `reformer` adds its rotations as it runs, `xlnet_memory` its memory."""
    vocab = config.vocab_size
    inputs = dict(zip(("token_ids", "padding_mask"), make_text(draw, draw.length, case, vocab), strict=True))
    mask = inputs["padding_mask"]
    if case.segments:
        second = draw.random.integers(1, draw.length, (draw.batch_size, 1))
        inputs["segment_ids"] = ((np.arange(draw.length) >= second) & mask).astype(np.int32)
    if config.is_encoder_decoder and "classify" in case.heads:
        # The decoder reads the same text, moved on by one behind the start token.
        start = np.full((draw.batch_size, 1), config.decoder_start_token_id, np.int32)
        inputs["decoder_token_ids"] = np.concatenate([start, inputs["token_ids"][:, :-1]], 1)
        inputs["decoder_padding_mask"] = mask
    elif config.is_encoder_decoder:
        plain = dataclasses.replace(case, left="")
        tokens, inputs["decoder_padding_mask"] = make_text(draw, draw.decoder_length, plain, vocab)
        tokens[:, 0] = config.decoder_start_token_id
        inputs["decoder_token_ids"] = tokens
    if name == "xlnet_permutation":
        # Position i may see j where j comes earlier in a random order.
        order = np.argsort(np.argsort(draw.random.random(mask.shape), axis=1), axis=1)
        inputs["permutation_mask"] = order[:, None, :] < order[:, :, None]
        # The last two words of the order are foretold: one that sees nothing would have no meaning.
        last = np.argsort(np.where(mask, order, -1), axis=1)[:, -2:]
        inputs["target_mapping"] = np.eye(draw.length, dtype=np.float32)[last]
    return inputs


def make_target(case: Case, draw: Draw, inputs: dict, vocab_size: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The target as it lies beside the logits, -100 where none is meant, and the same as Hugging Face takes it."""
    head, mask = case.heads[0], inputs["padding_mask"]
    if head == "classify":
        target = draw.random.integers(0, LABELS[head], len(mask))
    elif head == "tag":
        target = np.where(mask, draw.random.integers(0, LABELS[head], mask.shape), -100)
    elif head == "span":
        target = np.sort([draw.random.choice(np.flatnonzero(row), 2) for row in mask])
        return target, dict(start_positions=target[:, 0], end_positions=target[:, 1])
    elif head == "discriminate":
        target = np.where(mask, draw.random.integers(0, 2, mask.shape), -100)
        return target, dict(labels=np.maximum(target, 0))
    elif case.causal:
        labels = np.where(mask, inputs["token_ids"], -100)
        labels[:, 1:][~mask[:, :-1]] = -100  # nothing foretells the first word of a row padded on the left
        target = np.concatenate([labels[:, 1:], np.full((len(labels), 1), -100)], 1)
        return target, dict(labels=labels)
    elif "target_mapping" in inputs:
        target = draw.random.integers(6, vocab_size, inputs["target_mapping"].shape[:2])
    elif "decoder_padding_mask" in inputs:
        mask = inputs["decoder_padding_mask"]
        target = np.where(mask, draw.random.integers(6, vocab_size, mask.shape), -100)
    else:
        chosen = mask & (draw.random.random(mask.shape) < 0.3)
        chosen[0, :2] = True
        target = np.where(chosen, draw.random.integers(6, vocab_size, mask.shape), -100)
    return target, dict(labels=target)


def loss_of(head: str, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss as README.md defines it, to hold Hugging Face's own against."""
    if head == "discriminate":
        real = target >= 0
        return functional.binary_cross_entropy_with_logits(output[real], target[real].float())
    if head == "span":
        start, end = (functional.cross_entropy(output[..., i], target[:, i]) for i in range(2))
        return (start + end) / 2
    return functional.cross_entropy(output.flatten(0, -2), target.flatten(), ignore_index=-100)


class Rotations:
    """Gives LSH attention random rotations of our own, and keeps them in the order of the layers.

    A rotation for which two buckets are all but equally near some word is drawn again: rounding would decide.
    """

    def __init__(self, draw: Draw | None, given: Sequence[np.ndarray] = ()):
        self.draw, self.given = draw, list(given)
        self.kept: dict[LSHSelfAttention, torch.Tensor] = {}

    def patch(self):
        original, rotations = LSHSelfAttention._hash_vectors, self

        def hash_vectors(layer, vectors, *args, **kwargs):
            def randn(shape, **others):
                if layer not in rotations.kept and rotations.given:
                    rotations.kept[layer] = torch.from_numpy(rotations.given.pop(0))
                if layer not in rotations.kept:
                    rotations.kept[layer] = rotations.clear(vectors, layer.num_buckets, shape)
                return rotations.kept[layer].to(vectors.dtype)

            with mock.patch.object(torch, "randn", randn):
                return original(layer, vectors, *args, **kwargs)

        return mock.patch.object(LSHSelfAttention, "_hash_vectors", hash_vectors)

    def clear(self, vectors: torch.Tensor, num_buckets: int | list[int], shape: tuple[int, ...]) -> torch.Tensor:
        factors = [num_buckets] if isinstance(num_buckets, int) else list(num_buckets)
        assert self.draw is not None
        while True:
            drawn = torch.from_numpy(self.draw.random.standard_normal(shape, np.float32))
            rotated = torch.einsum("bmtd,mdhr->bmhtr", vectors.detach(), drawn.to(vectors.dtype))
            parts = rotated.split([factor // 2 for factor in factors], dim=-1)
            best = [torch.cat([part, -part], -1).topk(2).values for part in parts]
            if min((two[..., 0] - two[..., 1]).min() for two in best) > 1e-3:
                return drawn


def answer(case: Case, model, inputs: dict, labels: dict) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Hugging Face's outputs by our names, and its loss if it has one of its own."""
    seen = {}

    def hook(key):
        def keep(module, args, output):
            seen[key] = output

        return keep

    if model.config.is_encoder_decoder:
        parts = {"sequence": model.base_model.decoder, "memory": model.base_model.encoder}
    else:
        parts = {"sequence": model.base_model}
    hooks = [part.register_forward_hook(hook(key)) for key, part in parts.items()]
    arguments = {ARGUMENTS[key]: tensor(value) for key, value in inputs.items() if key in ARGUMENTS}
    if "permutation_mask" in inputs:
        arguments["perm_mask"] = tensor(~inputs["permutation_mask"])
    memory = [tensor(value).transpose(0, 1) for value in inputs.get("previous_sequence", ())]
    if memory:
        arguments["mems"] = memory
    if case.family == "xlnet":
        arguments["output_hidden_states"] = True
    if "attention_mask" in arguments and case.family == "xlnet":
        arguments["attention_mask"] = arguments["attention_mask"].float()
    if "labels" in labels and case.model == "ElectraForPreTraining":
        labels = dict(labels=labels["labels"].astype(np.float32))
    pretraining = "next_sentence" in case.heads and len(case.heads) > 1
    out = model(**arguments, **({} if pretraining else {key: tensor(value) for key, value in labels.items()}))
    for handle in hooks:
        handle.remove()
    outputs = {key: value[0] for key, value in seen.items()}
    if getattr(seen["sequence"], "pooler_output", None) is not None:
        outputs["pooled"] = seen["sequence"].pooler_output
    if "target_mapping" in inputs:  # ends with the two streams of the last layer
        outputs["sequence"], outputs["query_sequence"] = out.hidden_states[-2:]
    if memory:
        outputs["previous_sequence"] = torch.stack([value.transpose(0, 1) for value in out.mems])
    if pretraining:
        outputs["logits"] = out.prediction_logits
        outputs["next_sentence_logits"] = out.get("seq_relationship_logits", out.get("sop_logits"))
        return outputs, None
    if "span" in case.heads:
        outputs["span_logits"] = torch.stack([out.start_logits, out.end_logits], -1)
    elif case.heads:
        outputs[OUTPUTS[case.heads[0]]] = out.logits
    return outputs, out.get("loss")


def tensor(value: np.ndarray) -> torch.Tensor:
    """Integers and booleans as Hugging Face takes them."""
    return torch.from_numpy(np.ascontiguousarray(value if value.dtype == np.float32 else value.astype(np.int64)))


def array(value: torch.Tensor) -> np.ndarray:
    return np.array(value.detach().float().numpy(), order="C")


def make_case(name: str, folder: pathlib.Path, seed: int, draw_index: int | None) -> None:
    """Write one case; `draw_index` None: with the golden sizes."""
    case = CASES[name]
    golden = draw_index is None
    seeds = [seed, zlib.crc32(name.encode()), draw_index or 0]
    draw = Draw([*seeds, int(golden)], golden)
    if folder.exists():
        shutil.rmtree(folder)
    model = make_model(case, draw, folder, int(draw.random.integers(2**31)))
    for module in model.modules():
        # Torch leaves the padding id's row out of the gradient even where it is a word, as a decoder's start can be.
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    if case.family == "reformer":
        # transformers 4 added this bias to the logits; 5 reads and writes it, and leaves it out.
        model.lm_head.decoder.bias = model.lm_head.bias
    inputs = make_inputs(case, name, draw, model.config)
    if name == "xlnet_memory":
        before, _ = make_text(draw, draw.length, dataclasses.replace(case, left="all"), model.config.vocab_size)
        with torch.no_grad():
            memory = model(input_ids=tensor(before), use_mems=True).mems
        inputs["previous_sequence"] = array(torch.stack([value.transpose(0, 1) for value in memory]))
    target, labels = make_target(case, draw, inputs, model.config.vocab_size)
    rotations = Rotations(draw)
    gradients = case.gradients or not (golden or name == "reformer_masked")
    model.train(case.family == "reformer" and gradients)  # without dropout: see reformer()
    with rotations.patch(), torch.set_grad_enabled(gradients):
        outputs, loss = answer(case, model, inputs, labels)
        head = case.heads[0]
        formula = loss_of(head, outputs[OUTPUTS[head]], tensor(target))
        loss = formula if loss is None else loss
        if gradients:
            loss.backward()
    torch.testing.assert_close(loss, formula, rtol=1e-5, atol=1e-6, check_dtype=False)
    inputs |= {f"rotations.{i}": array(value) for i, value in enumerate(rotations.kept.values())}
    arrays = {f"input.{key}": value for key, value in inputs.items()}
    arrays |= {f"output.{key}": array(value) for key, value in outputs.items()}
    arrays |= {"target": target.astype(np.int32), "loss": array(loss)}
    if gradients:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for key in tensor_names(folder):
            if key in parameters:  # buffers have none
                value = parameters[key]
                arrays[f"gradient.{key}"] = array(torch.zeros_like(value) if value.grad is None else value.grad)
    for key, value in arrays.items():
        if not np.all(np.isfinite(value)):
            raise SystemExit(f"{name}: {key} is not finite")
    np.savez_compressed(folder / "golden.npz", allow_pickle=False, **arrays)
    kind = {"discriminate": "binary", "span": "span"}.get(head, "cross_entropy")
    about = dict(family=case.family, heads=case.heads, loss=dict(output=OUTPUTS[head], kind=kind))
    (folder / "case.json").write_text(json.dumps(about, indent=2) + "\n")


def check(case: pathlib.Path) -> float:
    """Load what our side wrote of a case; the largest difference of its outputs, divided by max(1, max|reference|).

    Raises:
      AssertionError: a tensor is missing, unknown or of another shape, or the config could not serve.
    """
    about = json.loads((case / "case.json").read_text())
    folder, golden = case / "saved", dict(np.load(case / "golden.npz"))
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, found = getattr(transformers, name).from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    for what, keys in found.items():
        # Without a head, Hugging Face writes Marian's sinusoids, which it makes itself where they are not there.
        keys = {key for key in keys if not (name == "MarianModel" and "embed_positions" in key)}
        assert not keys, f"{what}: {keys}"
    check_config(model.config)
    if about["family"] == "reformer":
        model = model.double()
        if hasattr(model, "lm_head"):
            model.lm_head.decoder.bias = model.lm_head.bias  # See make_case.
    inputs = {key.removeprefix("input."): value for key, value in golden.items() if key.startswith("input.")}
    drawn = [inputs[f"rotations.{i}"] for i in range(sum(key.startswith("rotations.") for key in inputs))]
    with Rotations(None, drawn).patch(), torch.no_grad():
        outputs, _ = answer(Case(about["family"], name, tuple(about["heads"]), bert), model.eval(), inputs, {})
    expected = {key.removeprefix("output."): value for key, value in golden.items() if key.startswith("output.")}
    assert expected.keys() <= outputs.keys(), f"no {expected.keys() - outputs.keys()}"
    return max(difference(*real(key, array(outputs[key]), value, inputs)) for key, value in expected.items())


def check_config(config) -> None:
    """Ids that generation and training read must be words, or not be there."""
    for name in ("pad", "bos", "eos", "decoder_start", "forced_eos"):
        value = getattr(config, f"{name}_token_id", None)
        assert value is None or 0 <= value < config.vocab_size, f"{name}_token_id is {value} of {config.vocab_size}"
    if config.is_encoder_decoder:
        assert config.decoder_start_token_id is not None, "decoder_start_token_id is missing"


def difference(theirs: np.ndarray, expected: np.ndarray) -> float:
    assert theirs.shape == expected.shape, f"shapes {theirs.shape} and {expected.shape}"
    return float(np.max(np.abs(theirs - expected)) / max(1.0, np.max(np.abs(expected))))


def real(name: str, theirs: np.ndarray, expected: np.ndarray, inputs: dict) -> tuple[np.ndarray, np.ndarray]:
    """What stands at real tokens."""
    decoder = "decoder_padding_mask" in inputs and name != "memory"
    mask = inputs.get("decoder_padding_mask" if decoder else "padding_mask")
    if mask is None or expected.shape[:2] != mask.shape or theirs.shape != expected.shape:
        return theirs, expected
    return theirs[mask], expected[mask]


def check_all(folder: pathlib.Path) -> None:
    """Check every case of a folder, print each family's worst, and exit with 1 where one fails."""
    worst: dict[tuple[str, str], list[float]] = {}
    failed = []
    cases = sorted(path.parent for path in folder.rglob("case.json"))
    if not cases:
        raise SystemExit(f"no cases in {folder}")
    for case in cases:
        about = json.loads((case / "case.json").read_text())
        try:
            value = check(case)
        except Exception as error:  # Whatever one case meets, the others are checked.
            failed.append(f"{case}: {type(error).__name__}: {error}")
            continue
        # A case's own weights came back bit by bit; what was made on our side also ran on our side.
        what, allowed = ("made by tfzoo", 1e-5) if about.get("fresh") else ("written back", 1e-6)
        worst.setdefault((about["family"], what), []).append(value)
        if not value <= allowed:
            failed.append(f"{case}: differs by {value:.1e}")
    print("| family | loaded by Hugging Face | models | outputs |", "|---|---|---:|---:|", sep="\n")
    print(*(f"| {' | '.join(key)} | {len(all_)} | {max(all_):.1e} |" for key, all_ in sorted(worst.items())), sep="\n")
    print(*failed, f"{len(failed)} of {len(cases)} failed", sep="\n")
    if failed:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=pathlib.Path, help="the folder that gets one folder a case")
    what.add_argument("--check", type=pathlib.Path, help="the folder whose cases tests/parity.py has written back")
    parser.add_argument("--cases", default="", help="only those whose names begin so, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=1, help="more than one: each case so often, at random sizes")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # the order of sums, and so the last bit, would hang on the number of threads
    if options.check:
        check_all(options.check)
        return
    names = [name for name in CASES if name.startswith(tuple(options.cases.split(",")))]
    if not names:
        parser.error(f"--cases={options.cases} names none of {', '.join(CASES)}")
    for name in names:
        for index in range(options.draws):
            single = options.draws == 1
            folder = options.output / name if single else options.output / name / str(index)
            make_case(name, folder, options.seed, None if single else index)
        size = sum(path.stat().st_size for path in (options.output / name).rglob("*") if path.is_file())
        print(f"{name}: {size / 1024:.0f} KB", flush=True)


if __name__ == "__main__":
    main()
