"""Extractive summaries: the sentences of a text that summarise it best.

    text,summary
    It rained. The dam broke near Ulm. We left.,the dam broke

becomes a row for each sentence, which the model reads with the whole text, as rerank reads a query and a passage:

    [CLS] it rained . [SEP] it rained . the dam broke near ulm . we left . [SEP]                 label 0
    [CLS] the dam broke near ulm . [SEP] it rained . the dam broke near ulm . we left . [SEP]    label 1
    [CLS] we left . [SEP] it rained . the dam broke near ulm . we left . [SEP]                   label 0

The labels are those of the greedy oracle (Liu and Lapata 2019, section 4, after Nallapati et al. 2017): sentences are
added while ROUGE-1 + ROUGE-2 of the extract against the summary rises, at most --extract_sentences. Model and loss are
those of rerank: one logit for each row, and the binary cross-entropy. BERTSum (section 3.2) encodes all sentences of a
text in one sequence, and omits sentences that repeat a chosen one. Here, each sentence is scored on its own: a long
text costs more, but none of its sentences is omitted, and exports score a pair of texts.

An evaluation forms the summary of each text of the --extract_sentences sentences with the highest scores, in the order
of the text, and scores it as summarise does. The baselines choose as many sentences: the first ones, or by TextRank.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data import sentences
from tfzoo.data.labelled import Row
from tfzoo.errors import UserError
from tfzoo.evaluation import extracts, written
from tfzoo.objectives.objective import MAIN
from tfzoo.options import option
from tfzoo.tasks import GROUP, rerank, text_to_text
from tfzoo.tasks.task import chunked

tf = lazy.module("tensorflow")
by_length = lazy.module("tfzoo.data.by_length")

_BATCH = 32  # Sentences that `answers` scores at a time.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(rerank.Options):
    """The options of the task extract."""

    extract_sentences: int = option(
        3, "Number of sentences in a summary.", group=GROUP, low=1, high=100, decides_rows=True
    )


class Extract(text_to_text.ReadsTargets, rerank.Rerank):
    """See the module's docstring."""

    name = "extract"
    Options = Options
    FIGURES = (
        ("ROUGE-1", "rouge_1", "{:.2f}"),
        ("ROUGE-2", "rouge_2", "{:.2f}"),
        ("ROUGE-L", "rouge_l", "{:.2f}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    )
    best_metric = ("rouge_l", "max")

    def __init__(self, tokenizer, sequence_length: int, **arguments: Any):
        super().__init__(tokenizer, sequence_length, **arguments)
        self._documents: list[tuple[list[str], str]] = []  # The sentences and the summary of each evaluated text.

    # ------------------------------------------------------------------ Files

    def notes(self):
        return [f"a row is a sentence with its text; sentences of a summary: {self.options.extract_sentences}"]

    def chunks(self, file):
        for first, rows in chunked(file.rows()):
            parts = [extracts.split(row.texts[0]) for row in rows]
            counts = [len(each) for each in parts]
            # Of a longer text, only what fits is stored, and one token more, which `truncated` counts.
            texts = [ids[: self._length + 1] for ids in self.tokenize([row.texts[0] for row in rows])]
            yield {
                "number": np.repeat(np.arange(first, first + len(rows)), counts),
                "place": np.concatenate([np.arange(count) for count in counts]),
                "text": self.tokenize([sentence for each in parts for sentence in each]),
                "pair": [ids for ids, count in zip(texts, counts, strict=True) for _ in range(count)],
                "label": np.concatenate([self._labels(*each) for each in zip(parts, rows, strict=True)]),
            }

    def _labels(self, parts: Sequence[str], row: Row) -> np.ndarray:
        """Returns 1 for the sentences of the oracle, else 0: float32 [number of sentences]."""
        labels = np.zeros(len(parts), np.float32)
        labels[extracts.oracle(parts, row.texts[1], self.options.extract_sentences)] = 1
        return labels

    def targets(self):
        return {"label": (np.float32, ()), "number": (np.int64, ()), "place": (np.int64, ())}

    def truncation(self, rows, part):
        count = self.truncated(rows)
        return f"{count:,} {part} rows have only the beginning of their text, {self._length} tokens" if count else ""

    def prepare_training(self, rows):
        """Checks that some sentences belong to summaries, and others do not.

        Raises:
          UserError: there is only one kind.
        """
        label = np.asarray(rows.columns["label"])
        if not label.any():
            raise UserError("--train_file: no summary shares a word with its text; provide texts and their summaries")
        if label.all():
            raise UserError("--train_file: all sentences belong to summaries; provide longer texts")

    def prepare_evaluation(self, file, whole=False):
        self._documents = [(extracts.split(row.texts[0]), row.texts[1]) for row in file.rows()]

    # ------------------------------------------------------------------ Evaluation

    def outcome(self, predictions):
        """Returns "number" [N] of the texts, and of their sentences "row" [S], the number of the text, "place" [S] in
        it, "answer" [S], the score, and "label" [S] and "chosen" [S], whether it is in the right summary and in the
        model's."""
        row = predictions["number"]
        number, starts = np.unique(row, return_index=True)
        chosen = np.zeros(len(row), bool)
        for members in np.split(np.arange(len(row)), starts[1:]):
            chosen[members[self._best(predictions["answer"][members])]] = True
        return {
            "number": number,
            "row": row,
            "place": predictions["place"],
            "answer": predictions["answer"],
            "label": predictions["label"] > 0.5,
            "chosen": chosen,
        }

    def _best(self, scores: np.ndarray) -> np.ndarray:
        """Returns the places of the highest scores of a text, ascending; of equal ones, the first are chosen."""
        return np.sort(np.argsort(-scores, kind="stable")[: self.options.extract_sentences])

    def _summaries(self, outcome, which: str) -> tuple[list[str], list[str]]:
        """Returns the summaries of the sentences that are "chosen", or have the "label", and the right summaries."""
        parts: dict[int, list[str]] = {number: [] for number in outcome["number"].tolist()}
        for number, place in zip(outcome["row"][outcome[which]], outcome["place"][outcome[which]], strict=True):
            parts[number].append(self._documents[number][0][place])
        return [extracts.join(each) for each in parts.values()], [self._documents[number][1] for number in parts]

    def score_rows(self, outcome):
        return written.rouge_rows(*self._summaries(outcome, "chosen"))

    def details(self, outcome):
        return super().details(outcome) | {"oracle": written.rouge_rows(*self._summaries(outcome, "label"))()}

    def mistakes(self, outcome, count):
        """Returns the summaries with the lowest ROUGE-L."""
        hypotheses, references = self._summaries(outcome, "chosen")
        rouge_l = written.rouge_rows(hypotheses, references).values[:, 2]
        return text_to_text.worst_texts(outcome["number"], hypotheses, references, rouge_l, count)

    def file_baselines(self, train, held_out):
        texts, references = zip(*(row.texts for row in held_out.rows()), strict=True)
        count = self.options.extract_sentences
        found = {
            f"lead_{count}": [extracts.lead(text, count) for text in texts],
            "text_rank": [extracts.text_rank(text, count) for text in texts],
        }
        return {name: written.rouge_rows(summaries, references)() for name, summaries in found.items()}

    def answers(self, model, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Returns for each text {"summary", "sentences": [{"text", "start", "end", "score"}]}, and "truncated" if the
        model read only its beginning. Scores are probabilities; offsets count code points."""
        asked = [Row("", (text, ""), None) for text in texts]
        rows = self.encode(asked)
        lengths, found = self.lengths(rows), []
        for indices in np.split(np.arange(len(rows)), range(_BATCH, len(rows), _BATCH)):
            length = min(by_length.rounded(lengths[indices].max()), self._length)
            length = self._length if self.page.Model.fixed_length else length
            batch = {name: tf.constant(x) for name, x in self.batch(rows, indices, length).items()}
            found.append(self.predict({MAIN: model}, batch)["answer"].numpy())
        scores = np.concatenate(found).astype(np.float64)
        counts = [rows.lengths(name) for name in ("text", "pair")]
        cut = sum(counts) > sum(self.framer.kept(*counts))
        of_text = [np.flatnonzero(rows.columns["number"] == number) for number in range(len(texts))]
        return [
            self._answer(text, scores[members]) | ({"truncated": True} if cut[members].any() else {})
            for text, members in zip(texts, of_text, strict=True)
        ]

    def _answer(self, text: str, scores: np.ndarray) -> dict[str, Any]:
        places, chances = sentences.spans(text), np.exp(-np.logaddexp(0, -scores))
        found = [(*places[i], float(chances[i])) for i in self._best(scores)]
        return {
            "summary": extracts.join([text[start:end] for start, end, _ in found]),
            "sentences": [
                {"text": text[start:end], "start": start, "end": end, "score": score} for start, end, score in found
            ],
        }
