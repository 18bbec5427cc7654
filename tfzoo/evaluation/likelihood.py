"""Log-probabilities of the tokens of a text, including texts that are longer than the model's maximum length.

A text that is longer than the model's length L is read in windows of L tokens with a stride S. Each token is scored in
the first window that contains it: except in the first window, it is preceded by at least L - S tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfzoo.errors import CheckFailed, UserError
from tfzoo.generation.folder import special_ids
from tfzoo.generation.prompt import table_length
from tfzoo.generation.texts import encode, prompt_frame
from tfzoo.text.framing import encoder_decoder_ends


class Likelihood(NamedTuple):
    """The scores of N tokens of a text; a token without a preceding one has no score."""

    token_ids: list[int]  # N
    scores: list[float]  # N, natural logarithms of their probabilities.
    likeliest: list[bool]  # N, whether the token is the most likely one according to the model.

    @property
    def log_likelihood(self) -> float:
        return float(sum(self.scores))

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; NaN if there are no tokens."""
        return float(np.exp(-self.log_likelihood / len(self.scores))) if self.scores else float("nan")


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
    _check(model)
    if model.is_encoder_decoder:
        raise UserError(f"model {model.name!r} is an encoder-decoder: provide a context and a continuation")
    before, _ = prompt_frame(model, tokenizer)
    rows = []
    for i, ids in enumerate(encode(tokenizer, texts)):
        if len(before) + len(ids) < 2 or not ids:
            raise UserError(f"text {i} ({texts[i]!r}) is too short: the model scores a token given the previous one")
        rows.append([*before, *ids])
    return score_ids(model, rows, [max(1, len(before))] * len(rows), **options)


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
    _check(model)
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
        full_ids = encode(tokenizer, [a + b for a, b in zip(contexts, continuations, strict=True)])
        context_ids = encode(tokenizer, [context.rstrip() for context in contexts])
        if not before and tokenizer.bos_id is not None and any(not ids for ids in context_ids):
            before = [tokenizer.bos_id]  # An empty context is replaced with the beginning-of-text token.
        rows = [[*before, *ids] for ids in full_ids]
        firsts = [len(before) + len(ids) for ids in context_ids]
    for i, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        if first < 1:
            raise UserError(f"context {i} is empty, and there is no beginning-of-text token; provide a context")
        if first >= len(row):
            raise UserError(
                f"continuation {i} ({continuations[i]!r}) adds no token to its context; provide a longer one"
            )
    return score_ids(model, rows, firsts, **options)


def windows(count: int, first: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields windows (begin, end, from): tokens begin to end - 1 are read together, those from `from` on are scored.

    Args:
      count: number of tokens of the text.
      first: index of the first token to score, at least 1.
      length: maximum number of tokens that the model reads, at least 2.
      stride: distance between windows, from 1 to length - 1.
    """
    if count - first < length:  # All scored tokens and the one before them fit into one window; the rest is context.
        yield max(0, count - length), count, first
        return
    # The first window that scores a token begins as late as possible while still scoring `first`.
    done, begin = first, 0
    while done < count:
        end = min(begin + length, count)
        if end > done:
            yield begin, end, max(done, begin + 1)
            done = end
        begin += stride


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
      length: number of tokens per window; None means max_positions.
      stride: distance between windows; None means half the length.
      batch_size: number of windows per batch.

    Returns:
      The likelihood of each row.

    Raises:
      UserError: the length or the stride is out of bounds, or a row of an encoder-decoder is too long.
      CheckFailed: the model's logits are not finite.
    """
    max_length = model.config.max_positions
    length = max_length if length is None else length
    stride = max(1, length // 2) if stride is None else stride
    if not 2 <= length <= max_length:
        raise UserError(f"length ({length}) must be from 2 to the model's max_positions ({max_length})")
    if not 1 <= stride < length:
        raise UserError(f"stride ({stride}) must be from 1 to length - 1 ({length - 1})")
    for noun, texts in (("continuation", rows), ("context", sources)) if sources is not None else ():
        limited = noun == "continuation" or table_length(model) is not None
        if limited and max(map(len, texts), default=0) > length:
            i = int(np.argmax([len(text) for text in texts]))
            raise UserError(f"{noun} {i} has {len(texts[i])} tokens, but the model reads at most {length}; shorten it")
    parts = [
        (row, *window)
        for row, (ids, first) in enumerate(zip(rows, firsts, strict=True))
        for window in windows(len(ids), first, length, stride)
    ]
    likelihoods = [Likelihood([], [], []) for _ in rows]
    compute = _compiled(model)
    for start in range(0, len(parts), batch_size):
        batch = parts[start : start + batch_size]
        ids = _padded([rows[row][begin:end] for row, begin, end, _ in batch])
        read = () if sources is None else _padded([sources[row] for row, *_ in batch], masked=True)
        scores, best = (x.numpy() for x in compute(ids, *read))
        for i, (row, begin, end, first) in enumerate(batch):
            scored = slice(first - begin - 1, end - begin - 1)
            if not np.all(np.isfinite(scores[i, scored])):
                raise CheckFailed(f"row {row}: the model's logits are not finite; check its weights")
            likelihoods[row].token_ids.extend(int(t) for t in rows[row][first:end])
            likelihoods[row].scores.extend(float(s) for s in scores[i, scored])
            likelihoods[row].likeliest.extend(bool(b) for b in best[i, scored])
    return likelihoods


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


def _check(model) -> None:
    if not model.can_generate:
        raise UserError(
            f"model {model.name!r} has no causal decoder with an 'lm' head; use a model such as gpt2, llama or t5"
        )
