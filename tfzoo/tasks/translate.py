"""Translation: text_to_text with BLEU and chrF.

    python -m tfzoo.train --task=translate --train_file=train.en.gz+train.de.gz --model=transformer_base ...

reads two files of corresponding lines, or any file of text_to_text. The defaults are those of Vaswani et al. 2017:
label smoothing 0.1 (section 5.4) and a beam search with 4 beams (section 6.1). The scores are sacreBLEU's (Post 2018);
its signature is in the record of an evaluation.
"""

import dataclasses
from collections.abc import Sequence

from tfzoo.evaluation import intervals, written
from tfzoo.options import option
from tfzoo.tasks import GROUP, text_to_text
from tfzoo.tasks.text_to_text import TextToText


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(text_to_text.Options):
    """The options of the task translate."""

    bleu_tokenizer: str | None = option(
        None,
        "sacreBLEU's tokenizer; by default zh if the right translations are mostly Chinese characters, otherwise 13a.",
        group=GROUP,
        choices=written.TOKENIZERS,
    )


class Translate(TextToText):
    """See the module's docstring."""

    name = "translate"
    Options = Options
    FIGURES = (
        ("BLEU", "bleu", "{:.2f}"),
        ("chrF", "chrf", "{:.2f}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    )
    best_metric = ("bleu", "max")
    SMOOTHING = 0.1
    BEAMS = 4

    @classmethod
    def score_texts(cls, hypotheses, references, options):
        return intervals.together(
            written.bleu_rows(hypotheses, references, bleu_tokenizer(references, options)),
            written.chrf_rows(hypotheses, references),
        )

    def details(self, outcome):
        _, references = self.answers_of(outcome)
        signature = written.bleu_signature(bleu_tokenizer(references, self.options))
        return super().details(outcome) | {"signature": signature}


def bleu_tokenizer(references: Sequence[str], options: Options) -> str:
    """Returns the name of sacreBLEU's tokenizer for some right translations."""
    return options.bleu_tokenizer or ("zh" if written.is_spaceless(references) else "13a")
