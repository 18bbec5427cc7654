"""The objective of UL2, a mixture of denoisers (Tay et al. 2022, "UL2: Unifying Language Learning Paradigms")."""

import math

from tfzoo import lazy
from tfzoo.errors import UserError
from tfzoo.objectives import shared
from tfzoo.objectives.objective import PackOption
from tfzoo.objectives.span_corruption import SpanCorruption

tf = lazy.module("tensorflow")

# (mode, fraction of the tokens, mean length of a span), table 1 of the paper. S has a single span, the end of the text.
DENOISERS = (
    ("R", 0.15, 3.0),
    ("R", 0.15, 8.0),
    ("S", 0.25, math.inf),
    ("X", 0.5, 3.0),
    ("X", 0.5, 8.0),
    ("X", 0.15, 64.0),
    ("X", 0.5, 64.0),
)
_MODES = ("R", "S", "X")
# The mode tokens of the released model and those of the paper, in the order of _MODES.
MODE_TOKENS = (("[NLU]", "[S2S]", "[NLG]"), ("[R]", "[S]", "[X]"))


class UL2(SpanCorruption):
    """Span corruption in which each document is corrupted by one of seven denoisers, selected uniformly at random.

    The regular denoisers (R) remove 15% of the tokens in spans of mean length 3 or 8. The sequential denoiser (S)
    removes the last 25%, so that the model continues a prefix. The extreme denoisers (X) remove 50% in spans of mean
    length 3, 8 or 64, or 15% in spans of mean length 64 (section 3.1, table 1). Numbers of spans and random selection
    are those of span corruption. A document that is too short for two spans loses its end under every denoiser.

    The inputs of a document begin with the token of its mode (section 3.1.3), which tells the model what to expect, and
    with which a user selects the mode later. The mode tokens are [NLU], [S2S], [NLG] for R, S, X, as in the released
    model, or [R], [S], [X], if they are in the vocabulary; otherwise, the last three sentinels are reserved for them,
    in this order. --special_tokens=[NLU],[S2S],[NLG] adds the tokens to a new SentencePiece tokenizer.

    The rows have room for any combination of denoisers. Therefore they contain more padding than those of span
    corruption, and target_length is about 2/3 of a document.

    Worked example, the sentence of figure 2 of Raffel et al. 2020, with the words numbered from 10 on, sentinels 99,
    98, </s> 1, and mode tokens [NLU] 3, [S2S] 4, [NLG] 5. The denoiser R with "for inviting" and "last week" removed,
    and the denoiser S, which removes "last week", make of "Thank you for inviting me to your party last week" twice in
    a row

        token_ids          [3, 10, 11, 99, 14, 15, 16, 17, 98, 1, 4, 10, 11, 12, 13, 14, 15, 16, 17, 99, 1]
        document_ids       [1,  1,  1,  1,  1,  1,  1,  1,  1, 1, 2,  2,  2,  2,  2,  2,  2,  2,  2,  2, 2]
        targets            [99, 12, 13, 98, 18, 19, 1, 99, 18, 19, 1]
        decoder_token_ids  [0, 99, 12, 13, 98, 18, 19, 0, 99, 18, 19]

    padded to sequence_length and target_length.
    """

    name = PREFIX = "ul2"
    Options = PackOption
    best_metric = ("ul2_loss", "min")
    # As in span corruption, only the tokens of the spans count.
    FIGURES = (("span-token accuracy", "ul2_accuracy", "{:.2%}"), ("perplexity", "ul2_perplexity", "{:.2f}"))

    @property
    def denoisers(self):
        return [(rate, mean_span) for _, rate, mean_span in DENOISERS]

    def reserve_modes(self, sentinels):
        vocab = {token: i for i, token in enumerate(getattr(self._tokenizer, "vocab", ()))}
        for names in MODE_TOKENS:
            if all(name in vocab for name in names):
                ids = [vocab[name] for name in names]
                break
        else:
            ids, sentinels = sentinels[-3:], sentinels[:-3]
            if not sentinels:
                raise UserError(
                    f"{type(self._tokenizer).__name__}: ul2 requires three sentinels for the modes in addition to "
                    "those for spans; use a SentencePiece tokenizer of kind t5"
                )
        return [ids[_MODES.index(mode)] for mode, _, _ in DENOISERS], sentinels

    def prepare(self, example):
        """Converts one example of PackedRows to the features of span corruption."""
        token_ids, document_ids, seed = example["token_ids"], example["document_ids"], example["seed"]
        # Seeds 0 and 1 select the spans.
        uniform = tf.random.stateless_uniform(tf.shape(shared.document_sizes(document_ids)), shared.fold(seed, 2))
        denoisers = tf.cast(uniform * len(DENOISERS), tf.int32)
        noise = self.draw(document_ids, seed, denoisers)
        return self.corrupt(token_ids, document_ids, noise, tf.gather(self._modes, denoisers))
