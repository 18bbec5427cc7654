"""Answers that a language model writes during an evaluation."""

from collections.abc import Sequence

import numpy as np

from tfzoo.generation import texts


def answers(model, tokenizer, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """Returns the likeliest answers, token by token, to prompts of token ids.

    Args:
      model, tokenizer: as for generation.texts.generate_from.
      prompts: the ids of each prompt; one that leaves no position for an answer is answered with "".
      max_new_tokens: the maximum number of tokens of an answer.
    """
    used = [1 if model.is_encoder_decoder else len(prompt) for prompt in prompts]
    room = [min(max_new_tokens, model.config.max_positions - count) for count in used]
    which = [i for i, places in enumerate(room) if places > 0 and prompts[i]]
    found = [""] * len(prompts)
    if which:
        limits = np.array([room[i] for i in which], np.int32)
        chosen = [prompts[i] for i in which]
        written = texts.generate_from(model, chosen, tokenizer, do_sample=False, max_new_tokens=limits)
        for i, text in zip(which, written, strict=True):
            found[i] = text.strip()
    return found


def text_of(tokenizer, token_ids: Sequence[int]) -> str:
    """Returns the text of token ids, without special tokens."""
    return texts.decode_text(tokenizer, list(token_ids)).strip()
