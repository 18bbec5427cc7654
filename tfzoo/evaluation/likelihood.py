"""How likely a model finds a text: each token's log-probability, also past the model's length.

Of a text of n tokens longer than the model's length L, windows of L tokens are read, a stride S apart, and a token is
judged by the first window that holds it: it sees at least L - S tokens before it, but for those of the first window.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfzoo.errors import CheckFailed, UserError
from tfzoo.generation.folder import special_ids
from tfzoo.generation.prompt import table_length
from tfzoo.generation.texts import encode, prompt_frame


class Likelihood(NamedTuple):
    """Of the N tokens of a text that are judged; the first of all has nothing to be judged by."""

    token_ids: list[int]  # N
    scores: list[float]  # N, natural logarithms of their probabilities.
    likeliest: list[bool]  # N, whether the model would have said this very token.

    @property
    def log_likelihood(self) -> float:
        return float(sum(self.scores))

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; NaN of no token."""
        return float(np.exp(-self.log_likelihood / len(self.scores))) if self.scores else float("nan")


def score_texts(model, texts: Sequence[str], tokenizer, **how) -> list[Likelihood]:
    """The likelihood of texts, as they are, without an end.

    Args:
      model: a causal decoder with a language model head.
      texts: strings; the families' beginning, where there is one, is put before each, and the first token is then
        judged, too.
      tokenizer: the model's.
      **how: of score_ids.

    Raises:
      UserError: an encoder-decoder, or a text of which no token can be judged.
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
    return score_ids(model, rows, [max(1, len(before))] * len(rows), **how)


def score_continuations(
    model, contexts: Sequence[str], continuations: Sequence[str], tokenizer, **how
) -> list[Likelihood]:
    """The likelihood of each continuation after its context, as zero-shot tasks ask for it.

    A decoder's context and continuation are tokenized as one text, and the tokens beyond the context's count are the
    continuation's; spaces that the context ends with are the continuation's (as EleutherAI's lm-evaluation-harness has
    it, TemplateLM._encode_pair). A context too long loses its beginning. An encoder-decoder reads the context, framed
    as it was trained, and says the continuation.

    Args and raises: as of score_texts.
    """
    _check(model)
    if model.is_encoder_decoder:
        before, after = prompt_frame(model, tokenizer)
        sources = [[*before, *ids, *after] for ids in encode(tokenizer, contexts)]
        start = special_ids(model).get("decoder_start_token_id", tokenizer.pad_id)
        if start is None:
            raise UserError(
                "decoder_start_token_id is missing: neither the folder nor the tokenizer's padding token defines it"
            )
        before = [start, *before]
        rows = [[*before, *ids] for ids in encode(tokenizer, continuations)]
        firsts = [len(before)] * len(rows)
        how["sources"] = sources
    else:
        before, _ = prompt_frame(model, tokenizer)
        whole = encode(tokenizer, [a + b for a, b in zip(contexts, continuations, strict=True)])
        heads = encode(tokenizer, [context.rstrip() for context in contexts])
        if not before and tokenizer.bos_id is not None and any(not head for head in heads):
            before = [tokenizer.bos_id]  # Nothing comes before: then what begins a text.
        rows = [[*before, *ids] for ids in whole]
        firsts = [len(before) + len(head) for head in heads]
    for i, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        if first < 1:
            raise UserError(f"context {i} is empty, and there is no beginning-of-text token; provide a context")
        if first >= len(row):
            raise UserError(
                f"continuation {i} ({continuations[i]!r}) adds no token to its context; provide a longer one"
            )
    return score_ids(model, rows, firsts, **how)


def windows(count: int, first: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, from): tokens begin to end - 1 are read together, and those of them that are at least `from` judged.

    Args:
      count: of the text's tokens.
      first: the first to be judged, at least 1.
      length: tokens that the model reads at most, at least 2.
      stride: how far windows are apart, from 1 to length - 1.
    """
    if count - first < length:  # What is judged, and a token before it, fits: as much before it as there is room for.
        yield max(0, count - length), count, first
        return
    # The window that is the first to judge something begins as late as it may and still judge `first`.
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
    """The likelihood of ids.

    Args:
      model: with a causal decoder and a language model head.
      rows: token ids, with what begins a text.
      firsts: of each row the first token to be judged, at least 1.
      sources: of an encoder-decoder, what its encoder reads.
      length: tokens read together; None is max_positions.
      stride: how far windows are apart; None is half the length.
      batch_size: windows at a time.

    Raises:
      UserError: a length or a stride that the model has no room for.
      CheckFailed: the model's logits are not numbers.
    """
    most = model.config.max_positions
    length = most if length is None else length
    stride = max(1, length // 2) if stride is None else stride
    if not 2 <= length <= most:
        raise UserError(f"length ({length}) must be from 2 to the model's max_positions ({most})")
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
    found = [Likelihood([], [], []) for _ in rows]
    compute = _compiled(model)
    for start in range(0, len(parts), batch_size):
        batch = parts[start : start + batch_size]
        ids = _padded([rows[row][begin:end] for row, begin, end, _ in batch])
        read = () if sources is None else _padded([sources[row] for row, *_ in batch], masked=True)
        scores, best = (x.numpy() for x in compute(ids, *read))
        for i, (row, begin, end, first) in enumerate(batch):
            judged = slice(first - begin - 1, end - begin - 1)
            if not np.all(np.isfinite(scores[i, judged])):
                raise CheckFailed(f"row {row}: the model's logits are not finite; check its weights")
            found[row].token_ids.extend(int(t) for t in rows[row][first:end])
            found[row].scores.extend(float(s) for s in scores[i, judged])
            found[row].likeliest.extend(bool(b) for b in best[i, judged])
    return found


def _compiled(model):
    """(ids int32 [B, L], and of an encoder-decoder source ids and mask [B, M]) -> (log-probabilities float32 [B, L - 1]
    of the tokens from the second on, bool [B, L - 1]: which are the likeliest)."""
    if "_tfzoo_scorer" not in model.__dict__:
        ids = tf.TensorSpec([None, None], tf.int32)
        source = (ids, tf.TensorSpec([None, None], tf.bool)) if model.is_encoder_decoder else ()

        def run(token_ids, source_ids=None, source_mask=None):
            inputs: dict[str, Any] = {"token_ids": token_ids[:, :-1]}
            if source_ids is not None:
                inputs = {"token_ids": source_ids, "padding_mask": source_mask, "decoder_token_ids": token_ids[:, :-1]}
            sequence = model.body(inputs, False)["sequence"]

            def judge(row):  # One row's logits at a time: those of all would be the most that memory holds.
                states, targets = row
                logits = tf.cast(model.next_logits(states[None])[0], tf.float32)
                chosen = tf.gather(logits, targets, batch_dims=1)
                return chosen - tf.reduce_logsumexp(logits, -1), chosen >= tf.reduce_max(logits, -1)

            return tf.map_fn(judge, (sequence, token_ids[:, 1:]), fn_output_signature=(tf.float32, tf.bool))

        model.__dict__["_tfzoo_scorer"] = tf.function(run, input_signature=(ids, *source), autograph=False)
    return model.__dict__["_tfzoo_scorer"]


def _padded(rows: Sequence[Sequence[int]], masked: bool = False):
    """ids int32 [B, L], padded at the end, which no token before it sees; where asked for with what is real."""
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
