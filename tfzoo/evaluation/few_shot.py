"""Asks a language model for the labels of texts, by the likelihood of the labels' words or by a completion."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfzoo.errors import UserError
from tfzoo.evaluation import likelihood, prompts
from tfzoo.evaluation.prompts import COMPLETION, LIKELIHOOD, MEAN, SUM, Example, Template
from tfzoo.generation.folder import check_can_generate
from tfzoo.generation.texts import encode, generate_text, prompt_frame

# A text and a label can have a token or two more together than alone.
_SPARE = 2
_MORE_TOKENS = 4  # Of a completion, in addition to those of the longest label.


class Question(NamedTuple):
    """A text to classify, the examples that precede it, and the words of its labels if they differ from row to row."""

    texts: tuple[str, ...]
    examples: tuple[Example, ...]
    words: tuple[str, ...] | None = None


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
        check_can_generate(model)
        if method == COMPLETION and (calibrate or score != SUM):
            raise UserError("--calibrate and --score: apply to --method=likelihood; omit them")
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._method, self._score, self._calibrate, self._batch_size = method, score, calibrate, batch_size
        most = model.config.max_positions
        length = most if length is None else length
        if length > most:
            raise UserError(f"--sequence_length={length}: the model reads at most {most} tokens; use a smaller value")
        before, after = prompt_frame(model, tokenizer)
        self._length, self._room = length, length - len(before) - len(after) - _SPARE
        self.dropped = self.shortened = self.unmatched = 0

    def answers(self, questions: Sequence[Question]) -> list[int]:
        """Returns the number of the label of each text, or prompts.NO_ANSWER."""
        asked = self._fitting(questions)
        if self._method == COMPLETION:
            return self._completed(asked)
        scores = self.scores(asked)
        if self._calibrate:
            count = len(prompts.CONTENT_FREE)
            empty = [
                question._replace(texts=(text,) * len(question.texts))
                for question in asked
                for text in prompts.CONTENT_FREE
            ]
            free = self.scores(empty)
            for i, each in enumerate(scores):
                scores[i] = prompts.calibrated(each, np.stack(free[i * count : (i + 1) * count]))
        return [int(each.argmax()) for each in scores]

    def scores(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """Returns for each question the sum or the mean of the log-probabilities of each label's words after the
        prompt, float64 [C]."""
        contexts: list[str] = []
        continuations: list[str] = []
        for question in questions:
            words = self._continuations(question)
            contexts += [self._prompt(question)] * len(words)
            continuations += words
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
        ends = np.cumsum([len(self._words(question)) for question in questions])
        return np.split(values, ends[:-1])

    def _words(self, question: Question) -> tuple[str, ...]:
        return question.words or self._template.words

    def _continuations(self, question: Question) -> list[str]:
        space = "" if self._model.is_encoder_decoder else self._template.space
        return [space + word for word in self._words(question)]

    def _prompt(self, question: Question) -> str:
        return self._template.prompt(question.texts, question.examples)

    def _answer_tokens(self, questions: Sequence[Question]) -> list[int]:
        """Returns the number of tokens of the longest label of each question."""
        known: dict[tuple[str, ...], int] = {}
        for question in questions:
            words = self._words(question)
            if words not in known:
                known[words] = max(map(len, encode(self._tokenizer, self._continuations(question))))
        return [known[self._words(question)] for question in questions]

    def _completed(self, questions: list[Question]) -> list[int]:
        texts = [self._prompt(question) for question in questions]
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        answers = [prompts.NO_ANSWER] * len(texts)
        new_tokens = max(self._answer_tokens(questions)) + _MORE_TOKENS
        for first in range(0, len(order), self._batch_size):
            batch = order[first : first + self._batch_size]
            completions = generate_text(
                self._model,
                [texts[i] for i in batch],
                self._tokenizer,
                max_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
            )
            for i, completion in zip(batch, completions, strict=True):
                answers[i] = prompts.matched(completion.split(self._template.end)[0], self._words(questions[i]))
        self.unmatched += answers.count(prompts.NO_ANSWER)
        return answers

    def _fitting(self, questions: Sequence[Question]) -> list[Question]:
        """Returns the questions without the earliest examples of prompts that are too long; counts those."""
        fitting = list(questions)
        rooms = self._rooms(questions)
        waiting = list(range(len(fitting)))
        shortened = set()
        while waiting:
            counts = [len(ids) for ids in encode(self._tokenizer, [self._prompt(fitting[i]) for i in waiting])]
            long = [(i, count) for i, count in zip(waiting, counts, strict=True) if count > rooms[i]]
            for i, count in long:
                question = fitting[i]
                if question.examples:
                    fitting[i] = question._replace(examples=question.examples[1:])
                    self.dropped += 1
                else:
                    fitting[i] = question._replace(texts=_shorter(question.texts, rooms[i] / count))
                    shortened.add(i)
            waiting = [i for i, _ in long]
        self.shortened += len(shortened)
        return fitting

    def _rooms(self, questions: Sequence[Question]) -> list[int]:
        """Returns the maximum number of tokens of the prompt of each question."""
        if self._model.is_encoder_decoder:
            rooms = [self._room] * len(questions)
        else:
            counts = self._answer_tokens(questions)
            more = _MORE_TOKENS + max(counts, default=0) if self._method == COMPLETION else 0
            rooms = [self._room - (more or count) for count in counts]
        if min(rooms, default=1) < 1:
            raise UserError(
                f"--sequence_length={self._length}: leaves no room for a text in addition to the labels; use a larger "
                "value"
            )
        return rooms


def _shorter(texts: tuple[str, ...], share: float) -> tuple[str, ...]:
    """Returns texts of which the longest is cut, so that about a share of all characters remains."""
    longest = max(range(len(texts)), key=lambda i: len(texts[i]))
    if not texts[longest]:
        raise UserError("--template: is longer than the model reads; use a shorter one, or a larger --sequence_length")
    excess = max(1, int(sum(map(len, texts)) * (1 - share)))
    return tuple(text[: max(0, len(text) - excess)] if i == longest else text for i, text in enumerate(texts))
