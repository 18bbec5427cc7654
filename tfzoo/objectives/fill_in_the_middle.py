"""Fill in the middle: causal language modeling of documents whose middle was moved to the end (Bavarian et al. 2022,
"Efficient Training of Language Models to Fill in the Middle")."""

import dataclasses

import numpy as np

from tfzoo import lazy
from tfzoo.data.packing import PackedRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError
from tfzoo.objectives import shared
from tfzoo.objectives.causal import Causal
from tfzoo.objectives.objective import GROUP, PackOption
from tfzoo.options import option

tf = lazy.module("tensorflow")

# The special tokens before the prefix, the suffix and the middle, in the vocabularies of
MARKERS = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, and tokenizers trained by tfzoo
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # CodeGemma, Qwen2.5-Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
)
_END_OF_MIDDLE = "▁<EOT>"  # CodeLlama's; the other vocabularies use the end-of-text token.

# The kinds of tokens in a document, and their order in each arrangement. Where a kind is not listed, it is left out.
_KINDS = ("bos", "prefix", "middle", "suffix", "eos", "PRE", "SUF", "MID", "EOT")
_ARRANGEMENTS = (
    ("bos", "prefix", "middle", "suffix", "eos"),
    ("bos", "PRE", "prefix", "SUF", "suffix", "MID", "middle", "EOT"),
    ("bos", "PRE", "SUF", "suffix", "MID", "prefix", "middle", "EOT"),
)
LEFT_TO_RIGHT, PSM, SPM = range(3)
_LEFT_OUT = -1
_PLACES = [[order.index(kind) if kind in order else _LEFT_OUT for kind in _KINDS] for order in _ARRANGEMENTS]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(PackOption):
    """The flags of fill in the middle."""

    fim_rate: float = option(0.5, "Probability that the middle of a document is moved.", group=GROUP, low=0.0, high=1.0)
    spm_rate: float = option(
        0.5,
        "Probability that such a document has the order suffix, prefix, middle instead of prefix, suffix, middle.",
        group=GROUP,
        low=0.0,
        high=1.0,
    )


