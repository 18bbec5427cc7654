"""The interface of what answers texts: a model, a SavedModel or an ONNX graph."""

from collections.abc import Sequence
from typing import Any

PAIR = "text_pair"  # The name of the second text of models that read one text or two.
# The first of these heads that a model has answers texts, as in tfzoo.export.answers.HEADS.
TASKS = ("classify", "tag", "span", "lm", "next_sentence", "embed", "relation")


def task_of(heads: Sequence[str]) -> str:
    """Returns the head that answers texts; a model without heads computes embeddings."""
    return next((head for head in TASKS if head in heads), heads[0] if heads else "embed")


class Predictor:
    """Answers batches of texts.

    Attributes:
      task: the head that answers: classify, tag, span, lm, next_sentence, embed, relation or another one.
      inputs: the names of the texts of a row, such as ("text",).
      may_pair: whether a row may have a further text, PAIR.
      length: the maximum number of tokens of a text.
      num_devices: the number of devices, which work independently of each other.
      in_flight: the number of batches that a device is given at a time.
      has_offsets: whether entities have the fields start and end.
      no_answer_threshold: of the head span; see answers.decided.
      reads_lists: whether the inputs can be lists, such as one of messages, which `problem` checks.
    """

    task: str
    inputs: tuple[str, ...]
    may_pair = False
    length: int
    num_devices = 1
    in_flight = 1
    has_offsets = True
    no_answer_threshold: float | None = None
    reads_lists = False

    def fingerprint(self) -> str:
        """Returns a SHA-256 in hexadecimal, which is equal for the same weights, labels and tokenizer."""
        raise NotImplementedError

    def problem(self, row: Sequence[Any]) -> str:
        """Returns what is wrong with a row of a predictor that reads lists, and the remedy; "" if nothing is."""
        return ""

    def answer(self, texts: Sequence[Sequence[str]], device: int = 0) -> list[dict[str, Any]]:
        """Answers rows; threads may call this at the same time.

        Args:
          texts: the texts of each row, in the order of `inputs`; all rows have the same number of texts.
          device: the number of the device.

        Returns:
          A record per row (see answers.py). `truncated` is true in the record of a text that was cut. A row that is
          refused has the reason, `error`: an artifact may refuse texts that are too long, which have `truncated` too,
          and relations are those of texts that mark two entities.
        """
        raise NotImplementedError
