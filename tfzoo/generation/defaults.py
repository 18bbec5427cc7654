"""The decoding options that a caller did not give. Does not import TensorFlow."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfzoo.errors import UserError
from tfzoo.generation.options import SAMPLING

NEW_TOKENS = 64  # The default of max_new_tokens if neither the caller nor the model's folder specifies it.
# Options that select the search, with their defaults. If the caller sets one, those of the folder are ignored.
_SEARCHES = {"do_sample": False, "num_beams": 1, "penalty_alpha": 0.0, "prompt_lookup_num_tokens": 0}
_OF_BEAMS = ("num_beam_groups", "diversity_penalty", "early_stopping", "length_penalty")


def completed(
    explicit: Mapping[str, Any],
    folder: Mapping[str, Any],
    counts: Sequence[int],
    longest: int,
    new_tokens: int = NEW_TOKENS,
) -> dict[str, Any]:
    """Returns `explicit`, completed with options of the model's folder.

    Args:
      explicit: the options of the caller.
      folder: those of the folder; max_length and min_length include the prompt.
      counts: the number of tokens in each prompt, or 1 for a start token.
      longest: the model's maximum of tokens, which limits a max_new_tokens that nobody gave.
      new_tokens: that max_new_tokens.

    Raises:
      UserError: the folder's max_length is used up by a prompt.
    """
    folder = dict(folder)
    max_length, min_length = folder.pop("max_length", None), folder.pop("min_length", None)
    if any(explicit.get(name, off) != off for name, off in _SEARCHES.items()) or explicit.get("assistant_model"):
        folder = {name: value for name, value in folder.items() if name not in (*_SEARCHES, *_OF_BEAMS)}
    options = folder | dict(explicit)
    # Options of the folder that apply to a different search.
    idle = set() if options.get("do_sample") else {*SAMPLING} - ({"top_k"} if options.get("penalty_alpha") else set())
    if options.get("num_beams", 1) == 1:
        idle |= {*_OF_BEAMS}
        idle |= set() if options.get("do_sample") else {"num_return_sequences"}
    options = {name: value for name, value in options.items() if name in explicit or name not in idle}

    if "max_new_tokens" not in options:
        if max_length is not None:
            most = [max_length - count for count in counts]
            if min(most) < 1:
                row = int(np.argmin(most))
                raise UserError(
                    f"generation_config.json: max_length ({max_length}) is used up by the {counts[row]} tokens of "
                    f"prompt {row}; set max_new_tokens"
                )
        else:
            most = [max(1, min(new_tokens, longest - count)) for count in counts]
        options["max_new_tokens"] = np.array(most, np.int32)
    if min_length is not None and "min_new_tokens" not in options:
        least = np.maximum(min_length - np.array(counts, np.int32), 0)
        options["min_new_tokens"] = np.minimum(least, options["max_new_tokens"])
    return options
