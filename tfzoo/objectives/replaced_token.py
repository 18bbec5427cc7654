"""The objective of ELECTRA: detect the tokens that a small generator has replaced (Clark et al. 2020,
https://arxiv.org/abs/2003.10555, sections 2 and 3)."""

import dataclasses
import math
import types
from typing import Any

from tfzoo import lazy
from tfzoo.errors import UserError
from tfzoo.evaluation.evaluator import Means
from tfzoo.objectives import shared
from tfzoo.objectives.masked_lm import MaskedLM
from tfzoo.objectives.objective import GROUP, MAIN, MaskRateOption, Objective, PackOption
from tfzoo.options import option

tf = lazy.module("tensorflow")

GENERATOR = "generator"  # The role of the masked language model.
_HEADS = {MAIN: "discriminate", GENERATOR: "lm"}
_FOLD = 1000  # MaskedLM folds smaller numbers into the seed of a row.
_BLOCK = 256  # Tokens per block in `sample`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(MaskRateOption, PackOption):
    """The flags of replaced-token detection."""

    generator_size: float = option(
        0.25,
        "Width of the generator as a fraction of the model's, rounded to whole attention heads; the paper uses 1/4 for "
        "small and large models and 1/3 for base models.",
        group=GROUP,
        low=0.01,
        high=1.0,
    )
    discriminator_weight: float = option(
        50.0, "Weight of the replaced-token loss; the generator's loss has weight 1.", group=GROUP, low=0.0, high=1e6
    )


