r"""Prompts of zero- and few-shot classification: a template, examples drawn by seed, and labels from scores of words.

With the template "Review: {text}\nSentiment: {label}" and one example, the prompt of the text "Dull." is

    Review: What a day!
    Sentiment: positive

    Review: Dull.
    Sentiment:

and the model is asked which label's words follow it, " negative" or " positive" (Brown et al. 2020, section 2.4).
Importing this module does not import TensorFlow.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from tfzoo.errors import UserError

TEXT, PAIR, LABEL = "text", "text_pair", "label"
CONTENT_FREE = ("N/A", "", "[MASK]")
"""The texts without content of Zhao et al. 2021, section 5."""
LIKELIHOOD, COMPLETION = METHODS = ("likelihood", "completion")
"""How the answers of a model are read."""
SUM, MEAN = SCORES = ("sum", "mean")
"""Of the log-probabilities of the tokens of a label's words."""
NO_ANSWER = -1
_FIELD = re.compile(r"\{(text|text_pair|label)\}")


@dataclasses.dataclass(frozen=True)
class Example:
    """A labelled text or pair.

    texts: one text or two. label: the number of its label. words: the words of each label, if they are those of this
    row alone, such as the endings of a choice; None: they are those of the template.
    """

    texts: tuple[str, ...]
    label: int
    words: tuple[str, ...] | None = None


class Template:
    """A text with the fields {text} and, for pairs, {text_pair}, that ends with {label}.

    Args:
      template: the text.
      words: the words of each label; () if each row has its own.
      instruction: what precedes the examples, "" for nothing.
      separator: what is between the instruction, the examples and the text to classify.
      pair: whether texts are pairs.

    Raises:
      UserError: a field is missing or misplaced, or two labels have the same words.
    """

    def __init__(self, template: str, words: Sequence[str], instruction: str, separator: str, pair: bool):
        found = _FIELD.findall(template)
        wanted = [TEXT, PAIR] if pair else [TEXT]
        if sorted(found[:-1]) != wanted or not template.endswith(f"{{{LABEL}}}"):
            fields = " and ".join(f"{{{name}}}" for name in wanted)
            raise UserError(f"--template={template!r}: must contain {fields} once, and end with {{{LABEL}}}")
        if not separator:
            raise UserError("--separator: is empty; specify a text such as \\n\\n")
        for number, word in enumerate(words):
            if not word.strip() or word in words[:number]:
                problem = "has no words" if not word.strip() else "has the same words as another label"
                raise UserError(f"--label_words: label {number} ({word!r}) {problem}; specify different words")
        self.words = tuple(words)
        self._before = template.removesuffix(f"{{{LABEL}}}")
        self._instruction, self._separator = instruction, separator

    @property
    def space(self) -> str:
        """The white space between the prompt and a label."""
        return self._before[len(self._before.rstrip()) :]

    @property
    def end(self) -> str:
        """The text that ends a completion: what could follow a label in a prompt."""
        return self._separator

    def prompt(self, texts: Sequence[str], examples: Sequence[Example] = ()) -> str:
        """Returns the prompt up to the label, without white space at its end."""
        parts = [self._instruction] if self._instruction else []
        parts += [self._filled(each.texts) + (each.words or self.words)[each.label] for each in examples]
        return self._separator.join([*parts, self._filled(texts).rstrip()])

    def _filled(self, texts: Sequence[str]) -> str:
        values = dict(zip((TEXT, PAIR), texts))
        return _FIELD.sub(lambda match: values[match[1]], self._before)


def words_of(labels: Sequence[str], given: str) -> list[str]:
    """Returns the words of each label: the label itself, unless `given`, LABEL=WORDS,..., specifies others.

    Raises:
      UserError: a part has another form, or names an unknown label.
    """
    words = {label: label for label in labels}
    for part in filter(None, given.split(",")):
        label, equals, value = part.partition("=")
        if not equals or label.strip() not in words:
            raise UserError(
                f"--label_words={given}: {part!r} is not LABEL=WORDS with one of the labels {', '.join(labels)[:200]}"
            )
        words[label.strip()] = value.strip()
    return [words[label] for label in labels]


class Pool:
    """The labelled rows from which examples are drawn.

    Args:
      rows: the rows. Those with words of their own are not balanced, because the numbers of their labels are
        positions.
    """

    def __init__(self, rows: Sequence[Example]):
        by_label: dict[int, list[Example]] = {}
        for row in rows:
            by_label.setdefault(row.label if row.words is None else 0, []).append(row)
        self._by_label = [by_label[label] for label in sorted(by_label)]

    def draw(self, count: int, seed: int, row: int, texts: Sequence[str]) -> list[Example]:
        """Returns the examples of one row, a pure function of the pool, the count, the seed and the row.

        The numbers of examples of any two labels differ by at most one, as far as the pool allows; the order is random.

        Args:
          count: the number of examples.
          seed: the seed.
          row: the number of the row that is classified.
          texts: its texts, which no example has.
        """
        generator = np.random.default_rng([seed, row])
        candidates = []
        for rows in self._by_label:
            size = min(len(rows), count + 1)  # One may have the texts of the row.
            drawn = [rows[i] for i in generator.choice(len(rows), size, replace=False)] if size else []
            candidates.append([example for example in drawn if example.texts != tuple(texts)])
        chosen: list[Example] = []
        for turn in range(count):
            left = [each[turn] for each in candidates if turn < len(each)]
            chosen += [left[i] for i in generator.permutation(len(left))]
            if len(chosen) >= count or not left:
                break
        chosen = chosen[:count]
        return [chosen[i] for i in generator.permutation(len(chosen))]


def calibrated(scores: np.ndarray, content_free: np.ndarray) -> np.ndarray:
    """Returns the log-probabilities of labels, corrected by what the model answers without content.

    p(label) is the softmax of the scores. It is divided by its mean over texts without content, in the same prompt
    (contextual calibration, Zhao et al. 2021, section 5, with W = diag(p_cf)^-1 and b = 0), and normalized.

    Args:
      scores: [..., C], log-likelihoods of the labels' words.
      content_free: [..., F, C], the same for F texts without content in place of the row's text.
    """
    log_p = _log_softmax(np.asarray(scores, np.float64))
    log_free = np.log(np.exp(_log_softmax(np.asarray(content_free, np.float64))).mean(-2))
    return _log_softmax(log_p - log_free)


def _log_softmax(values: np.ndarray) -> np.ndarray:
    values = values - values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def matched(completion: str, words: Sequence[str]) -> int:
    """Returns the number of the label whose words a completion begins with, the longest if there are several; without
    one, of the label whose words occur first in it; NO_ANSWER if none do. Case and white space do not count."""
    text = _normalized(completion)
    normalized = [_normalized(word) for word in words]
    places = [(text.find(word), -len(word), i) for i, word in enumerate(normalized) if word in text]
    return min(places)[2] if places else NO_ANSWER


def _normalized(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def figures(gold: Sequence[int], predicted: Sequence[int], num_labels: int) -> Mapping[str, float]:
    """Returns the accuracy, and macro_f1, the mean of F1 over the labels that occur in gold or predicted; a row without
    an answer (NO_ANSWER) is wrong."""
    right, answered = np.asarray(gold), np.asarray(predicted)
    scores = []
    for label in range(num_labels):
        both = ((right == label) & (answered == label)).sum()
        either = (right == label).sum() + (answered == label).sum()
        if either:
            scores.append(2 * both / either)
    return {"accuracy": float((right == answered).mean()), "macro_f1": float(np.mean(scores))}
