"""The objective of XLNet: predict tokens in a random order (Yang et al. 2019, sections 2.2 to 2.5)."""

import dataclasses
import types

import numpy as np

from tfzoo import lazy
from tfzoo.data.packing import PackedRows
from tfzoo.data.segments import SegmentRows
from tfzoo.data.tokenized import TokenizedCorpus
from tfzoo.errors import UserError
from tfzoo.objectives import shared
from tfzoo.objectives.baselines import masked_lm_baselines
from tfzoo.objectives.objective import GROUP, MAIN, Objective, PackOption
from tfzoo.options import option

tf = lazy.module("tensorflow")

LONGEST_SPAN = 5  # Section 3.1.
_CLS_SEGMENT = 2  # As in the released models.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(PackOption):
    """The flags of permutation language modeling."""

    predict_one_in: int = option(
        6, "Predict one of this many tokens: K in section 2.3 of the paper.", group=GROUP, low=1, decides_rows=True
    )
    memory_length: int = option(
        0,
        "Number of preceding tokens of the document that a row reads as its memory; 0 disables. Rows with a memory are "
        "not packed.",
        group=GROUP,
        low=0,
        decides_rows=True,
    )


class Permutation(Objective):
    """Predicts a sixth of the tokens in a random order, each from all other tokens and the targets before it.

    In a document of n tokens, round(n / K) tokens are targets, at least 1; K is `predict_one_in`. They form spans of 1
    to 5 tokens: a span of m tokens is at a random place in a context of about K m tokens (section 3.1), and the
    contexts divide the document. The probability of a length m is proportional to 1 / m, as in the authors' code; the
    last span is cut to the number of targets. Special tokens are not targets. A random factorization order of each
    row's targets determines which targets a prediction depends on. The other tokens precede all targets (partial
    prediction, section 2.3): everything may depend on them. A document ends with <sep> <cls>, and <cls> has segment 2,
    as in the released models.

    The model has two streams. The content stream encodes a target for the predictions after it; the query stream
    predicts it, knowing its position but not the token.

    Worked example, figure 4 of the paper: tokens x1 to x4 are all targets, in the factorization order 3, 2, 4, 1. The
    permutation_mask of the query stream, whose rows are predictions and whose columns are the tokens that each may
    depend on, is

        x1  [0, 1, 1, 1]    1 is last: it depends on 3, 2 and 4.
        x2  [0, 0, 1, 0]    2 is second: it depends on 3.
        x3  [0, 0, 0, 0]    3 is first: it depends on the memory only.
        x4  [0, 1, 1, 0]    4 is third: it depends on 3 and 2.

    Here <sep> and <cls> follow, which are not targets, so that every prediction may also depend on them.
    permutation_ranks, which `prepare` returns, are [4, 2, 1, 3, 0, 0]: the number of each target in the order, and 0
    for tokens that are not targets.

    Memory (section 2.5; Dai et al. 2019, section 3.2): with `memory_length`, a row contains the tokens that precede it
    in its document. They are encoded first, without gradient; every layer's inputs for them are the memory that the
    row's tokens and predictions attend to as well. The first row of a document has no memory, and its place is masked.
    The paper keeps the memory from the previous update instead, which saves computing it, but it is stale: it comes
    from weights of an earlier step. It would also be a state between updates that depends on which device reads which
    document in which order. Computing it with the current weights keeps an update a function of its rows, so that a
    resumed run and several devices compute the same as an uninterrupted run on one device. The cached memory depends in
    turn on the segment before; this memory depends on its own tokens only.

    With `pack` and without memory, several documents share a row, and each attends only to itself.
    """

    name = "permutation"
    Options = Options
    best_metric = ("permutation_loss", "min")
    PACKED = types.MappingProxyType({"pack": True, "memory_length": 0})
    MODEL_KIND = ("encoder", "xlnet_base")
    FIGURES = (
        ("target accuracy", "permutation_accuracy", "{:.2%}"),
        ("perplexity", "permutation_perplexity", "{:.1f}"),
    )

    def __init__(self, tokenizer, sequence_length: int, **options):
        """Creates the objective.

        Raises:
          UserError: the tokenizer lacks a required special token.
        """
        super().__init__(tokenizer, sequence_length, **options)
        missing = [role for role in ("cls", "sep", "pad") if getattr(tokenizer, f"{role}_id", None) is None]
        if missing:
            raise UserError(
                f"{type(tokenizer).__name__}: permutation language modeling requires a tokenizer with cls, sep and pad "
                f"tokens, but this one has no token for {', '.join(missing)}; use --tokenizer=wordpiece or "
                "sentencepiece_xlnet"
            )
        self._memory = self.options.memory_length
        self._pack = self.options.pack and not self._memory
        # The number of targets in a document of n ordinary tokens, for every n: n / K, rounded, and at least 1.
        sizes, k = np.arange(self.row_tokens + 1), self.options.predict_one_in
        self._counts = np.maximum((2 * sizes + k) // (2 * k), np.minimum(sizes, 1))
        self._predictions = int(self._counts[-1])

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of the model that this objective provides."""
        memory = ("previous_sequence", "previous_mask") if self._memory else ()
        return ("token_ids", "segment_ids", "padding_mask", "permutation_mask", "target_mapping", *memory)

    @property
    def row_tokens(self) -> int:
        """The number of text tokens that fit into a row next to <sep> and <cls>."""
        return self._length - 2

    def rows(self, corpus: TokenizedCorpus) -> PackedRows | SegmentRows:
        """Returns the rows from which `prepare` takes its examples."""
        if self._memory:
            return SegmentRows(corpus, self.row_tokens, self._memory)
        also = [(self._predictions, lambda sizes: self._counts[sizes])]
        return PackedRows(corpus, self._length, extra=2, also=also, pack=self._pack)

    def prepare(self, example):
        """Converts one example of PackedRows or, with a memory, SegmentRows to features with static shapes (L is
        sequence_length, P the maximum number of targets, M memory_length).

        Returns:
          token_ids, segment_ids, permutation_ranks int32 [L], padding_mask bool [L], masked_positions, masked_ids int32
          [P], masked_weights float32 [P]; with packing also document_ids int32 [L]; with a memory also previous_ids
          int32 [M], previous_mask bool [M], whose padding precedes the tokens.
        """
        token_ids, seed = example["token_ids"], example["seed"]
        document_ids = example["document_ids"] if not self._memory else tf.ones_like(token_ids)
        positions = self.draw(token_ids, document_ids, seed)
        order = tf.argsort(tf.random.stateless_uniform([tf.size(positions)], shared.fold(seed, 2)))
        features = self.permuted(token_ids, document_ids, positions, order)
        if self._memory:
            previous = example["previous_ids"]
            padding = tf.fill([self._memory - tf.size(previous)], self._tokenizer.pad_id)
            features["previous_ids"] = tf.ensure_shape(tf.concat([padding, previous], 0), [self._memory])
            features["previous_mask"] = tf.range(self._memory) >= self._memory - tf.size(previous)
        return features

    def draw(self, token_ids, document_ids, seed):
        """Selects the targets among token_ids, document_ids [N]: positions int32 [n], ascending, n at most P."""
        special = tf.reduce_any(token_ids[:, None] == self._tokenizer.special_ids, 1)
        candidates = tf.cast(tf.where(~special)[:, 0], tf.int32)
        sizes = shared.document_sizes(tf.gather(document_ids, candidates))
        counts = tf.gather(tf.constant(self._counts, tf.int32), sizes)
        # For each document [D, P], the spans' lengths, of which those beyond the number of targets are 0.
        lengths = 1 / np.arange(1, LONGEST_SPAN + 1)
        limits = tf.constant(np.cumsum(lengths / lengths.sum())[:-1], tf.float32)
        shape = [tf.size(sizes), self._predictions]
        drawn = 1 + tf.searchsorted(limits, tf.random.stateless_uniform([tf.reduce_prod(shape)], shared.fold(seed, 0)))
        ends = tf.minimum(tf.cumsum(tf.reshape(drawn, shape), 1), counts[:, None])
        begins = tf.concat([tf.zeros_like(ends[:, :1]), ends[:, :-1]], 1)
        # Contexts in proportion to the spans: targets a to b are in the part a / counts to b / counts of the document.
        borders = [x * sizes[:, None] // tf.maximum(counts, 1)[:, None] for x in (begins, ends)]
        free = borders[1] - borders[0] - (ends - begins) + 1
        offsets = tf.random.stateless_uniform(shape, shared.fold(seed, 1)) * tf.cast(free, tf.float32)
        # Plus the number of a target in its document, its place there.
        first = borders[0] + tf.cast(offsets, tf.int32) - begins
        documents = tf.repeat(tf.range(tf.size(sizes)), counts)
        number = shared.positions_in(documents + 1)
        span = tf.reduce_sum(tf.cast(tf.gather(ends, documents) <= number[:, None], tf.int32), 1)
        place = tf.gather_nd(first, tf.stack([documents, span], 1)) + number
        return tf.gather(candidates, tf.gather(tf.cumsum(sizes, exclusive=True), documents) + place)

    def permuted(self, token_ids, document_ids, positions, order):
        """Returns the features of `prepare`, without a memory's.

        Args:
          token_ids, document_ids: int32 [N], without special tokens at the end.
          positions: int32 [n], the targets, ascending.
          order: int32 [n], the indices into `positions` in the factorization order.
        """
        tokenizer, length = self._tokenizer, self._length
        ranks = tf.scatter_nd(order[:, None], tf.range(1, tf.size(order) + 1), [tf.size(order)])
        ranks = tf.scatter_nd(positions[:, None], ranks, [tf.size(token_ids)])
        framed, documents = shared.frame(token_ids, document_ids, last_id=tokenizer.sep_id)
        segments, _ = shared.frame(tf.zeros_like(framed), documents, last_id=_CLS_SEGMENT)
        framed, documents = shared.frame(framed, documents, last_id=tokenizer.cls_id)
        for _ in range(2):
            ranks, document_ids = shared.frame(ranks, document_ids, last_id=0)
        targets = tf.cast(tf.where(ranks > 0)[:, 0], tf.int32)
        features = {
            "token_ids": shared.pad(framed, length, tokenizer.pad_id),
            "segment_ids": shared.pad(segments, length, 0),
            "padding_mask": tf.range(length) < tf.size(framed),
            "permutation_ranks": shared.pad(ranks, length, 0),
            "masked_positions": shared.pad(targets, self._predictions, 0),
            "masked_ids": shared.pad(tf.gather(framed, targets), self._predictions, 0),
            "masked_weights": shared.pad(tf.ones_like(targets, tf.float32), self._predictions, 0.0),
        }
        return features | ({"document_ids": shared.pad(documents, length, 0)} if self._pack else {})

    def check_model(self, name, page):
        if not self.reads_what_it_needs(page.Model):
            raise UserError(
                f"--model={name}: --objective={self.name} requires a model with two streams, such as xlnet_base"
            )

    def reads_what_it_needs(self, model_class):
        return set(self.inputs) <= set(model_class.INPUTS)

    def visible(self, batch):
        """Returns permutation_mask, bool [B, L, L]: True where position i may depend on token j."""
        ranks = batch["permutation_ranks"]
        # A token that is not a target depends on all such tokens, and not on targets.
        visible = ranks[:, None, :] < tf.maximum(ranks, 1)[:, :, None]
        documents = batch.get("document_ids")
        return visible if documents is None else visible & (documents[:, None, :] == documents[:, :, None])

    def forward(self, model, batch, training):
        """Returns the logits of the targets, float32 [B, P, V]."""
        # A weight of 0 maps a row's unused predictions to no position.
        mapping = tf.one_hot(batch["masked_positions"], self._length) * batch["masked_weights"][:, :, None]
        inputs = {name: batch[name] for name in ("token_ids", "segment_ids", "padding_mask")}
        inputs |= {"permutation_mask": self.visible(batch), "target_mapping": mapping}
        if self._memory:
            config = model.config
            previous = {"token_ids": batch["previous_ids"], "padding_mask": batch["previous_mask"]}
            nothing = tf.zeros([config.num_layers, tf.shape(mapping)[0], 0, config.hidden_size])
            memory = model.body(previous | {"previous_sequence": nothing}, training)["previous_sequence"]
            # The model's own memory_length may be shorter.
            inputs |= {"previous_sequence": memory, "previous_mask": batch["previous_mask"][:, -memory.shape[2] :]}
        return model(inputs, training=training)["logits"]

    def loss(self, models, batch, training=True):
        """Returns (sum, weight): the cross-entropy in nats over all targets, and their number."""
        nats, _ = shared.cross_entropy(self.forward(models[MAIN], batch, training), batch["masked_ids"])
        return tf.reduce_sum(nats * batch["masked_weights"]), tf.reduce_sum(batch["masked_weights"])

    def metrics(self, models, batch):
        """Returns permutation_loss and permutation_accuracy, each as (sum, weight)."""
        nats, hits = shared.cross_entropy(self.forward(models[MAIN], batch, False), batch["masked_ids"])
        weights = batch["masked_weights"]
        return {
            "permutation_loss": (tf.reduce_sum(nats * weights), tf.reduce_sum(weights)),
            "permutation_accuracy": (tf.reduce_sum(hits * weights), tf.reduce_sum(weights)),
        }

    def baselines(self, train_ids, batches) -> dict[str, dict[str, float]]:
        """Returns the figures of the frequency and bigram baselines: `masked_lm_baselines`, which see what a prediction
        of the model may depend on."""
        alone = [_one_target_per_row(batch, self._tokenizer.sep_id) for batch in batches]
        found = masked_lm_baselines(train_ids, alone, self._tokenizer)
        return {
            baseline: {name.replace("masked_lm", self.name): value for name, value in figures.items()}
            for baseline, figures in found.items()
        }


def _one_target_per_row(batch, hidden_id: int) -> dict[str, np.ndarray]:
    """Returns a batch with a row for each target, in which the special token hidden_id replaces the target and those
    after it in the factorization order."""
    row, column = np.nonzero(batch["masked_weights"])
    position, ranks = batch["masked_positions"][row, column], batch["permutation_ranks"][row]
    hidden = ranks >= ranks[np.arange(len(row)), position][:, None]
    return {
        "token_ids": np.where(hidden, hidden_id, batch["token_ids"][row]),
        "masked_positions": position[:, None],
        "masked_ids": batch["masked_ids"][row, column][:, None],
        "masked_weights": np.ones([len(row), 1], np.float32),
    }
