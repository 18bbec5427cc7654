"""Tokenizers that run alike eagerly, in tf.data and in an exported graph, and the training of
vocabularies."""

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # In the order a vocabulary of ours has them.
