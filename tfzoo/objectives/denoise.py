"""The objective of BART: a text is corrupted and must be restored (Lewis et al. 2020, section 2.2)."""

import dataclasses
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data.packing import PackedRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError
from tfzoo.objectives import shared
from tfzoo.objectives.objective import GROUP, MeanSpanOption, PackOption
from tfzoo.options import option
from tfzoo.text import framing

tf = lazy.module("tensorflow")

INFILLING, MASKING, DELETION, NONE = "infilling", "masking", "deletion", "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(MeanSpanOption, PackOption):
    """The flags of denoising."""

    token_noise: str = option(
        INFILLING,
        "What happens to the corrupted tokens: each span of them becomes one mask token (infilling), each of them "
        "becomes one (masking), or they are deleted.",
        group=GROUP,
        choices=(INFILLING, MASKING, DELETION, NONE),
    )
    noise_rate: float = option(
        0.3, "Fraction of the tokens to corrupt, except with --token_noise=none.", group=GROUP, low=0.01, high=0.9
    )
    permute_sentences: bool = option(
        True, "Put the sentences of each document in random order.", group=GROUP, decides_rows=True
    )
    rotate_documents: bool = option(
        False, "Let each document begin with a random one of its tokens; those before it follow its end.", group=GROUP
    )