class ReplacedToken(Objective):
    """The main model, the discriminator, detects the tokens of a text that a generator has replaced.

    The generator is a masked language model of the discriminator's depth and `generator_size` of its width, trained in
    the same step. The two models share the token, position and segment embeddings and the norm after them. At each
    masked position, a token is drawn from the generator's distribution; if it happens to be the original token, it
    counts as original. The draw has no gradient: the generator is trained as a masked language model only.

    Rows and masked positions are those of MaskedLM without sentence pairs, except that every selected token becomes
    [MASK], as in the paper.

    Worked example, figure 2 of the paper, "the chef cooked the meal", with [CLS] 2, [SEP] 3, [MASK] 4, the 10, chef 11,
    cooked 12, meal 13, ate 14, a rate of 0.4 and a seed that happens to select the first and the third word. The
    generator reads

        token_ids         [2, 4, 11, 4, 10, 13, 3]
        masked_positions  [1, 3]
        masked_ids        [10, 12]
        token_weights     [0, 1, 1, 1, 1, 1, 0]

    and if "the" and "ate" are drawn from its distributions, the discriminator reads "the chef ate the meal":

        token_ids         [2, 10, 11, 14, 10, 13, 3]
        replaced          [0, 0, 0, 1, 0, 0, 0]

    The drawn tokens are a function of the seed of the row and of the generator's weights: `quantiles`, prepared with
    each row, are the points of the cumulative distributions at which the tokens are read.
    """

    name = "replaced_token"
    Options = Options
    best_metric = ("replaced_token_loss", "min")
    PACKED = types.MappingProxyType({"pack": True})
    MODEL_KIND = ("encoder", "electra_small or electra_base")
    FIGURES = (
        ("detection accuracy", "replaced_token_accuracy", "{:.2%}"),
        ('  always "original"', "original_share", "{:.2%}"),
        ("detection precision", "replaced_token_precision", "{:.2%}"),
        ("detection recall", "replaced_token_recall", "{:.2%}"),
        ("detection loss", "replaced_token_loss", "{:.4f}"),
        ("  constant probability", "constant_loss", "{:.4f}"),
        ("masked-token accuracy", "masked_lm_accuracy", "{:.2%}"),
        ("perplexity", "masked_lm_perplexity", "{:.1f}"),
    )

    def __init__(self, tokenizer, sequence_length: int, **options: Any):
        """Creates the objective.

        Raises:
          UserError: the tokenizer lacks a special token that MaskedLM requires.
        """
        super().__init__(tokenizer, sequence_length, **options)
        self._masked_lm = MaskedLM(
            tokenizer,
            sequence_length,
            mask_rate=self.options.mask_rate,
            pack=self.options.pack,
            pairs="none",
        )

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of the main model, the discriminator."""
        return (_HEADS[MAIN],)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of both models that this objective provides; masked_positions only for the generator."""
        return self._masked_lm.inputs

    def check_model(self, name, page):
        if missing := sorted(set(_HEADS.values()) - set(page.Model.HEADS)):
            raise UserError(
                f"--model={name}: has no head {' and no head '.join(missing)}, which --objective={self.name} requires; "
                f"use {self.MODEL_KIND[1]}"
            )
        super().check_model(name, page)

    def build_models(self, page, config, dtype=None):
        """Builds the discriminator and the generator, which share embeddings."""
        discriminator = page.Model(config, heads=self.heads, dtype=dtype)
        generator = page.Model(
            generator_config(config, self.options.generator_size),
            heads=(_HEADS[GENERATOR],),
            tied=discriminator.encoder.embeddings,
            dtype=dtype,
        )
        return {MAIN: discriminator, GENERATOR: generator}

    def model_names(self, name):
        return {MAIN: name, GENERATOR: name}

    def rows(self, corpus):
        """Returns the rows of MaskedLM without sentence pairs."""
        return self._masked_lm.rows(corpus)

    def prepare(self, example):
        """Converts one example of `rows` to features with static shapes (L is sequence_length, P the maximum number of
        masked tokens).

        Returns:
          token_ids, segment_ids int32 [L], padding_mask bool [L], masked_positions, masked_ids int32 [P],
          masked_weights float32 [P], with `pack` also document_ids, position_ids int32 [L]: as in MaskedLM, but every
          selected token is [MASK]. token_weights float32 [L]: 1 for the tokens that are not special. quantiles
          float32 [P], in [0, 1): random numbers for drawing the tokens.
        """
        features = self._masked_lm.prepare(example)
        features = {name: x for name, x in features.items() if not name.startswith("next_sentence")}
        row = {name: x[None] for name, x in features.items()}
        masked = _at_masked_positions(row, tf.ones_like(row["masked_ids"]))[0] > 0
        token_ids = tf.where(masked, self._tokenizer.mask_id, features["token_ids"])
        special = tf.reduce_any(token_ids[:, None] == self._tokenizer.special_ids, 1)
        return features | {
            "token_ids": token_ids,
            "token_weights": tf.cast(masked | ~special, tf.float32),
            "quantiles": tf.random.stateless_uniform(features["masked_ids"].shape, shared.fold(example["seed"], _FOLD)),
        }

    def corrupt(self, batch, logits):
        """Returns the discriminator's token_ids [B, L] and `replaced` [B, L], which of them are replaced, both int32,
        for a batch of features and the generator's logits [B, P, V] of the masked tokens."""
        drawn = sample(tf.stop_gradient(logits), batch["quantiles"])
        token_ids = batch["token_ids"] + _at_masked_positions(batch, drawn - self._tokenizer.mask_id)
        return token_ids, _at_masked_positions(batch, tf.cast(drawn != batch["masked_ids"], tf.int32))

    def _forward(self, models, batch, training):
        """Returns float32: the generator's logits [B, P, V], the discriminator's logits [B, L], `replaced` [B, L]."""
        logits = shared.forward(models[GENERATOR], batch, training)["logits"]
        token_ids, replaced = self.corrupt(batch, logits)
        outputs = shared.forward(models[MAIN], batch | {"token_ids": token_ids}, training)
        return logits, outputs["discriminate_logits"], tf.cast(replaced, tf.float32)

    def loss(self, models, batch, training=True):
        """Returns (sum, weight): in nats, the generator's masked-LM loss plus discriminator_weight times the loss of
        the discriminator over all tokens that are not special.

        The loss of the paper is a sum of two means, over M masked tokens and over N tokens. Here both sums are divided
        by M, and a row with m masked tokens among n tokens adds m / n times its sum over the n tokens. If m / n is the
        same in all rows, as in full rows of one document each, it equals M / N, and the result is the loss of the
        paper. Otherwise, the discriminator's loss is the mean of the rows' mean losses, weighted by m, which is
        proportional to n up to rounding. m and n depend on the row alone, so that sums over replicas and microbatches
        are exact. (The authors' code also includes [CLS] and [SEP], which are never replaced.)
        """
        logits, found, replaced = self._forward(models, batch, training)
        masked, tokens = batch["masked_weights"], batch["token_weights"]
        words, _ = shared.cross_entropy(logits, batch["masked_ids"])
        rows = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(replaced, found) * tokens, 1)
        shares = tf.math.divide_no_nan(tf.reduce_sum(masked, 1), tf.reduce_sum(tokens, 1))
        loss = tf.reduce_sum(words * masked) + self.options.discriminator_weight * tf.reduce_sum(shares * rows)
        return loss, tf.reduce_sum(masked)

    def metrics(self, models, batch):
        """Returns as (sum, weight): masked_lm_loss and masked_lm_accuracy of the generator; replaced_token_loss,
        _accuracy, _precision and _recall of the discriminator over the tokens that are not special; and original_share,
        the accuracy of classifying every token as original."""
        logits, found, replaced = self._forward(models, batch, training=False)
        masked, tokens = batch["masked_weights"], batch["token_weights"]
        words, word_hits = shared.cross_entropy(logits, batch["masked_ids"])
        each = tf.nn.sigmoid_cross_entropy_with_logits(replaced, found)
        positive = tf.cast(found > 0, tf.float32)
        hits = tf.cast(positive == replaced, tf.float32)

        def mean(values, weights):
            return tf.reduce_sum(values * weights), tf.reduce_sum(weights)

        return {
            "replaced_token_loss": mean(each, tokens),
            "replaced_token_accuracy": mean(hits, tokens),
            "replaced_token_precision": mean(replaced, positive * tokens),
            "replaced_token_recall": mean(positive, replaced * tokens),
            "original_share": mean(1 - replaced, tokens),
            "masked_lm_loss": mean(words, masked),
            "masked_lm_accuracy": mean(word_hits, masked),
        }

    def evaluators(self):
        """Returns the evaluator of `metrics`, of the generator's perplexity, and of constant_loss: the loss in nats of
        predicting the same probability, the share of replaced tokens, for every token."""
        return [_Figures(self.metrics, perplexity_of=("masked_lm_loss",))]

    def baselines(self, train_ids, batches):
        """Returns the figures of MaskedLM's baselines for the generator. The discriminator's baselines, original_share
        and constant_loss, depend on the generator and are therefore figures of each evaluation."""
        return self._masked_lm.baselines(train_ids, batches)


