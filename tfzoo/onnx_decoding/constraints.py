"""Constraints on the next token in NumPy: what tfzoo.generation.constraints computes with tensors."""

from collections.abc import Collection, Mapping

import numpy as np

from tfzoo.generation.options import Options

_FORBIDDEN = np.float32(-np.inf)


def constrain(
    options: Options, rows: Mapping[str, np.ndarray], history: np.ndarray, step: int, logits: np.ndarray
) -> np.ndarray:
    """Returns logits [B, V] with -inf for tokens that may not follow, and changed values for penalised ones.

    Args:
      options: Options.
      rows: arrays [B] by names of parameters; "source", int [B, S], the encoder's input or the prompt, with -1 for
        padding.
      history: int [B, T], the tokens so far including the prompt, the newest last, with -1 for padding.
      step: the number of new tokens so far.
      logits: logits of a language model, or log-probabilities, float32 [B, V].
    """
    size = logits.shape[-1]
    if options.sequence_bias:
        logits = logits + _bias(history, options, size)
    if options.encoder_repetition_penalty != 1:
        penalty = np.float32(1 / options.encoder_repetition_penalty)
        marks = _mark(rows["source"], rows["source"] >= 0, size)
        logits = np.where(marks, np.where(logits < 0, logits * penalty, logits / penalty), logits)
    if "repetition_penalty" in rows:
        penalties = rows["repetition_penalty"][:, None]
        lower = np.where(logits < 0, logits * penalties, logits / penalties)
        logits = np.where(_mark(history, history >= 0, size), lower, logits)
    if "presence_penalty" in rows:
        new = (np.arange(history.shape[1]) >= history.shape[1] - step) & (history >= 0)
        logits = np.where(_mark(history, new, size), logits - rows["presence_penalty"][:, None], logits)
    if n := options.no_repeat_ngram_size:
        logits = np.where(_repeats(history, history, n, size), _FORBIDDEN, logits)
    if n := options.encoder_no_repeat_ngram_size:
        logits = np.where(_repeats(rows["source"], history, n, size), _FORBIDDEN, logits)
    if options.bad_words_ids:
        logits = np.where(_bad_words(history, options, size), _FORBIDDEN, logits)
    if "min_new_tokens" in rows and options.eos_token_id:
        early = (rows["min_new_tokens"] > step)[:, None]
        logits = np.where(early & _one_of(options.eos_token_id, size), _FORBIDDEN, logits)
    if step < len(options.forced_bos_token_id):
        logits = _only([options.forced_bos_token_id[step]], logits)
    if options.forced_eos_token_id:
        last = (rows["max_new_tokens"] == step + 1)[:, None]
        logits = np.where(last, _only(options.forced_eos_token_id, logits), logits)
    if options.exponential_decay_length_penalty and options.eos_token_id:
        begin, factor = options.exponential_decay_length_penalty
        if step > begin:
            growth = np.float32(factor) ** np.float32(step - begin) - np.float32(1)
            changed = _one_of(options.eos_token_id, size) & np.isfinite(logits)
            with np.errstate(invalid="ignore"):  # Infinite logits stay as they are.
                logits = np.where(changed, logits + np.abs(logits) * growth, logits)
    if options.suppress_tokens:
        logits = np.where(_one_of(options.suppress_tokens, size), _FORBIDDEN, logits)
    if options.begin_suppress_tokens and step == len(options.forced_bos_token_id):
        logits = np.where(_one_of(options.begin_suppress_tokens, size), _FORBIDDEN, logits)
    return logits


def _mark(ids: np.ndarray, marks: np.ndarray, size: int) -> np.ndarray:
    """Returns bool [B, size], True for the ids of ids [B, T] that marks bool [B, T] marks in their row."""
    found = np.zeros((len(ids), size), bool)
    row, place = np.nonzero(marks)
    found[row, ids[row, place]] = True
    return found


def _ends(history: np.ndarray, ids: Collection[int]) -> np.ndarray:
    """Returns bool [B], whether the newest tokens are `ids`."""
    if len(ids) > history.shape[1]:
        return np.zeros(len(history), bool)
    return (history[:, history.shape[1] - len(ids) :] == np.array(ids)).all(1)


def _repeats(among: np.ndarray, history: np.ndarray, n: int, size: int) -> np.ndarray:
    """Returns bool [B, size]: tokens that would make the last n tokens of `history` an n-gram that is in `among`."""
    count = among.shape[1] - (n - 1)  # Windows of n - 1 tokens and the one that follows.
    if count < 1 or history.shape[1] < n - 1:
        return np.zeros((len(history), size), bool)
    same = among[:, n - 1 :] >= 0
    for i in range(n - 1):
        last = history[:, history.shape[1] - (n - 1) + i][:, None]
        same &= (among[:, i : count + i] == last) & (last >= 0)
    return _mark(among[:, n - 1 :], same, size)


def _bias(history: np.ndarray, options: Options, size: int) -> np.ndarray:
    """Returns float32 [B, size], the biases to add to the logits of tokens that complete a group with a bias."""
    total = np.zeros((len(history), size), np.float32)
    for ids, bias in options.sequence_bias:
        total[_ends(history, ids[:-1]), ids[-1]] += np.float32(bias)
    return total


def _bad_words(history: np.ndarray, options: Options, size: int) -> np.ndarray:
    """Returns bool [B, size]: tokens that would complete a bad word. A token that ends the text is never one."""
    banned = np.zeros((len(history), size), bool)
    for word in options.bad_words_ids:
        if len(word) > 1 or word[0] not in options.eos_token_id:
            banned[_ends(history, word[:-1]), word[-1]] = True
    return banned


def _one_of(ids: Collection[int], size: int) -> np.ndarray:
    marks = np.zeros((1, size), bool)
    marks[0, list(ids)] = True
    return marks


def _only(ids: Collection[int], logits: np.ndarray) -> np.ndarray:
    """Returns logits with which only `ids` may follow, all of them equally likely."""
    return np.where(_one_of(ids, logits.shape[-1]), np.float32(0), np.full_like(logits, _FORBIDDEN))
