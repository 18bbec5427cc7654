"""Decoding: from prompts to new tokens, inside a graph or from Python."""

import contextlib
import os
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfzoo import nn
from tfzoo.errors import CheckFailed, UserError
from tfzoo.generation.beam import beam_search
from tfzoo.generation.constraints import needs_source
from tfzoo.generation.contrastive import contrastive_search
from tfzoo.generation.folder import check_can_generate, special_ids
from tfzoo.generation.options import ROWS, Options, read_options
from tfzoo.generation.prompt import read_prompt, table_length
from tfzoo.generation.sample import sample
from tfzoo.generation.speculative import draft_length, speculate
from tfzoo.generation.stops import Stops, string_table, token_texts


class Generated(NamedTuple):
    """The result of `generate_ids` with return_scores. R is num_return_sequences."""

    token_ids: Any  # int32 [B R, N], padded after the end of a text.
    scores: Any  # float32 [B R, N], the unmodified log-probability of each token; 0 after the end.
    lengths: Any  # int32 [B R], including the token that ends the text.
    sequence_scores: Any  # float32 [B R], the value by which a beam search ranks; otherwise the sum of the scores.


def decode(
    model, options: Options, token_ids, padding_mask, rows, new_tokens, stops: Stops | None = None, assistant=None
) -> dict:
    """Continues prompts using only tensors, for a tf.function, which may be exported or compiled by XLA.

    Args:
      model: a model with a causal decoder and a language model head.
      options: the options that are fixed in the graph.
      token_ids: int32 [B, P], the prompts; for an encoder-decoder, the encoder's input.
      padding_mask: bool [B, P], True is a real token; padding may be on either side.
      rows: tensors [B] by names of ROWS; a parameter without a tensor has no effect. "seed" is required if tokens are
        sampled.
      new_tokens: N, int or scalar int32, the maximum number of new tokens; rows["max_new_tokens"] may be lower. A text
        also ends at the model's last position. Rotary scalings that depend on the length ("dynamic", "longrope") use
        the length of the prompt plus all these tokens, from the first token on.
      stops: where a text ends; None means at options.eos_token_id.
      assistant: a smaller model with the same vocabulary, for speculative decoding.

    Returns:
      A dict:
      token_ids: int32 [B R, N], without prompt or start token, padded after the end. R is num_return_sequences; the
        texts of a prompt are consecutive, in a beam search the best first.
      lengths: int32 [B R], the number of tokens in each text, including the one that ends it.
      scores: float32 [B R, N], the model's log-probability of each token, before any constraint or filter; 0 after the
        end. Always present with options.return_scores.
      sequence_scores: float32 [B R], the value by which a beam search ranks; only for a beam search.
      bad: bool [B R], whether the model's logits were not finite.
    """
    stops = stops or Stops(options.eos_token_id)
    token_ids, padding_mask = tf.cast(token_ids, tf.int32), tf.cast(padding_mask, tf.bool)
    batch = tf.shape(token_ids)[0]
    used = 1 if model.is_encoder_decoder else tf.reduce_sum(tf.cast(padding_mask, tf.int32), 1)
    most = tf.fill([batch], new_tokens)
    most = tf.minimum(most, rows.get("max_new_tokens", most))
    if (limit := table_length(model)) is not None:
        most = tf.minimum(most, limit - used)
    rows, reach = dict(rows) | {"max_new_tokens": most}, used + most
    if needs_source(options):
        rows["source"] = tf.where(padding_mask, token_ids, -1)
    times = options.num_return_sequences if options.do_sample and options.num_beams == 1 else 1
    if options.do_sample and options.num_beams == 1:
        # The first text of a prompt has the row's seed, whatever the number of texts.
        seeds = rows["seed"][:, None] + tf.range(times)[None] * 0x3C6EF372
        rows = {name: tf.repeat(value, times, axis=0) for name, value in rows.items()}
        rows["seed"] = tf.reshape(seeds, [-1])

    def read(reader, room):
        return _read(reader, options, token_ids, padding_mask, room, reach).repeat(times)

    with contextlib.ExitStack() as stack:
        stack.enter_context(nn.compiled_steps(options.jit_compile))
        stack.enter_context(nn.few_rows())
        stack.enter_context(nn.without_gradients())
        for reader in (model, assistant):
            if reader is not None and reader.config.tie_embeddings:
                together = batch * times * options.num_beams
                stack.enter_context(reader.tokens.for_steps(together, new_tokens, options.jit_compile))
        if options.num_beams > 1:
            return beam_search(read(model, new_tokens * options.num_beams), options, rows, stops, new_tokens)
        if options.penalty_alpha:
            return contrastive_search(read(model, new_tokens * options.candidates), options, rows, stops, new_tokens)
        if assistant is not None or options.prompt_lookup_num_tokens:
            room = new_tokens + draft_length(options) + 1
            helper = None if assistant is None else read(assistant, room)
            return speculate(read(model, room), helper, options, rows, stops, new_tokens)
        return sample(read(model, new_tokens), options, rows, stops, new_tokens)


