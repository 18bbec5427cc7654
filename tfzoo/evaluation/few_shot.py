"""Asks a language model for the labels of texts, by the likelihood of the labels' words or by a completion."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfzoo.errors import UserError
from tfzoo.evaluation import likelihood, prompts
from tfzoo.evaluation.prompts import Example, Template
from tfzoo.generation.texts import encode, generate_text, prompt_frame

LIKELIHOOD, COMPLETION = METHODS = ("likelihood", "completion")
SUM, MEAN = SCORES = ("sum", "mean")
# A text and a label can have a token or two more together than alone.
_SPARE = 2
_MORE_TOKENS = 4  # Of a completion, in addition to those of the longest label.


class Question(NamedTuple):
    """A text to classify, and the examples that precede it."""

    texts: tuple[str, ...]
    examples: tuple[Example, ...]


class Asker:
    """Classifies texts with a language model.

    Args:
      model, tokenizer: as returned by tfzoo.load; a causal decoder or an encoder-decoder with a language-model head.
        An encoder-decoder reads the prompt in its encoder, and the label is its decoder's text.
      template: the template, with the words of the labels.
      length: the maximum number of tokens that the model reads; None means max_positions.
      method: "likelihood" or "completion".
      score: "sum" or "mean", of the log-probabilities of the tokens of a label's words.
      calibrate: whether the likelihoods are calibrated; see prompts.calibrated.
      batch_size: the number of prompts per batch.

    Attributes:
      dropped: the number of examples that were dropped, because a prompt was longer than the model reads.
      shortened: the number of texts that were too long even without examples, and were cut at their end.
      unmatched: the number of completions that contain no label.

    Raises:
      UserError: the model does not generate, or the options contradict each other.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        template: Template,
        *,
        length: int | None = None,
        method: str = LIKELIHOOD,
        score: str = SUM,
        calibrate: bool = False,
        batch_size: int = 8,
    ):
        if not model.can_generate:
            raise UserError(
                f"model {model.name!r} has no causal decoder with an 'lm' head; use a model such as gpt2, llama or t5"
            )
        if method == COMPLETION and (calibrate or score != SUM):
            raise UserError("--calibrate and --score: apply to --method=likelihood; omit them")
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._method, self._score, self._calibrate, self._batch_size = method, score, calibrate, batch_size
        most = model.config.max_positions
        length = most if length is None else length
        if length > most:
            raise UserError(f"--sequence_length={length}: the model reads at most {most} tokens; use a smaller value")
        before, after = prompt_frame(model, tokenizer)
        space = "" if model.is_encoder_decoder else template.space
        self._continuations = [space + word for word in template.words]
        self._label_tokens = max(map(len, encode(tokenizer, self._continuations)))
        if method == COMPLETION:
            self._label_tokens += _MORE_TOKENS
        answer = 0 if model.is_encoder_decoder else self._label_tokens
        self._room = length - len(before) - len(after) - answer - _SPARE
        if self._room < 1:
            raise UserError(
                f"sequence_length={length}: leaves no room for a text in addition to the labels; use a larger value"
            )
        self.dropped = self.shortened = self.unmatched = 0

    def answers(self, questions: Sequence[Question]) -> list[int]:
        """Returns the number of the label of each text, or prompts.NO_ANSWER."""
        asked = self._fitting(questions)
        if self._method == COMPLETION:
            return self._completed([self._template.prompt(*question) for question in asked])
        scores = self.scores(asked)
        if self._calibrate:
            free = [
                Question((text,) * len(question.texts), question.examples)
                for question in asked
                for text in prompts.CONTENT_FREE
            ]
            shape = (len(asked), len(prompts.CONTENT_FREE), -1)
            scores = prompts.calibrated(scores, self.scores(free).reshape(shape))
        return scores.argmax(1).tolist()

    def scores(self, questions: Sequence[Question]) -> np.ndarray:
        """Returns the sum or the mean of the log-probabilities of each label's words after each prompt, float64
        [N, C]."""
        contexts, continuations = [], []
        for question in questions:
            contexts += [self._template.prompt(*question)] * len(self._continuations)
            continuations += self._continuations
        order = sorted(range(len(contexts)), key=lambda i: -len(contexts[i]))  # Batches of similar length.
        found = likelihood.score_continuations(
            self._model,
            [contexts[i] for i in order],
            [continuations[i] for i in order],
            self._tokenizer,
            batch_size=self._batch_size,
        )
        values = np.zeros(len(contexts))
        for i, one in zip(order, found, strict=True):
            values[i] = one.log_likelihood / (len(one.scores) if self._score == MEAN else 1)
        return values.reshape(len(questions), -1)

    def _completed(self, texts: list[str]) -> list[int]:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        answers = [prompts.NO_ANSWER] * len(texts)
        for first in range(0, len(order), self._batch_size):
            batch = order[first : first + self._batch_size]
            completions = generate_text(
                self._model,
                [texts[i] for i in batch],
                self._tokenizer,
                max_new_tokens=self._label_tokens,
                do_sample=False,
                num_beams=1,
            )
            for i, completion in zip(batch, completions, strict=True):
                answers[i] = prompts.matched(completion.split(self._template.end)[0], self._template.words)
        self.unmatched += answers.count(prompts.NO_ANSWER)
        return answers

    def _fitting(self, questions: Sequence[Question]) -> list[Question]:
        """Returns the questions without the earliest examples of prompts that are too long; counts those."""
        fitting = list(questions)
        waiting = list(range(len(fitting)))
        shortened = set()
        while waiting:
            counts = [
                len(ids) for ids in encode(self._tokenizer, [self._template.prompt(*fitting[i]) for i in waiting])
            ]
            waiting = [i for i, count in zip(waiting, counts, strict=True) if count > self._room]
            for i, count in zip(waiting, [count for count in counts if count > self._room], strict=True):
                texts, examples = fitting[i]
                if examples:
                    fitting[i] = Question(texts, examples[1:])
                    self.dropped += 1
                else:
                    fitting[i] = Question(_shorter(texts, self._room / count), ())
                    shortened.add(i)
        self.shortened += len(shortened)
        return fitting


def _shorter(texts: tuple[str, ...], share: float) -> tuple[str, ...]:
    """Returns texts of which the longest is cut, so that about a share of all characters remains."""
    longest = max(range(len(texts)), key=lambda i: len(texts[i]))
    if not texts[longest]:
        raise UserError("--template: is longer than the model reads; use a shorter one, or a larger --sequence_length")
    excess = max(1, int(sum(map(len, texts)) * (1 - share)))
    return tuple(text[: max(0, len(text) - excess)] if i == longest else text for i, text in enumerate(texts))
