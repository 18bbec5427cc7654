"""The spans of a context that answer a question, from the logits of the head span.

The score of a span is the product of the probabilities of its first and its last token. Both are normalised over the
tokens of the context and the special token before them ([CLS]), which represents "no answer" (Devlin et al. 2019,
section 4.3). Importing this module does not import TensorFlow.
"""

import math

from tfzoo import lazy

tf = lazy.module("tensorflow")

TOP_ANSWERS = 5  # Number of answers per question.
LONGEST_ANSWER = 30  # Maximum number of tokens in an answer.
_NOTHING = -1e9  # In place of the logarithm of 0.


def log_chances(logits, context, null_first: bool = True):
    """Returns the logarithms of the probabilities that each token is the first and the last one, float32 [B, L, 2].

    Args:
      logits: float32 [B, L, 2].
      context: bool [B, L], whether a token belongs to the context.
      null_first: whether the first token of a row represents "no answer".
    """
    if null_first:
        context = tf.concat([tf.ones_like(context[:, :1]), context[:, 1:]], 1)
    return tf.nn.log_softmax(tf.where(context[..., tf.newaxis], logits, _NOTHING), axis=1)


def likeliest(chances, context):
    """Returns the spans with the highest scores, the best first.

    Args:
      chances: the result of `log_chances`.
      context: bool [B, L].

    Returns:
      score, begin, end [B, TOP_ANSWERS]: the logarithm of the score, float32, and the first and the last token, int32.
      is_span bool [B, TOP_ANSWERS] is False where a row has fewer spans.
    """
    length = tf.shape(chances)[1]
    first, last = tf.unstack(tf.where(context[..., tf.newaxis], chances, _NOTHING), axis=-1)
    # Every first token combined with each last token that is not too far after it.
    reach = tf.range(length)[:, tf.newaxis] + tf.range(LONGEST_ANSWER)
    last = tf.pad(last, [[0, 0], [0, LONGEST_ANSWER]], constant_values=_NOTHING)
    both = first[..., tf.newaxis] + tf.gather(last, reach, axis=1)
    score, which = tf.math.top_k(tf.reshape(both, [-1, length * LONGEST_ANSWER]), TOP_ANSWERS)
    begin = which // LONGEST_ANSWER
    return score, begin, begin + which % LONGEST_ANSWER, score > _NOTHING / 10


def difference(no_answer: float, score: float) -> float:
    """Returns log(no_answer / score): for a text that is read at once, the difference between the sum of the two logits
    of [CLS] and that of the logits of the best span, which is what a threshold of "no answer" is compared with. It is
    infinite if the text has no span that could be the answer."""
    if score <= 0:
        return math.inf
    return math.log(no_answer) - math.log(score) if no_answer > 0 else -math.inf
