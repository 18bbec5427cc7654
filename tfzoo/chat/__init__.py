"""Conversations in the format of a model's chat template. Does not import TensorFlow: tokenizers are passed in."""

from tfzoo.chat.template import ChatTemplate, answer

__all__ = ["ChatTemplate", "answer"]
