"""Does one text follow another?"""

import dataclasses

from tfzoo.export.answers.labels import Labels


class NextSentence(Labels):
    """Does text_pair follow text? The labels are "follows" and "does not follow"."""

    head = "next_sentence"

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, dataclasses.replace(options, text_pair=True))

    def labels_of(self, model):
        return ["follows", "does not follow"]
