"""Next-sentence prediction: whether one text follows another."""

import dataclasses

from tfzoo.export.answers.labels import Labels


class NextSentence(Labels):
    """Whether text_pair follows text, with the labels "follows" and "does not follow"."""

    head = "next_sentence"

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, dataclasses.replace(options, text_pair=True))

    def labels_of(self, model):
        return ["follows", "does not follow"]
