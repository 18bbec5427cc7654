"""The base classes of all families' models: named inputs, named outputs, one or two towers, and heads."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfzoo.config import EmbeddingConfig, TransformerConfig
from tfzoo.errors import UserError, suggest
from tfzoo.nn.block import Stack
from tfzoo.nn.cache import Cache
from tfzoo.nn.embedding import Embeddings, TokenEmbedding
from tfzoo.nn.fit import Fit
from tfzoo.nn.heads import (
    POOLS,
    ROW_HEADS,
    Classifier,
    Discriminator,
    EmbeddingHead,
    LMHead,
    MaskedLMHead,
    Pooler,
    RelationClassifier,
    output_of,
    pool,
)
from tfzoo.nn.inputs import check_inputs
from tfzoo.nn.layer import Layer, decode, encode, register
from tfzoo.nn.mask import document_attention_mask


def check_memory(config: TransformerConfig) -> None:
    """Raises UserError if the weights of a model cannot fit into this machine's memory, which would end the process.

    In a graph, variables take no memory; on parameter servers, the memory is theirs.
    """
    if not tf.executing_eagerly() or isinstance(
        tf.distribute.get_strategy(), tf.distribute.experimental.ParameterServerStrategy
    ):
        return
    size, memory = 4 * config.least_parameters, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise UserError(
            f"the model has at least {config.least_parameters:,} parameters, {size / 2**30:,.0f} GiB in float32, but "
            f"this machine has {memory / 2**30:,.0f} GiB of memory; build a smaller model"
        )


class Tower(Layer):
    """Embeddings and a stack of blocks: token_ids [B, L] -> sequence [B, L, E].

    Args:
      config, num_layers, causal, cross: as for Stack.
      tokens, tied: as for Embeddings.
    """

    def __init__(
        self,
        config: TransformerConfig,
        num_layers: int | None = None,
        causal: bool = False,
        cross: bool = False,
        tokens: TokenEmbedding | None = None,
        tied: Embeddings | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.embeddings = Embeddings(config, tokens, tied, dtype=policy, name="embeddings")
        self.stack = Stack(config, num_layers, causal, cross, dtype=policy, name="stack")

    def build(self, input_shape=None):
        self.embeddings.build()
        self.output_shape = (None, None, self.stack.config.hidden_size)
        self.stack.build(self.output_shape)

    def call(
        self,
        token_ids,
        segment_ids=None,
        padding_mask=None,
        position_ids=None,
        attention_mask=None,
        memory=None,
        memory_padding_mask=None,
        memory_attention_mask=None,
        cache=None,
        training=False,
    ):
        return self.stack(
            self.embeddings(token_ids, segment_ids, position_ids, training=training),
            padding_mask=padding_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            memory=memory,
            memory_padding_mask=memory_padding_mask,
            memory_attention_mask=memory_attention_mask,
            cache=cache,
            training=training,
        )


class Model(Fit, keras.Model):
    """A model that maps a dict of named tensors to a dict of named tensors.

    document_ids [B, L] assigns each token to one of several documents packed into a row, 0 being padding: a token then
    attends only to its own document. With position_ids [B, L] that restart in each document, a packed document's
    outputs equal those that it has alone.

    compile, fit, evaluate and predict work as for any Keras model, on the heads' outputs; see nn.fit.

    A family's subclass creates its layers in `make_body`, computes {"sequence": [B, L, E], ...} in `body`, and defines
    a method `make_NAME` for each head that is not defined here. The output of the head "lm" is named "logits", that of
    "embed" is "embedding", and that of any other head is "NAME_logits".

    Args:
      config: a TransformerConfig.
      heads: names of the heads; None means the class's DEFAULT_HEADS, () means no head.
      num_labels: number of classes of the heads classify, tag and relation.
      labels: names of these classes, which also determine their number; None names them LABEL_0, LABEL_1, ...
      pool: what the head classify reads: pooled or one of config.POOLINGS; None means the class's POOL.
      embed: how the head embed computes a vector for a text; None means the mean of its tokens' states.
      dtype: a Keras dtype or policy, such as "mixed_bfloat16".
      name: the model's name; None means the family's.

    Raises:
      UserError: an unknown head or pool.
      ValueError: an unknown or missing input, when called.
    """

    family = ""  # The family's name in models.FAMILIES; a user's subclass inherits it.
    is_encoder_decoder = False
    fixed_length = False  # If True, L is static, and all rows of an export have the same length.
    # The special tokens added around a text and around a pair of texts; see tfzoo.text.framing.
    LAYOUT: tuple[str, str | None] = ("cls $A sep", "cls $A sep $B:1 sep:1")
    record: Any = None  # The FolderRecord (see models.record) of the folder that the model was loaded from.
    # What the head classify was fine-tuned for, as in Hugging Face's config.json; None means what `record` says.
    problem_type: str | None = None
    markers: Sequence[str] = ()  # The tokens around the entities with which the head relation was fine-tuned, if any.
    no_answer_threshold: float | None = None  # Of the head span, if it was fitted; see tfzoo.text.spans.difference.
    INPUTS: Sequence[str] = ("token_ids", "padding_mask")
    REQUIRED_INPUTS: Sequence[str] = ("token_ids",)
    HEADS: Sequence[str] = ("lm", "classify", "tag", "span", "relation", "embed")
    DEFAULT_HEADS: Sequence[str] = ("lm",)
    POOL = "first"
    CLASSIFIER_HIDDEN: str | None = None  # Activation of a dense layer between the pooled state and the classifier.

    def __init__(
        self,
        config: TransformerConfig,
        *,
        heads: Sequence[str] | None = None,
        num_labels: int = 2,
        labels: Sequence[str] | None = None,
        pool: str | None = None,
        embed: EmbeddingConfig | None = None,
        dtype=None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, name=name or self.family or None)
        self.config, self.pool = config, pool or self.POOL
        self.embed = embed or EmbeddingConfig()
        self.num_labels = len(labels) if labels else num_labels
        self.labels = tuple(labels or (f"LABEL_{i}" for i in range(num_labels)))
        pools = [how for how in POOLS if how != "pooled" or self.POOL == "pooled"]
        for value, choices, kind in [(self.pool, pools, "pool"), *((h, self.HEADS, "head") for h in heads or ())]:
            if value not in choices:
                raise UserError(
                    f"{kind} {value!r}: {self.name} has no such {kind}{suggest(value, choices)}; "
                    f"it has {', '.join(choices)}"
                )
        self.head_names = tuple(self.DEFAULT_HEADS if heads is None else heads)
        check_memory(config)
        self.make_body(config)
        self.heads = {head: getattr(self, f"make_{head}")() for head in self.head_names}
        self.build(None)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "family" in vars(cls):
            register(cls, cls.family)

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "config": encode(self.config),
            "heads": list(self.head_names),
            "labels": list(self.labels),
            "pool": self.pool,
            "embed": encode(self.embed),
            "record": encode(self.record),
            "problem_type": self.problem_type,
            "markers": list(self.markers),
            "no_answer_threshold": self.no_answer_threshold,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects=None):
        arguments = {name: decode(value) for name, value in config.items()}
        record, problem_type, markers = (arguments.pop(name, None) for name in ("record", "problem_type", "markers"))
        threshold = arguments.pop("no_answer_threshold", None)
        model = cls(arguments.pop("config"), **arguments)
        model.record, model.problem_type, model.markers = record, problem_type, tuple(markers or ())
        model.no_answer_threshold = threshold
        return model

    def build(self, input_shape=None):
        """Creates all variables.

        Without this method Keras would run the model to create them, which takes twice as long.
        """
        for tower in self.towers():
            tower.build((None, None))
        for name, head in self.heads.items():
            head.build((None, self.sequence_size) if name in ROW_HEADS else (None, None, self.sequence_size))

    @property
    def is_causal(self) -> bool:
        """Whether each token attends only to itself and to earlier tokens."""
        return bool(getattr(self.config, "causal", False))

    @property
    def reads_segments(self) -> bool:
        """Whether segment_ids affect the outputs: with a single segment they do not."""
        return "segment_ids" in self.INPUTS and self.config.num_segments > 1

    @property
    def excludes_prompts(self) -> bool:
        """Whether there is an input pooling_mask [B, L], by which the head embed excludes a prompt's tokens."""
        return "embed" in self.head_names and not self.embed.include_prompt

    @property
    def sequence_size(self) -> int:
        """The size of each token's vector in `sequence`."""
        return self.config.hidden_size

    @property
    def can_generate(self) -> bool:
        """Whether tfzoo.generate_text supports the model, which requires a head "lm" and a decoder."""
        return False

    def towers(self) -> Sequence[keras.layers.Layer]:
        """Returns the body's layers in the order of their variables; `build()` builds these."""
        raise NotImplementedError

    def make_body(self, config: TransformerConfig) -> None:
        """Creates the layers of the body."""
        raise NotImplementedError

    def body(self, inputs, training):
        """Returns the body's outputs, a dict with at least "sequence" [B, L, E], for a dict of inputs."""
        raise NotImplementedError

    @property
    def tokens(self) -> TokenEmbedding:
        """The token embedding, which a tied head uses as its output matrix."""
        raise NotImplementedError

    def recompute_blocks(self) -> None:
        """Makes training take less memory and more time: only each block's input is kept, and the rest is recomputed.

        Raises:
          UserError: the family's blocks do not support this, such as Reformer's, which keep no activations anyway.
        """
        stacks = [layer for layer in self._flatten_layers() if isinstance(layer, Stack)]
        if not stacks:
            raise UserError(f"remat='block': {self.name}'s blocks cannot be recomputed; use remat='none'")
        for stack in stacks:
            stack.remat = True

    def call(self, inputs, training=False):
        required = (*self.REQUIRED_INPUTS, *(("entity_positions",) if "relation" in self.heads else ()))
        optional = [name for name in self.INPUTS if name not in required]
        check_inputs(inputs, required, [*optional, "pooling_mask"] if self.excludes_prompts else optional)
        outputs = self.body(inputs, training)
        answers = {
            output_of(name): self.answer(name, head, outputs, inputs, training) for name, head in self.heads.items()
        }
        return outputs | answers

    def answer(self, name, head, outputs, inputs, training):
        """Returns the logits of one head, or its vectors."""
        sequence = outputs["sequence"]
        if name == "lm":  # With two streams, the head reads the query stream.
            return head(outputs.get("query_sequence", sequence), inputs.get("masked_positions"))
        if name == "discriminate":
            return head(sequence)
        if name == "relation":
            return head(sequence, inputs["entity_positions"], training=training)
        if name == "next_sentence":
            return head(outputs["pooled"], training=training)
        if name == "embed":
            return head(sequence, inputs.get("padding_mask"), inputs.get("pooling_mask"))
        if name == "classify":
            mask = inputs.get("decoder_padding_mask" if "decoder_token_ids" in inputs else "padding_mask")
            return head(pool(self.pool, outputs, mask), training=training)
        return head(sequence, training=training)  # tag, span

    def next_logits(self, sequence):
        """Returns the logits [..., V] of the head "lm" for the token after each of a decoder's states [..., E]."""
        return self.answer("lm", self.heads["lm"], {"sequence": sequence}, {}, False)

    def make_classify(self):
        return self._head(Classifier, "classify", self.num_labels, self.CLASSIFIER_HIDDEN)

    def make_tag(self):
        return self._head(Classifier, "tag", self.num_labels)

    def make_span(self):
        return self._head(Classifier, "span", 2, dropout=False)

    def make_relation(self):
        return self._head(RelationClassifier, "relation", self.num_labels)

    def make_embed(self):
        return self._head(EmbeddingHead, "embed", self.embed)

    def make_lm(self):
        return self._head(LMHead, "lm", self.tokens)

    def _head(self, cls, name, *args, **kwargs):
        return cls(self.config, *args, **kwargs, dtype=self.dtype_policy, name=name)


