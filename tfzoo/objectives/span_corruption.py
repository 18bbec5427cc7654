"""T5's objective: spans of text are taken out, and to be told (Raffel et al. 2020, section 3.1.4)."""

import dataclasses
import types

import numpy as np

from tfzoo import lazy
from tfzoo.data.packing import PackedRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError
from tfzoo.objectives import shared
from tfzoo.objectives.objective import GROUP, MaskRateOption, PackOption
from tfzoo.options import option

tf = lazy.module("tensorflow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(MaskRateOption, PackOption):
    mean_span: float = option(
        3.0, "Mean length of a corrupted span, in tokens.", group=GROUP, low=1.0, decides_rows=True
    )


class SpanCorruption(shared.TokenTargets):
    """Replaces spans, 15% of the tokens and 3 long on average, by sentinels; the targets are sentinels and spans.

    Of a document of n tokens round(0.15 n) are noise, at least one and at most n - 1, in round(noise / 3) spans, at
    least one. How noise and the rest are cut into as many parts each is drawn uniformly; the parts alternate, and the
    last is noise. (Of one token none is noise.) Numbers and draw are those of the t5 library's
    `random_spans_noise_mask`. </s> closes inputs and targets. Packed in a row, each document is corrupted by itself,
    its sentinels numbered from the first. The decoder's inputs are the targets, shifted, after the padding's id.

    Worked example, figure 2 of the paper, with the words numbered from 10 on, sentinels 99, 98, 97 and </s> 1.
    "Thank you for inviting me to your party last week", with "for inviting" and "last" taken out,

        token_ids  [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
        noise      [ 0,  0,  1,  1,  0,  0,  0,  0,  1,  0]

    becomes "Thank you <X> me to your party <Y> week" and "<X> for inviting <Y> last <Z>":

        token_ids          [10, 11, 99, 14, 15, 16, 17, 98, 19, 1]
        targets            [99, 12, 13, 98, 18, 97, 1]
        decoder_token_ids  [0, 99, 12, 13, 98, 18, 97]

    padded to sequence_length and target_length.
    """

    name, PREFIX = "span_corruption", "span"
    Options = Options
    best_metric = ("span_loss", "min")
    PACKED = types.MappingProxyType({"pack": True})
    MODEL_KIND = ("encoder_decoder", "t5_small or bart_base")
    # Of the spans' own tokens. The others, sentinels and </s>, need no understanding, and are a third of the targets.
    FIGURES = (("span-token accuracy", "span_accuracy", "{:.2%}"), ("perplexity", "span_perplexity", "{:.2f}"))

    def __init__(self, tokenizer, sequence_length: int, *, target_length: int | None = None, **options):
        """target_length: tokens of the decoder's rows; None is what a document that fills a row needs. Many short
        documents in one row need more.

        Raises:
          UserError: the tokenizer has no sentinels, too few for such rows, or no </s> or padding.
        """
        super().__init__(tokenizer, sequence_length, **options)
        noise_density, mean_span_length = self.options.mask_rate, self.options.mean_span
        sentinels = list(getattr(tokenizer, "sentinel_ids", []))
        eos, pad_id = (getattr(tokenizer, name, None) for name in ("eos_id", "pad_id"))
        if not sentinels or eos is None or pad_id is None:
            raise UserError(
                f"{type(tokenizer).__name__}: span corruption requires a tokenizer with sentinel, padding and "
                "end-of-text tokens; use a SentencePiece tokenizer of kind t5"
            )
        self._eos, self._pad = eos, pad_id
        # How many tokens of a document of n are noise, in how many spans, for every n up to one that would not fit.
        # Two tokens are the least that has noise; of one, the second is then left out.
        sizes = np.maximum(np.arange(int(sequence_length / (1 - noise_density)) + 2 * sequence_length + 2), 2)
        noise = np.clip(np.round(sizes * noise_density).astype(np.int64), 1, sizes - 1)
        spans = np.clip(np.round(noise / mean_span_length).astype(np.int64), 1, np.minimum(noise, sizes - noise))
        input_lengths, target_lengths = sizes - noise + spans + 1, noise + spans + 1
        input_lengths[:2], target_lengths[:2] = [1, 2], [1, 2]  # Of one token: itself, and a sentinel for all of it.
        fits = input_lengths <= sequence_length
        if target_length is not None:
            fits &= target_lengths <= target_length
        self._row_tokens = int(np.argmin(fits)) - 1
        if self._row_tokens < 1:
            raise UserError(
                f"sequence_length {sequence_length}, target_length {target_length}: too short for a single token; "
                "increase them"
            )
        self._target_length = int(target_lengths[self._row_tokens]) if target_length is None else target_length
        self._noise, self._spans = (tf.constant(x[: self._row_tokens + 1], tf.int32) for x in (noise, spans))
        self._input_lengths, self._target_lengths = input_lengths, target_lengths
        if spans[self._row_tokens] > len(sentinels):
            raise UserError(
                f"sequence_length {sequence_length}: rows contain up to {spans[self._row_tokens]} spans, more than "
                f"the tokenizer's {len(sentinels)} sentinels; use shorter rows or longer spans"
            )
        self._sentinels = tf.constant(sentinels, tf.int32)
        self._is_text = tf.constant(
            np.isin(np.arange(tokenizer.vocab_size), [*sentinels, eos], invert=True), tf.float32
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The model's inputs that are fed."""
        packed = ("document_ids", "position_ids", "decoder_document_ids", "decoder_position_ids")
        return ("token_ids", "padding_mask", "decoder_token_ids", *(packed if self.options.pack else ()))

    @property
    def row_tokens(self) -> int:
        """How many tokens, before they are corrupted, a document has that fills a row exactly."""
        return self._row_tokens

    @property
    def target_length(self) -> int:
        """How many tokens the decoder's rows have."""
        return self._target_length

    def rows(self, corpus: TokenizedCorpus) -> PackedRows:
        """What `prepare` takes its examples from: the documents of a row fit in both its lengths when corrupted."""

        def grown(sizes):  # By sentinels and </s>, less the noise.
            return self._input_lengths[sizes] - sizes

        also = [(self._target_length, lambda sizes: self._target_lengths[sizes])]
        return PackedRows(corpus, self._length, grown, longest=self._row_tokens, also=also, pack=self.options.pack)

    def measured(self, batch):
        return batch["target_weights"] * tf.gather(self._is_text, batch["targets"])

    def prepare(self, example):
        """One example of PackedRows -> features with static shapes (L sequence_length, T target_length).

        token_ids int32 [L], padding_mask bool [L], decoder_token_ids, targets int32 [T], target_weights float32 [T];
        packed, document_ids, position_ids int32 [L], decoder_document_ids, decoder_position_ids int32 [T] too.
        """
        token_ids, document_ids = example["token_ids"], example["document_ids"]
        return self.corrupt(token_ids, document_ids, self.draw(document_ids, example["seed"]))

    def draw(self, document_ids, seed):
        """document_ids int32 [N] -> which tokens are noise, bool [N]."""
        sizes = shared.document_sizes(document_ids)
        noise, spans = tf.gather(self._noise, sizes), tf.gather(self._spans, sizes)
        drawn = tf.maximum(sizes, 2)
        runs = [_random_parts(counts, spans, shared.fold(seed, i)) for i, counts in enumerate((drawn - noise, noise))]
        is_noise = tf.repeat(tf.tile([False, True], [tf.size(runs[0])]), tf.reshape(tf.stack(runs, 1), [-1]))
        # Of documents of one token the second place was only there for the draw.
        drawn_documents = tf.repeat(tf.range(1, tf.size(sizes) + 1), drawn)
        return tf.boolean_mask(is_noise, shared.positions_in(drawn_documents) < tf.gather(sizes, drawn_documents - 1))

    def corrupt(self, token_ids, document_ids, noise):
        """token_ids, document_ids int32 [N], noise bool [N], where no document begins with noise -> as `prepare`."""
        noise = tf.cast(noise, tf.int32)
        # The end of a text, which each document gets now, is neither noise nor, in the targets, the rest.
        tokens, documents = shared.frame(token_ids, document_ids, last_id=self._eos)
        noise, _ = shared.frame(noise, document_ids, last_id=-1)
        inputs, input_documents = self._replace(tokens, documents, noise == 1)
        targets, target_documents = self._replace(tokens, documents, noise == 0)
        target_positions = shared.positions_in(target_documents)
        shifted = tf.where(target_positions == 0, self._pad, tf.concat([[self._pad], targets], 0)[:-1])

        length, target_length = self._length, self._target_length
        features = {
            "token_ids": shared.pad(inputs, length, self._pad),
            "padding_mask": tf.range(length) < tf.size(inputs),
            "decoder_token_ids": shared.pad(shifted, target_length, self._pad),
            "targets": shared.pad(targets, target_length, self._pad),
            "target_weights": shared.pad(tf.ones_like(targets, tf.float32), target_length, 0.0),
        }
        if self.options.pack:
            features |= {
                "document_ids": shared.pad(input_documents, length, 0),
                "position_ids": shared.pad(shared.positions_in(input_documents), length, 0),
                "decoder_document_ids": shared.pad(target_documents, target_length, 0),
                "decoder_position_ids": shared.pad(target_positions, target_length, 0),
            }
        return features

    def _replace(self, tokens, documents, replaced):
        """Tokens and documents with each run of `replaced` as one sentinel, numbered within its document."""
        goes_on = tf.concat([[False], (documents[1:] == documents[:-1]) & replaced[:-1]], 0)[: tf.size(documents)]
        begins = tf.cast(replaced & ~goes_on, tf.int32)
        runs = tf.math.segment_sum(begins, documents)[1:]  # In each document; there is no document 0.
        number = tf.cumsum(begins) - 1 - tf.gather(tf.cumsum(runs, exclusive=True), documents - 1)
        tokens = tf.where(begins > 0, tf.gather(self._sentinels, tf.maximum(number, 0)), tokens)
        kept = ~(replaced & goes_on)
        return tf.boolean_mask(tokens, kept), tf.boolean_mask(documents, kept)


def _random_parts(counts, parts, seed):
    """Cuts counts[d] things into parts[d] parts, none empty, all ways alike: int32 [D] each -> int32 [sum(parts)]."""
    documents = tf.repeat(tf.range(1, tf.size(counts) + 1), counts)
    # The first begins a part, and so do as many others, drawn, as are missing.
    first = shared.positions_in(documents) == 0
    scores = tf.where(first, -0.5, tf.random.stateless_uniform([tf.size(documents)], seed))
    begins = shared.draw(scores, documents, parts)
    return tf.math.bincount(tf.cumsum(tf.cast(begins, tf.int32)) - 1)