class FillInTheMiddle(Causal):
    """Splits a document at two random positions into prefix, middle and suffix, and moves the middle to the end.

    With the probability fim_rate, a document becomes, in equal parts (spm_rate),

        PSM  <PRE> prefix <SUF> suffix <MID> middle <EOT>
        SPM  <PRE> <SUF> suffix <MID> prefix middle <EOT>

    the latter being the variant of SPM that the paper trains jointly with PSM (section 3.1). Other documents remain as
    they are. All tokens are targets, as in Causal; a beginning-of-text token remains the first token.

    Documents are rearranged after they have been cut into pieces that fit into a row (the paper's context-level FIM):
    thus each piece contains all three parts and the end of its middle. With `pack`, every piece in a row is rearranged
    separately. A row has room for the markers of all its pieces, so that nothing is cut off.

    The documents are split at the token level: both positions are uniformly distributed over all places between two
    tokens and the two ends, so that each part may be empty. The paper's default is the character level, which also
    trains completion within a token.

    <PRE>, <SUF> and <MID> are tokens of the vocabulary, one of the triples in MARKERS. --special_tokens adds them to a
    new tokenizer. <EOT> is the end-of-text token, or CodeLlama's <EOT>.

    Worked example, with <s> 1, </s> 2, <PRE> 5, <SUF> 6, <MID> 7, and the document [10, 11, 12, 13, 14] split after its
    first and third token: the tokens

        left to right  [1, 10, 11, 12, 13, 14, 2]
        PSM            [1, 5, 10, 6, 13, 14, 7, 11, 12, 2]
        SPM            [1, 5, 6, 13, 14, 7, 10, 11, 12, 2]

    become inputs and targets as in Causal; for PSM, padded to sequence_length,

        token_ids      [1, 5, 10, 6, 13, 14, 7, 11, 12]
        targets        [5, 10, 6, 13, 14, 7, 11, 12, 2]
    """

    name, PREFIX = "fill_in_the_middle", "fim"
    Options = Options
    best_metric = ("fim_loss", "min")
    # The markers do not count.
    FIGURES = (("next-token accuracy", "fim_accuracy", "{:.2%}"), ("perplexity", "fim_perplexity", "{:.2f}"))

    def __init__(self, tokenizer, sequence_length: int, **options):
        """Creates the objective.

        Raises:
          UserError: the vocabulary contains no markers, or no end-of-text token.
        """
        super().__init__(tokenizer, sequence_length, **options)
        ids = {token: i for i, token in enumerate(tokenizer.vocab)}
        markers = next((names for names in MARKERS if all(name in ids for name in names)), None)
        end = ids.get(_END_OF_MIDDLE, self._eos)
        if markers is None or end is None:
            lacking = "tokens that mark prefix, suffix and middle" if markers is None else "an end-of-text token"
            raise UserError(
                f"{type(tokenizer).__name__}: fill_in_the_middle requires a tokenizer with {lacking}; specify one with "
                "--tokenizer_dir, or train one with --tokenizer=byte_level and "
                f"'--special_tokens={','.join(MARKERS[0])}'"
            )
        marker_ids = [ids[name] for name in markers]
        self._added = tf.constant([*marker_ids, end], tf.int32)
        self._is_text = tf.constant(np.isin(np.arange(tokenizer.vocab_size), marker_ids, invert=True), tf.float32)

    @property
    def row_tokens(self) -> int:
        """The number of tokens of one document that fit into a row: with three markers and <EOT>, of which the last is
        only a target."""
        return self._length - 3

    def rows(self, corpus: TokenizedCorpus) -> PackedRows:
        """Returns the rows from which `prepare` takes its examples, with room for the markers of each document."""
        return PackedRows(
            corpus, self._length, 3, first_id=self._bos, last_id=self._eos, overlap=1, pack=self.options.pack
        )

    def measured(self, batch):
        """Returns the weights of the targets in metrics and baselines: those of all tokens except the markers."""
        return batch["target_weights"] * tf.gather(self._is_text, batch["targets"])

    def prepare(self, example):
        """Converts one example of PackedRows to the features of Causal."""
        token_ids, document_ids, seed = example["token_ids"], example["document_ids"], example["seed"]
        is_bos, is_eos = self._ends(token_ids, document_ids)
        words = tf.math.segment_sum(tf.cast(~(is_bos | is_eos), tf.int32), document_ids)[1:]
        moved, order, one, other = tf.unstack(tf.random.stateless_uniform([4, tf.size(words)], shared.fold(seed, 0)))
        arrangement = tf.where(order < self.options.spm_rate, SPM, PSM)
        arrangement = tf.where(moved < self.options.fim_rate, arrangement, LEFT_TO_RIGHT)
        cuts = tf.stack([tf.minimum(one, other), tf.maximum(one, other)], 1)
        cuts = tf.cast(cuts * tf.cast(words + 1, tf.float32)[:, None], tf.int32)
        return self.shift(*self.arrange(token_ids, document_ids, arrangement, cuts))

    def arrange(self, token_ids, document_ids, arrangement, cuts):
        """Arranges D documents.

        Args:
          token_ids, document_ids: int32 [N].
          arrangement: int32 [D], LEFT_TO_RIGHT, PSM or SPM.
          cuts: int32 [D, 2], the numbers of tokens before the middle and before the suffix, without <s>.

        Returns:
          token_ids, document_ids int32 [M].
        """
        is_bos, is_eos = self._ends(token_ids, document_ids)
        before = tf.gather(tf.math.segment_sum(tf.cast(is_bos, tf.int32), document_ids), document_ids)
        place = shared.positions_in(document_ids) - before
        part = 1 + tf.reduce_sum(tf.cast(place[:, None] >= tf.gather(cuts, document_ids - 1), tf.int32), 1)
        kind = tf.where(is_bos, _KINDS.index("bos"), tf.where(is_eos, _KINDS.index("eos"), part))

        # The markers of all documents follow the tokens; sorting by document and place moves or removes them.
        count = tf.size(arrangement)
        documents = tf.concat([document_ids, tf.repeat(tf.range(1, count + 1), 4)], 0)
        tokens = tf.concat([token_ids, tf.tile(self._added, [count])], 0)
        kind = tf.concat([kind, tf.tile(tf.range(_KINDS.index("PRE"), len(_KINDS)), [count])], 0)
        place = tf.gather_nd(tf.constant(_PLACES), tf.stack([tf.gather(arrangement, documents - 1), kind], 1))
        used = place != _LEFT_OUT
        tokens, documents, place = (tf.boolean_mask(x, used) for x in (tokens, documents, place))
        order = tf.argsort(documents * len(_KINDS) + place, stable=True)
        return tf.gather(tokens, order), tf.gather(documents, order)

    def row_baselines(self, rows, batches):
        """Returns nothing: an n-gram model of text in its order does not fit text whose middle is at the end."""
        return {}

    def _ends(self, token_ids, document_ids):
        """Returns which tokens are the <s> and the </s> that PackedRows has added: two bool [N]."""
        position = shared.positions_in(document_ids)
        last = tf.gather(shared.document_sizes(document_ids), document_ids - 1) - 1
        no_token = -1
        is_bos = (position == 0) & (token_ids == (no_token if self._bos is None else self._bos))
        is_eos = (position == last) & (token_ids == (no_token if self._eos is None else self._eos)) & ~is_bos
        return is_bos, is_eos