class _Figures(Means):
    """Means with the loss of a constant prediction."""

    def figures(self, predictions):
        figures = super().figures(predictions)
        shares = figures.get("original_share", 0.0), 1 - figures.get("original_share", 0.0)
        return figures | {"constant_loss": sum(-share * math.log(share) for share in shares if share > 0)}


def generator_config(config, size: float):
    """Returns the config of a generator of `size` times the width of `config`, rounded to whole attention heads.

    Hidden size, heads and MLP are scaled together (Clark et al. 2020, appendix A, table 6, "generator size"). The
    embeddings have the size of the discriminator's and are projected to the generator's width.
    """
    num_heads = max(1, round(config.num_heads * size))
    share = num_heads / config.num_heads
    hidden_size = max(1, round(config.hidden_size * share))
    embedding_size = config.embedding_size or config.hidden_size
    return dataclasses.replace(
        config,
        num_heads=num_heads,
        hidden_size=hidden_size,
        intermediate_size=max(1, round(config.intermediate_size * share)),
        embedding_size=0 if embedding_size == hidden_size else embedding_size,
    )


def sample(logits, quantiles):
    """Returns the tokens int32 [B, P] at the `quantiles` [B, P], in [0, 1), of the distributions softmax(logits).

    For uniformly distributed quantiles these are samples: token v is returned if the quantile is at least the total
    probability of the tokens before v, and less than that with v.

    Args:
      logits: float32 [B, P, V].
      quantiles: float32 [B, P]; multiples of 2^-23, so that a less likely token may never be drawn.
    """
    size = logits.shape[-1]
    count = -(-size // _BLOCK)
    probabilities = tf.pad(tf.nn.softmax(logits), [[0, 0], [0, 0], [0, count * _BLOCK - size]])
    # First the block, then the token in it: sums over the whole vocabulary would take ten times as long on a CPU.
    blocks = tf.reshape(probabilities, [-1, quantiles.shape[1], count, _BLOCK])
    sums = tf.cumsum(tf.reduce_sum(blocks, -1), -1)
    targets = quantiles[..., None] * sums[..., -1:]
    block = tf.reduce_sum(tf.cast(sums <= targets, tf.int32), -1)
    within = tf.cumsum(tf.gather(blocks, block, batch_dims=2), -1)
    targets -= tf.gather(tf.pad(sums, [[0, 0], [0, 0], [1, 0]]), block, batch_dims=2)[..., None]
    # The two sums of a block are rounded differently; the token must still be one of this block.
    targets = tf.minimum(targets, within[..., -1:] * (1 - 2**-23))
    return block * _BLOCK + tf.reduce_sum(tf.cast(within <= targets, tf.int32), -1)


def _at_masked_positions(batch, values):
    """Returns int32 [B, L] with values [B, P] at the masked positions, and 0 elsewhere."""
    values *= tf.cast(batch["masked_weights"], tf.int32)  # Unused positions are 0.
    places = tf.one_hot(batch["masked_positions"], batch["token_ids"].shape[1], dtype=tf.int32)
    return tf.reduce_sum(values[..., None] * places, 1)