def _attention_mask(inputs, prefix=""):
    """Returns the combination of attention_mask [B, 1 or H, L, L] and document_ids [B, L]; None if neither is given."""
    mask, documents = inputs.get(f"{prefix}attention_mask"), inputs.get(f"{prefix}document_ids")
    if documents is None:
        return mask
    same_document = document_attention_mask(documents, documents)
    return same_document if mask is None else ops.logical_and(same_document, mask)


def _cross_mask(inputs):
    """Returns the mask by which a decoder's documents attend to the encoder's documents of the same number."""
    if "decoder_document_ids" not in inputs or "document_ids" not in inputs:
        return None
    return document_attention_mask(inputs["decoder_document_ids"], inputs["document_ids"])


class _Decoding:
    """Mixin for a model with a causal decoder: incremental reading with a cache."""

    decoder: Tower
    head_names: tuple[str, ...]

    @property
    def can_generate(self) -> bool:
        return "lm" in self.head_names

    def start(self, token_ids, padding_mask, room, memory=None, memory_padding_mask=None, reach=None):
        """Reads the first tokens.

        Args:
          token_ids: int32 [B, L].
          padding_mask: bool [B, L], True is a real token; padding may be on either side. None means that all are real.
          room: int or scalar int32, number of slots of the cache after those of the L tokens.
          memory, memory_padding_mask: [B, M, E] and bool [B, M], from an encoder.
          reach: int32 [B], the length that each row's text may reach. Rotary scalings that depend on the length
            ("dynamic", "longrope") use it from the first token on; otherwise cached keys would have other frequencies
            than the queries that are compared with them later.

        Returns:
          (sequence [B, L, E], Cache with L + room slots, whose `positions` continue after each row's last token).
        """
        stack = self.decoder.stack
        cache = Cache(len(stack.blocks), room, stack.cross)
        cache.reach = reach
        batch, length = ops.shape(token_ids)
        if padding_mask is None:
            position_ids = None
            positions = tf.range(length + room)[None]
        else:
            count = tf.cumsum(tf.cast(padding_mask, tf.int32), 1)
            position_ids = tf.maximum(count - 1, 0)
            positions = tf.concat([position_ids, count[:, -1:] + tf.range(room)], 1)
        cache.positions = tf.broadcast_to(positions, [batch, length + room])
        sequence = self.decoder(
            token_ids,
            padding_mask=padding_mask,
            position_ids=position_ids,
            memory=memory,
            memory_padding_mask=memory_padding_mask,
            cache=cache,
        )
        return sequence, cache

    def step(self, token_ids, position_ids, attention_mask, cache):
        """Reads further tokens and adds them to the cache.

        Args:
          token_ids, position_ids: int32 [B, L], in any order; several tokens may have the same position.
          attention_mask: bool [B, 1, L, M], the slots that each token may read, its own included.
          cache: the result of `Cache.step`, which determines the slots that the tokens are written to.

        Returns:
          sequence [B, L, E].
        """
        return self.decoder(token_ids, position_ids=position_ids, attention_mask=attention_mask, cache=cache)