def _read(model, options: Options, token_ids, padding_mask, room, reach):
    """Returns the Prompt of a decoder. For an encoder-decoder the encoder reads token_ids, and the prompt is the start
    token."""
    if not model.is_encoder_decoder:
        return read_prompt(model, token_ids, padding_mask, room, options, reach)
    memory = model.encode({"token_ids": token_ids, "padding_mask": padding_mask})
    start = tf.fill([tf.shape(token_ids)[0], 1], options.decoder_start_token_id)
    return read_prompt(model, start, tf.ones_like(start, tf.bool), room, options, reach, memory, padding_mask)


def generate_ids(
    model,
    token_ids,
    padding_mask=None,
    *,
    max_new_tokens=20,
    stop_strings=(),
    tokenizer=None,
    assistant_model=None,
    **options,
):
    """Continues prompts, or answers them if the model is an encoder-decoder.

    Args:
      model: a model with a causal decoder and a language model head.
      token_ids: int [B, P] or ragged, the prompts; for an encoder-decoder, the encoder's input.
      padding_mask: bool [B, P], True is a real token; padding may be on either side. None means that all are real.
      max_new_tokens: a number, or one per row; N is the highest. If the model's rotary scaling depends on the length,
        the text depends on this number: see `decode`.
      stop_strings: a text ends with the token that completes one of these strings.
      tokenizer: the tokenizer of the model, required for stop_strings.
      assistant_model: a smaller model with the same vocabulary that drafts num_assistant_tokens at a time.
      **options: fields of Options, and parameters of ROWS as one value for all rows or one per row. Unspecified ids of
        special tokens are those in generation_config.json or config.json of the folder from which the model was loaded.

    Returns:
      int32 [B R, N], the new tokens without prompt or start token, padded after the end; R is num_return_sequences.
      With return_scores a Generated.

    Raises:
      UserError: a prompt is empty, options contradict each other or the model, or a prompt leaves no room for
        max_new_tokens.
      CheckFailed: the model's logits are not finite.
    """
    if isinstance(token_ids, tf.RaggedTensor):
        padding_mask = tf.sequence_mask(token_ids.row_lengths(), dtype=tf.bool)
        token_ids = token_ids.to_tensor()
    ids = np.asarray(token_ids)
    mask = np.ones(ids.shape, bool) if padding_mask is None else np.asarray(padding_mask).astype(bool)
    static, rows = read_options(max_new_tokens=max_new_tokens, **(special_ids(model) | options))
    _check_model(model, static)
    if assistant_model is not None:
        _check_assistant(model, assistant_model, static)
    strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
    if strings and tokenizer is None:
        raise UserError(f"stop_strings ({', '.join(map(repr, strings))}) require a tokenizer; pass tokenizer")
    if ids.ndim != 2 or mask.shape != ids.shape:
        raise UserError(f"token_ids {ids.shape} and padding_mask {mask.shape} must both be [rows, tokens]")
    for name, value in rows.items():
        if np.ndim(value) and len(value) != len(ids):
            raise UserError(f"{name} has {len(value)} values for {len(ids)} rows; give one for all rows or one per row")
    count = int(np.max(rows["max_new_tokens"], initial=0))
    if not len(ids):
        return _none(static, count)
    _check_prompts(model, ids, mask, rows["max_new_tokens"])
    if static.do_sample and "seed" not in rows:
        rows["seed"] = np.frombuffer(os.urandom(4 * len(ids)), np.int32)
    tensors = {name: tf.constant(np.broadcast_to(value, [len(ids)])) for name, value in rows.items()}
    names = tuple(sorted(rows))
    function = _compiled(model, static, names, strings, tokenizer if strings else None, assistant_model)
    outputs = function(tf.constant(ids, tf.int32), tf.constant(mask), tensors, tf.zeros([count], tf.int8))
    if np.any(bad := outputs["bad"].numpy()):
        raise CheckFailed(
            f"row {int(np.argmax(bad))}: the model's logits are not finite; the likely cause is its weights or a dtype "
            "with too narrow a range (float16)"
        )
    if not static.return_scores:
        return outputs["token_ids"]
    total = outputs.get("sequence_scores", tf.reduce_sum(outputs["scores"], 1))
    return Generated(outputs["token_ids"], outputs["scores"], outputs["lengths"], total)


def _none(options: Options, count: int):
    ids, scores = np.zeros((0, count), np.int32), np.zeros((0, count), np.float32)
    return Generated(ids, scores, ids.sum(1), scores.sum(1)) if options.return_scores else tf.constant(ids)


