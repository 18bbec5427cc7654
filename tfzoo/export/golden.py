"""golden.npz: inputs, and what the Keras model answers to them, computed eagerly and apart from the exports.

Arrays are named SIGNATURE/CASE/inputs/NAME and SIGNATURE/CASE/outputs/NAME. Logits would fill the file, so
there NAME is a group: `positions` [N, 2] (row, place) and `values` [N, V] at these, and for all places
`argmax`, `logsumexp` and `decided` [B, L], which says where the largest leads by more than the tolerance.
`words` is a group too: `values` and, again, `decided`, both [B, M, 5].
"""

import os
from typing import Any

import keras
import numpy as np

from tfzoo.export import savedmodel
from tfzoo.export.savedmodel import MASK
from tfzoo.text.wordpiece import WordPiece

_VALUES = 400_000  # Logits kept of one case, at most, where four places do not take more.
_TEXTS = (
    f"The {MASK} of the function is a {MASK}.",
    f"Größe, naïve café, Ωmega: {MASK} 東京 {MASK}! 🙂 ﬁn",
    "",
    "A text that hides no word.",
)


def tolerances(num_layers: int) -> dict[str, float]:
    """What is allowed, by depth, relative: of logits to the largest or to 1, of a probability to itself."""
    return {"logits": 2e-5, "probabilities": 2e-4} if num_layers < 12 else {"logits": 1e-4, "probabilities": 1e-3}


def token_cases(model: keras.Model, tokenizer: WordPiece) -> dict[str, dict[str, np.ndarray]]:
    """Inputs, by case: three batch sizes, lengths up to the longest, padded rows, non-ASCII text."""
    config = model.config
    random = np.random.default_rng(0)
    cases = {}
    longest = config.max_positions
    for batch, length in ((1, max(1, longest // 16)), (3, max(1, longest // 4)), (2, longest)):
        lengths = np.linspace(length, max(1, length // 3), batch).astype(int)  # The first row is full.
        cases[f"{batch}x{length}"] = _case(
            config,
            [random.integers(0, config.vocab_size, n) for n in lengths],
            lambda n: np.arange(n) >= n // 2,
        )
    rows = [_ids(tokenizer, text, longest - 2)[0] for text in _TEXTS]
    cases["text"] = _case(config, rows, lambda n: np.zeros(n, bool))
    return cases


def _case(config, rows, segments) -> dict[str, np.ndarray]:
    """Pads rows of ids to one length. `segments(n)`: which of a row's n tokens are in the second segment."""
    length = max(map(len, rows))
    inputs = {"token_ids": np.zeros((len(rows), length), np.int32)}
    if config.num_segments:
        inputs["segment_ids"] = np.zeros((len(rows), length), np.int32)
    inputs["padding_mask"] = np.zeros((len(rows), length), bool)
    for i, ids in enumerate(rows):
        inputs["token_ids"][i, : len(ids)] = ids
        inputs["padding_mask"][i, : len(ids)] = True
        if config.num_segments > 1:
            inputs["segment_ids"][i, : len(ids)] = segments(len(ids))
    return inputs


def logits(model: keras.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The group of arrays that stands for logits [B, L, V]."""
    values = np.asarray(model(inputs)["logits"])
    batch, length, vocab = values.shape
    least = 2 * tolerances(model.config.num_layers)["logits"] * max(1.0, np.abs(values).max())
    logsumexp, decided = np.zeros((batch, length), np.float32), np.zeros((batch, length), bool)
    for i, row in enumerate(values):  # One by one, to save memory.
        second, largest = np.partition(row.astype(np.float64), (-2, -1))[:, -2:].T
        logsumexp[i] = np.log(np.exp(row - largest[:, None]).sum(-1)) + largest
        decided[i] = largest - second > least
    count = min(batch * length, max(4, _VALUES // vocab))
    places = np.linspace(0, batch * length - 1, count).astype(int)  # The first and the last among them.
    positions = np.stack([places // length, places % length], axis=1).astype(np.int32)
    return {
        "positions": positions,
        "values": values[positions[:, 0], positions[:, 1]],
        "argmax": values.argmax(-1).astype(np.int32),
        "logsumexp": logsumexp,
        "decided": decided,
    }


def text_cases(model: keras.Model) -> dict[str, list[str]]:
    """Texts, by case: three batch sizes and none; non-ASCII, empty, without [MASK], over the longest."""
    long = f"{MASK} " + "a " * model.config.max_positions + MASK
    return {"0": [], "1": [_TEXTS[0]], "2": [_TEXTS[1], long], "4": list(_TEXTS)}


def words(model: keras.Model, tokenizer: WordPiece, texts: list[str]) -> dict:
    """What serving_default answers, row by row and without padding, ranked by NumPy."""
    config = model.config
    readable = savedmodel.readable(tokenizer, config.vocab_size)
    top = min(savedmodel.TOP, int(readable.sum()))
    vocab = np.array(tokenizer.vocab + [""] * (config.vocab_size - tokenizer.vocab_size))
    encoded = [_ids(tokenizer, text, config.max_positions - 2) for text in texts]
    masks = [[i for i, token in enumerate(ids) if token == tokenizer.mask_id] for ids, _ in encoded]
    shape = (len(texts), max(map(len, masks), default=0), top)
    found = np.zeros(shape, vocab.dtype)
    probabilities, decided = np.zeros(shape, np.float32), np.ones(shape, bool)
    tolerance = tolerances(config.num_layers)["probabilities"]
    for row, ((ids, _), places) in enumerate(zip(encoded, masks)):
        if not places:
            continue
        inputs = {"token_ids": np.array([ids], np.int32), "padding_mask": np.ones((1, len(ids)), bool)}
        values = np.asarray(model(inputs | {"masked_positions": np.array([places], np.int32)})["logits"])[0]
        chances = np.exp(values.astype(np.float64) - values.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        for column, chance in enumerate(np.where(readable, chances, -1)):
            order = np.argsort(-chance, kind="stable")[: top + 1]
            found[row, column] = vocab[order[:top]]
            probabilities[row, column] = chance[order[:top]]
            # A word's rank is decided where it leads the next by more than the tolerance, and is so led.
            apart = chance[order[:-1]] > chance[order[1:]] * (1 + 2 * tolerance)
            apart = np.append(apart, np.ones(top - len(apart), bool))
            decided[row, column] = apart & np.append(True, apart[:-1])
    return {
        "words": {"values": found, "decided": decided},
        "probabilities": probabilities,
        "num_masks": np.array([len(places) for places in masks], np.int32),
        "truncated": np.array([cut for _, cut in encoded], bool),
    }


def _ids(tokenizer: WordPiece, text: str, room: int) -> tuple[list[int], bool]:
    """[CLS], at most `room` tokens of a text, [SEP]; and whether it was cut."""
    ids = tokenizer.tokenize([text], special=(MASK,))[0].numpy().tolist()
    return [tokenizer.cls_id, *ids[:room], tokenizer.sep_id], len(ids) > room


def write(path: str | os.PathLike, signatures: dict) -> None:
    """Writes {signature: {case: {"inputs" or "outputs": {name: array or group of arrays}}}}."""
    flat: dict[str, Any] = {}

    def add(values: dict, prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                add(value, f"{prefix}{name}/")
            else:
                flat[prefix + name] = value

    add(signatures, "")
    np.savez_compressed(path, **flat)