class EncoderModel(Model):
    """A bidirectional encoder: token_ids, segment_ids, padding_mask [B, L] -> sequence [B, L, E].

    A family with a POOLER also returns pooled [B, E], if a head reads it or there is no head.
    """

    INPUTS: Sequence[str] = (
        "token_ids",
        "segment_ids",
        "padding_mask",
        "position_ids",
        "attention_mask",
        "document_ids",
        "masked_positions",
        "entity_positions",
    )
    POOLER = False

    def make_body(self, config):
        self.encoder = Tower(config, dtype=self.dtype_policy, name="encoder")
        pooled_heads = {"next_sentence"} | ({"classify"} if self.pool == "pooled" else set())
        keeps_pooler = "embed" in self.head_names and self.embed.pooler
        needs_pooler = keeps_pooler or not self.head_names or pooled_heads & set(self.head_names)
        self.pooler = self._head(Pooler, "pooler") if self.POOLER and needs_pooler else None

    def towers(self):
        return [self.encoder] if self.pooler is None else [self.encoder, self.pooler]

    @property
    def tokens(self):
        return self.encoder.embeddings.tokens

    def body(self, inputs, training):
        sequence = self.encoder(
            inputs["token_ids"],
            inputs.get("segment_ids"),
            padding_mask=inputs.get("padding_mask"),
            position_ids=self.position_ids(inputs),
            attention_mask=_attention_mask(inputs),
            training=training,
        )
        return {"sequence": sequence} | ({} if self.pooler is None else {"pooled": self.pooler(sequence)})

    def position_ids(self, inputs):
        return inputs.get("position_ids")

    def make_lm(self):
        return self._head(MaskedLMHead, "lm", self.tokens)

    def make_next_sentence(self):
        return self._head(Classifier, "next_sentence", 2, dropout=False)

    def make_discriminate(self):
        return self._head(Discriminator, "discriminate")


