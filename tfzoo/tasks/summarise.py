"""Summarisation: text_to_text with ROUGE.

    python -m tfzoo.train --task=summarise --train_file=train.jsonl --text_column=body --label_column=subject ...

reads the files of text_to_text. The scores are the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), with Porter's
stemmer, or of characters if the right summaries are mostly Chinese. The baselines are the first sentence, the first
three, and the most central one (TextRank, Mihalcea and Tarau 2004).
"""

from tfzoo.evaluation import extracts, written
from tfzoo.tasks.text_to_text import TextToText


class Summarise(TextToText):
    """See the module's docstring."""

    name = "summarise"
    FIGURES = (
        ("ROUGE-1", "rouge_1", "{:.2f}"),
        ("ROUGE-2", "rouge_2", "{:.2f}"),
        ("ROUGE-L", "rouge_l", "{:.2f}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    )
    best_metric = ("rouge_l", "max")
    SMOOTHING = 0.1

    @classmethod
    def score_texts(cls, hypotheses, references, options):
        return written.rouge_rows(hypotheses, references)

    @classmethod
    def baseline_texts(cls, train, sources):
        return {
            "lead_1": [extracts.lead(source, 1) for source in sources],
            "lead_3": [extracts.lead(source, 3) for source in sources],
            "text_rank": [extracts.text_rank(source, 1) for source in sources],
        }