def _check_model(model, options: Options) -> None:
    check_can_generate(model)
    if model.config.attention not in ("full", "lean"):
        raise UserError(
            f"attention {model.config.attention!r} has no cache of keys and values; build the model with "
            "attention='full'"
        )
    if model.is_encoder_decoder and options.decoder_start_token_id is None:
        raise UserError("decoder_start_token_id is missing; set it to the id with which the decoder's texts begin")
    size = model.config.vocab_size
    if options.candidates > size:
        raise UserError(f"top_k ({options.candidates}) exceeds the model's {size} tokens; choose fewer candidates")
    named = {
        "eos_token_id": options.eos_token_id,
        "forced_bos_token_id": options.forced_bos_token_id,
        "forced_eos_token_id": options.forced_eos_token_id,
        "suppress_tokens": options.suppress_tokens,
        "begin_suppress_tokens": options.begin_suppress_tokens,
        "sequence_bias": [i for ids, _ in options.sequence_bias for i in ids],
        "pad_token_id": [options.pad_token_id],
        "decoder_start_token_id": [options.decoder_start_token_id],
        "bad_words_ids": [i for word in options.bad_words_ids for i in word],
    }
    for name, ids in named.items():
        for i in ids:
            if i is not None and not 0 <= i < size:
                raise UserError(f"{name} contains {i}, but the model's token ids are 0 to {size - 1}")


def _check_assistant(model, assistant, options: Options) -> None:
    _check_model(assistant, options)
    for name in ("num_beams", "penalty_alpha", "prompt_lookup_num_tokens"):
        if getattr(options, name) > (1 if name == "num_beams" else 0):
            raise UserError(f"{name} ({getattr(options, name)}) contradicts assistant_model; choose one")
    if assistant.config.vocab_size != model.config.vocab_size:
        raise UserError(
            f"assistant_model has vocab_size {assistant.config.vocab_size}, but the model has "
            f"{model.config.vocab_size}; choose an assistant with the same tokens"
        )
    if assistant.is_encoder_decoder != model.is_encoder_decoder:
        raise UserError(
            f"assistant_model {assistant.name!r} must be an encoder-decoder if and only if {model.name!r} is"
        )


def _check_prompts(model, ids, mask, max_new_tokens) -> None:
    size, counts = model.config.vocab_size, mask.sum(1)
    if (wrong := mask & ((ids < 0) | (ids >= size))).any():
        row, place = np.argwhere(wrong)[0]
        raise UserError(
            f"token_ids[{row}, {place}] is {ids[row, place]}, but the model's token ids are 0 to {size - 1}"
        )
    if not counts.all():
        raise UserError(f"token_ids: row {int(np.argmin(counts))} is an empty prompt; give it at least one token")
    config = model.config
    if model.is_encoder_decoder:
        counts = np.ones_like(counts)
    ends = config.positions not in ("relative", "none") and config.rotary_scaling.get("rope_type") != "dynamic"
    if ends and np.any(counts + max_new_tokens > config.max_positions):
        row = int(np.argmax(counts + max_new_tokens))
        most = int(np.broadcast_to(max_new_tokens, counts.shape)[row])
        raise UserError(
            f"max_new_tokens ({most}) after a prompt of {counts[row]} tokens (row {row}) exceeds the model's "
            f"max_positions ({config.max_positions}); choose at most {max(0, config.max_positions - counts[row])}"
        )


def _compiled(model, options: Options, names: tuple[str, ...], strings, tokenizer, assistant):
    """Returns `_function` as a graph, which is built once per model and options. It accepts arguments of any size."""
    # Bypasses Keras's attribute tracking, which would treat the graphs as part of the model.
    functions = model.__dict__.setdefault("_tfzoo_decoders", {})
    key = options, names, strings, id(tokenizer), id(assistant)
    if key not in functions:
        signature = [
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None, None], tf.bool),
            {name: tf.TensorSpec([None], ROWS[name][0]) for name in names},
            tf.TensorSpec([None], tf.int8),
        ]
        run = _function(model, options, names, strings, tokenizer, assistant)
        graph = tf.function(run, jit_compile=options.jit_compile or None, autograph=False)
        # The objects are kept alive together with the graph, so that no other object can get their ids.
        functions[key] = graph.get_concrete_function(*signature), tokenizer, assistant
    return functions[key][0]


def _function(model, options: Options, names, strings, tokenizer, assistant):
    """Returns a function (token_ids, padding_mask, rows, room [N]) -> the outputs of `decode`."""
    pieces = token_texts(tokenizer) if strings else ()
    stops = Stops(options.eos_token_id, [string_table(string.encode(), pieces) for string in strings])

    def run(token_ids, padding_mask, rows, room):
        # N is passed as a shape instead of a value, since XLA must know it at compile time.
        return decode(model, options, token_ids, padding_mask, rows, tf.shape(room)[0], stops, assistant)

    return run
