"""Log-probabilities of the tokens of a text, including texts that are longer than the model's maximum length.

Texts are read in windows: see tfzoo.evaluation.windows.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.evaluation.windows import Likelihood, check_rows, rows_of_continuations, rows_of_texts, score_rows
from tfzoo.generation.folder import check_can_generate, special_ids
from tfzoo.generation.prompt import table_length
from tfzoo.generation.texts import encode, prompt_frame
from tfzoo.text.framing import encoder_decoder_ends


def score_texts(model, texts: Sequence[str], tokenizer, **options) -> list[Likelihood]:
    """Scores texts verbatim, without an end-of-text token.

    Args:
      model: a causal decoder with a language-model head.
      texts: strings; if the family uses a beginning-of-text token, it is added before each text, and the first token
        of the text is scored as well.
      tokenizer: the tokenizer of the model.
      **options: arguments of score_ids.

    Returns:
      The likelihood of each text.

    Raises:
      UserError: the model is an encoder-decoder, or no token of a text can be scored.
    """
    check_can_generate(model)
    if model.is_encoder_decoder:
        raise UserError(f"model {model.name!r} is an encoder-decoder: provide a context and a continuation")
    before, _ = prompt_frame(model, tokenizer)
    return score_ids(model, *rows_of_texts(before, encode(tokenizer, texts), texts), **options)


def score_continuations(
    model, contexts: Sequence[str], continuations: Sequence[str], tokenizer, **options
) -> list[Likelihood]:
    """Scores each continuation given its context, as required by zero-shot tasks.

    For a decoder, context and continuation are tokenized as one text, and the tokens beyond the number of tokens of the
    context belong to the continuation; trailing spaces of the context belong to the continuation (as in
    TemplateLM._encode_pair of EleutherAI's lm-evaluation-harness). The beginning of a too long context is dropped. An
    encoder-decoder reads the context in its encoder, with the special tokens used in training, and scores the
    continuation in its decoder.

    Args:
      model, tokenizer, **options: as for score_texts; the model may also be an encoder-decoder.
      contexts: strings.
      continuations: strings, one per context.

    Returns:
      The likelihood of each continuation.

    Raises:
      UserError: a context or a continuation has no tokens, or an encoder-decoder's are too long.
    """
    check_can_generate(model)
    if model.is_encoder_decoder:
        before, after = prompt_frame(model, tokenizer)
        sources = [[*before, *ids, *after] for ids in encode(tokenizer, contexts)]
        in_run = model.record is None or not model.record.config  # The model of a run.
        trained_start = encoder_decoder_ends(tokenizer).start if in_run else tokenizer.pad_id
        start = special_ids(model).get("decoder_start_token_id", trained_start)
        if start is None:
            raise UserError(
                "decoder_start_token_id is missing: neither the folder nor the tokenizer's padding token defines it"
            )
        before = [start, *before]
        rows = [[*before, *ids] for ids in encode(tokenizer, continuations)]
        firsts = [len(before)] * len(rows)
        options["sources"] = sources
    else:
        before, _ = prompt_frame(model, tokenizer)
        tokenize = functools.partial(encode, tokenizer)
        rows, firsts = rows_of_continuations(before, tokenizer.bos_id, tokenize, contexts, continuations)
    check_rows(rows, firsts, continuations)
    return score_ids(model, rows, firsts, **options)


def score_ids(
    model,
    rows: Sequence[Sequence[int]],
    firsts: Sequence[int],
    *,
    sources: Sequence[Sequence[int]] | None = None,
    length: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
) -> list[Likelihood]:
    """Scores token ids.

    Args:
      model: a model with a causal decoder and a language-model head.
      rows: token ids, including the tokens that begin a text.
      firsts: for each row, the index of the first token to score, at least 1.
      sources: for an encoder-decoder, the token ids that its encoder reads.
      length, stride, batch_size: see windows.score_rows, whose results and errors are those of this function.
    """
    compute = _compiled(model)

    def scores_of(ids, read):
        tensors = () if read is None else _padded(read, masked=True)
        return tuple(x.numpy() for x in compute(_padded(ids), *tensors))

    return score_rows(
        scores_of,
        rows,
        firsts,
        sources=sources,
        length=length,
        stride=stride,
        batch_size=batch_size,
        max_length=model.config.max_positions,
        limits_sources=table_length(model) is not None,
    )


def _compiled(model):
    """Returns the compiled scoring function.

    It maps ids int32 [B, L], and for an encoder-decoder source ids and mask [B, M], to the log-probabilities float32
    [B, L - 1] of the tokens from the second on, and to whether each is the most likely token, bool [B, L - 1].
    """
    if "_tfzoo_scorer" not in model.__dict__:
        ids = tf.TensorSpec([None, None], tf.int32)
        source = (ids, tf.TensorSpec([None, None], tf.bool)) if model.is_encoder_decoder else ()

        def run(token_ids, source_ids=None, source_mask=None):
            inputs: dict[str, Any] = {"token_ids": token_ids[:, :-1]}
            if source_ids is not None:
                inputs = {"token_ids": source_ids, "padding_mask": source_mask, "decoder_token_ids": token_ids[:, :-1]}
            sequence = model.body(inputs, False)["sequence"]

            def score(row):  # One row at a time: the logits of all rows would dominate memory use.
                states, targets = row
                logits = tf.cast(model.next_logits(states[None])[0], tf.float32)
                chosen = tf.gather(logits, targets, batch_dims=1)
                return chosen - tf.reduce_logsumexp(logits, -1), chosen >= tf.reduce_max(logits, -1)

            return tf.map_fn(score, (sequence, token_ids[:, 1:]), fn_output_signature=(tf.float32, tf.bool))

        model.__dict__["_tfzoo_scorer"] = tf.function(run, input_signature=(ids, *source), autograph=False)
    return model.__dict__["_tfzoo_scorer"]


def _padded(rows: Sequence[Sequence[int]], masked: bool = False):
    """Returns ids int32 [B, L], padded at the end, where causal attention ignores the padding; if `masked`, also the
    mask of real tokens."""
    width = max(map(len, rows))
    ids = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    mask = np.arange(width) < np.array([len(row) for row in rows])[:, None]
    return (tf.constant(ids), tf.constant(mask)) if masked else tf.constant(ids)