class Denoise(shared.TokenTargets):
    """Permutes the sentences, then replaces 30% of the tokens, in spans, with masks; the decoder restores the original.

    In a document of n tokens, round(0.3 n) are corrupted, at least 1. Lengths of spans are drawn from a Poisson
    distribution with a mean of 3 until the spans contain so many tokens; the last span is shortened to fit, and there
    are at most as many spans as corrupted tokens, so that no text becomes longer. The spans are distributed over the
    document uniformly at random, and each becomes one mask token. A span of length 0 inserts a mask token.
    With --token_noise=masking each corrupted token becomes a mask token, and with deletion it is removed without a
    trace (the only token of a document is not). Rotation comes last.

    The paper corrupts 30% of the tokens by infilling and permutes all sentences (section 5.1). The authors' command
    line (https://github.com/facebookresearch/fairseq/issues/1899) has a mean of 3.5 and replaces one mask token in ten
    with a random token.

    In a packed row, each document is corrupted separately. A tokenizer with cls and sep tokens frames a document as
    BART does, <s> ... </s>, and the decoder starts with </s>; otherwise, a document ends with the end-of-text token and
    the decoder starts with padding. The metrics count only the corrupted tokens: the others can be copied.

    Worked example, figure 2 of the paper, with A B C D E as 10 to 14, "." 15, <s> 2, </s> 3 and the mask token 4. The
    document "A B C . D E ." becomes, by each kind of noise alone,

        masking      A _ C . _ E .    [2, 10, 4, 12, 15, 4, 14, 15, 3]
        permutation  D E . A B C .    [2, 13, 14, 15, 10, 11, 12, 15, 3]
        rotation     C . D E . A B    [2, 12, 15, 13, 14, 15, 10, 11, 3]
        deletion     A C . E .        [2, 10, 12, 15, 14, 15, 3], where B and D are deleted
        infilling    A _ . D _ E .    [2, 10, 4, 15, 13, 4, 14, 15, 3], where the second span is empty

    with the same decoder inputs and targets:

        decoder_token_ids  [3, 2, 10, 11, 12, 15, 13, 14, 15]
        targets            [2, 10, 11, 12, 15, 13, 14, 15, 3]

    padded to sequence_length.
    """

    name = PREFIX = "denoise"
    Options = Options
    best_metric = ("denoise_loss", "min")
    MODEL_KIND = ("encoder_decoder", "bart_base or transformer_base")
    FIGURES = (
        ("corrupted-token accuracy", "denoise_accuracy", "{:.2%}"),
        ("perplexity", "denoise_perplexity", "{:.2f}"),
    )

    def __init__(self, tokenizer, sequence_length: int, **options):
        """Creates the objective.

        Raises:
          UserError: the tokenizer lacks a required special token.
        """
        super().__init__(tokenizer, sequence_length, **options)
        self._start, self._begin, self._end = framing.encoder_decoder_ends(tokenizer)
        self._mask: Any = getattr(tokenizer, "mask_id", None)
        self._pad: Any = getattr(tokenizer, "pad_id", None)
        noise = self.options.token_noise
        required = {"pad": self._pad, "sep or eos": self._end}
        required |= {"mask": self._mask} if noise in (INFILLING, MASKING) else {}
        if missing := [role for role, token in required.items() if token is None]:
            raise UserError(
                f"{type(tokenizer).__name__}: denoising requires a tokenizer with mask, pad and sep or eos tokens, but "
                f"this one has no token for {', '.join(missing)}; use a WordPiece tokenizer, or that of a BART model"
            )
        self._lengths = tf.constant(_poisson(self.options.mean_span), tf.float32)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the model that this objective provides."""
        packed = ("document_ids", "position_ids", "decoder_document_ids", "decoder_position_ids")
        return ("token_ids", "padding_mask", "decoder_token_ids", *(packed if self.options.pack else ()))

    @property
    def row_tokens(self) -> int:
        """The number of text tokens of one document that fit into a row."""
        return self._length - 1 - (self._begin is not None)

    def rows(self, corpus: TokenizedCorpus) -> PackedRows:
        """Returns the rows from which `prepare` takes its examples. No corrupted text is longer than its original."""
        extra = self._length - self.row_tokens
        options = self.options
        return PackedRows(corpus, self._length, extra, pack=options.pack, sentences=options.permute_sentences)

    def measured(self, batch):
        """Returns the weights of the targets in metrics and baselines: only corrupted tokens, or all tokens of the text
        if the order alone is corrupted."""
        return batch["corrupted"]

    def prepare(self, example):
        """Converts one example of PackedRows to features with static shapes (L is sequence_length).

        Returns:
          token_ids int32 [L], padding_mask bool [L], decoder_token_ids, targets int32 [L], target_weights float32 [L];
          with `pack` also document_ids, position_ids, decoder_document_ids, decoder_position_ids int32 [L]. corrupted
          float32 [L] is 1 for the targets that metrics count.
        """
        token_ids, document_ids, seed = example["token_ids"], example["document_ids"], example["seed"]
        order = tf.range(tf.size(token_ids))
        if self.options.permute_sentences:
            order = draw_order(document_ids, example["sentence_ids"], shared.fold(seed, 0))
        spans = self.draw(document_ids, shared.fold(seed, 1))
        firsts = None
        if self.options.rotate_documents:
            firsts = tf.random.stateless_uniform([tf.size(document_ids)], shared.fold(seed, 2))
        return self.corrupt(token_ids, document_ids, order, spans, firsts)

    def draw(self, document_ids, seed):
        """Divides documents, int32 [N], into M pieces: spans to be corrupted, and single tokens to be kept.

        Returns:
          is_span bool [M]; lengths int32 [M], the number of tokens of each piece; documents int32 [M].
        """
        sizes = shared.document_sizes(document_ids)
        numbers = tf.range(1, tf.size(sizes) + 1)
        if self.options.token_noise == NONE:
            return tf.zeros_like(document_ids, tf.bool), tf.ones_like(document_ids), document_ids
        wanted = tf.cast(tf.round(self.options.noise_rate * tf.cast(sizes, tf.float32)), tf.int32)
        wanted = tf.minimum(tf.maximum(wanted, 1), sizes)
        if self.options.token_noise != INFILLING:
            if self.options.token_noise == DELETION:
                wanted = tf.minimum(wanted, sizes - 1)
            scores = tf.random.stateless_uniform([tf.size(document_ids)], shared.fold(seed, 0))
            return shared.draw(scores, document_ids, wanted), tf.ones_like(document_ids), document_ids
        # One span per corrupted token is enough. Those that begin after the last corrupted token are dropped.
        documents = tf.repeat(numbers, wanted)
        drawn = tf.random.stateless_uniform([tf.size(documents)], shared.fold(seed, 0))
        lengths = tf.searchsorted(self._lengths, drawn, side="right")
        before = tf.cumsum(lengths, exclusive=True)
        position, budget = shared.positions_in(documents), tf.gather(wanted, documents - 1)
        left = budget - (before - tf.gather(before, tf.range(tf.size(documents)) - position))
        lengths = tf.where(position == budget - 1, left, tf.minimum(lengths, left))
        lengths, documents = (tf.boolean_mask(x, left > 0) for x in (lengths, documents))
        # Spans and kept tokens in random order; which of the kept tokens comes first makes no difference.
        kept = tf.repeat(numbers, sizes - wanted)
        is_span = tf.concat([tf.ones_like(lengths), tf.zeros_like(kept)], 0) > 0
        lengths, documents = tf.concat([lengths, tf.ones_like(kept)], 0), tf.concat([documents, kept], 0)
        scores = tf.random.stateless_uniform([tf.size(documents)], shared.fold(seed, 1))
        order = shared.order_by_score(scores, documents)
        return tuple(tf.gather(x, order) for x in (is_span, lengths, documents))

    def corrupt(self, token_ids, document_ids, order, spans, firsts=None):
        """Returns the features of `prepare`.

        Args:
          token_ids, document_ids: int32 [N].
          order: int32 [N], the permuted tokens, document by document.
          spans: the result of `draw` for the permuted tokens.
          firsts: float [N or more] in [0, 1) for each document: the place of the token with which it begins, as a
            fraction of its corrupted length; None means its first token.
        """
        is_span, lengths, documents = spans
        permuted = tf.gather(token_ids, order)
        # An empty span may be after the last token.
        places = tf.minimum(tf.cumsum(lengths, exclusive=True), tf.size(token_ids) - 1)
        inputs = tf.gather(permuted, places)
        if self.options.token_noise == DELETION:
            inputs, documents = (tf.boolean_mask(x, ~is_span) for x in (inputs, documents))
        elif self._mask is not None:
            inputs = tf.where(is_span, self._mask, inputs)
        if firsts is not None:
            inputs = tf.gather(inputs, _rotated(documents, firsts))
        corrupted = tf.scatter_nd(order[:, None], tf.repeat(tf.cast(is_span, tf.int32), lengths), [tf.size(token_ids)])
        if self.options.token_noise == NONE:
            corrupted = tf.ones_like(token_ids)

        ends = dict(first_id=self._begin, last_id=self._end)
        inputs, documents = shared.frame(inputs, documents, **ends)
        targets, target_documents = shared.frame(token_ids, document_ids, **ends)
        lengths = self._length, self._length
        features = shared.encoder_decoder_features(
            inputs, documents, targets, target_documents, lengths, self._pad, self.options.pack, self._start
        )
        no_text = dict(first_id=None if self._begin is None else 0, last_id=0)
        corrupted, _ = shared.frame(corrupted, document_ids, **no_text)
        return features | {"corrupted": shared.pad(tf.cast(corrupted, tf.float32), self._length, 0.0)}


def draw_order(document_ids, sentence_ids, seed):
    """Returns the tokens of documents with sentences in random order: int32 [N] each -> indices [N]."""
    scores = tf.random.stateless_uniform([tf.size(sentence_ids)], seed)
    # The tokens of a sentence have the same score, and sorting is stable.
    return shared.order_by_score(tf.gather(scores, sentence_ids - 1), document_ids)


def _rotated(document_ids, firsts):
    """Returns the tokens of documents, int32 [N], in rotated order, indices [N]; `firsts` as in Denoise.corrupt."""
    sizes = shared.document_sizes(document_ids)
    begins = tf.cast(firsts[: tf.size(sizes)] * tf.cast(sizes, tf.float32), tf.int32)
    position = shared.positions_in(document_ids)
    size, begin = (tf.gather(x, document_ids - 1) for x in (sizes, begins))
    return tf.range(tf.size(document_ids)) - position + (position + begin) % size


def _poisson(mean: float) -> np.ndarray:
    """Returns the cumulative distribution of a Poisson distribution, for 0, 1, ... up to where the rest is negligible.

    A random number in [0, 1) is below the element of the value that it draws, and not below the one before.
    """
    counts = np.arange(1, int(mean + 12 * np.sqrt(mean)) + 12)
    logarithms = np.concatenate([[0], np.cumsum(np.log(mean / counts))]) - mean
    return np.cumsum(np.exp(logarithms))
