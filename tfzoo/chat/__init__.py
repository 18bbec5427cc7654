"""Conversations as a model's chat template writes them. Imports no TensorFlow: tokenizers are handed over."""

from tfzoo.chat.template import ChatTemplate, answer

__all__ = ["ChatTemplate", "answer"]