class DecoderModel(_Decoding, Model):
    """A causal decoder: token_ids, padding_mask [B, L] -> sequence [B, L, E], logits [B, L, V]."""

    INPUTS = ("token_ids", "padding_mask", "position_ids", "attention_mask", "document_ids", "entity_positions")
    LAYOUT = ("added_bos? $A", None)
    POOL = "last"
    is_causal = True

    def make_body(self, config):
        self.decoder = Tower(config, causal=True, dtype=self.dtype_policy, name="decoder")

    def towers(self):
        return [self.decoder]

    @property
    def tokens(self):
        return self.decoder.embeddings.tokens

    def body(self, inputs, training):
        sequence = self.decoder(
            inputs["token_ids"],
            padding_mask=inputs.get("padding_mask"),
            position_ids=inputs.get("position_ids"),
            attention_mask=_attention_mask(inputs),
            training=training,
        )
        return {"sequence": sequence}

    def make_classify(self):  # As in Hugging Face's models: one product without a bias.
        return self._head(Classifier, "classify", self.num_labels, use_bias=False, dropout=False)


class EncoderDecoderModel(_Decoding, Model):
    """An encoder-decoder whose two stacks share token embeddings.

    token_ids, padding_mask [B, M] and decoder_token_ids, decoder_padding_mask [B, L] -> memory [B, M, E], the encoder's
    output; sequence [B, L, E], the decoder's output; and logits [B, L, V].
    """

    is_encoder_decoder = True
    INPUTS = (
        "token_ids",
        "padding_mask",
        "position_ids",
        "attention_mask",
        "document_ids",
        "decoder_token_ids",
        "decoder_padding_mask",
        "decoder_position_ids",
        "decoder_attention_mask",
        "decoder_document_ids",
    )
    REQUIRED_INPUTS = ("token_ids", "decoder_token_ids")
    HEADS = ("lm", "classify")
    LAYOUT = ("$A eos?", "$A eos $B:1 eos:1")
    POOL = "last"
    LOGITS_BIAS = False  # Whether logits have a bias per token, which checkpoints contain and training does not change.

    def make_body(self, config):
        self.encoder = Tower(config, dtype=self.dtype_policy, name="encoder")
        self.decoder = Tower(
            config,
            config.resolved_num_decoder_layers,
            causal=True,
            cross=True,
            tokens=self.tokens,
            dtype=self.dtype_policy,
            name="decoder",
        )

    def towers(self):
        return [self.encoder, self.decoder]

    @property
    def tokens(self):
        return self.encoder.embeddings.tokens

    def body(self, inputs, training):
        memory = self.encode(inputs, training)
        return {"memory": memory, "sequence": self.decode(inputs, memory, training)}

    def encode(self, inputs, training=False):
        """Returns the encoder's output, memory [B, M, E], for token_ids, padding_mask [B, M]."""
        return self.encoder(
            inputs["token_ids"],
            padding_mask=inputs.get("padding_mask"),
            position_ids=inputs.get("position_ids"),
            attention_mask=_attention_mask(inputs),
            training=training,
        )

    def decode(self, inputs, memory, training=False):
        """Returns the decoder's output, sequence [B, L, E].

        Args:
          inputs: a dict with decoder_token_ids and decoder_padding_mask [B, L], and the memory's padding_mask [B, M].
          memory: [B, M, E].
          training: whether to apply dropout.
        """
        return self.decoder(
            inputs["decoder_token_ids"],
            padding_mask=inputs.get("decoder_padding_mask"),
            position_ids=inputs.get("decoder_position_ids"),
            attention_mask=_attention_mask(inputs, "decoder_"),
            memory=memory,
            memory_padding_mask=inputs.get("padding_mask"),
            memory_attention_mask=_cross_mask(inputs),
            training=training,
        )

    def make_lm(self):
        return self._head(LMHead, "lm", self.tokens, self.LOGITS_BIAS, False)
