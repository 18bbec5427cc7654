"""Every kind of tokenizer in an export, loaded by a fresh process without tfzoo."""

import json
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import python, temporary_folder
from tests.text.varied import CHINESE, LONG, SENTENCES, lines
from tfzoo.text import training
from tfzoo.text.byte_level import ByteLevelBPE
from tfzoo.text.characters import Characters
from tfzoo.text.sentencepiece import SentencePiece
from tfzoo.text.wordpiece import WordPiece

ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# The program of the other process, which does not import tfzoo.
SCRIPT = textwrap.dedent("""
    import json, sys
    import numpy as np
    import tensorflow as tf, tensorflow_text
    texts = tf.constant(json.load(open("lines.json")))
    server = tf.saved_model.load("model")
    for name in json.load(open("names.json")):
        outputs = getattr(server, name)(texts)
        again = outputs.pop("texts").numpy()
        texts_again = np.frombuffer(b"".join(again), np.uint8)
        np.savez(name + ".npz", texts=texts_again, sizes=[*map(len, again)], **outputs)
    assert not {"tfzoo", "tokenizers", "sentencepiece"} & {name.split(".")[0] for name in sys.modules}
""")


def results(tokenizer: tf.Module, texts: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the results of all functions of a tokenizer, without ragged tensors."""
    ids = tokenizer.tokenize(texts)
    outputs = {"ids": ids.flat_values, "splits": ids.row_splits, "texts": tokenizer.detokenize(ids)}
    requested = tokenizer.tokenize(texts, special=[tokenizer.vocab[i] for i in tokenizer.special_ids])
    outputs |= {"asked": requested.flat_values, "asked_splits": requested.row_splits}
    if not (isinstance(tokenizer, SentencePiece) and tokenizer.kind == "albert"):  # This kind has no offsets.
        _, starts, ends = tokenizer.tokenize_with_offsets(texts)
        outputs |= {"starts": starts.flat_values, "ends": ends.flat_values}
    return outputs


def trained_llama(sentences: list[str]):
    return training.train_sentencepiece(
        sentences, 1000, "bpe", ("<unk>", "<s>", "</s>"), True, "identity", keep_spaces=True
    )


def served(tokenizer: tf.Module):
    return tf.function(
        lambda texts: results(tokenizer, texts), input_signature=[tf.TensorSpec([None], tf.string)], autograph=False
    )


class ExportedTest(tf.test.TestCase):
    def test_results_in_a_fresh_process_and_in_a_turkish_locale(self):
        sentences = [*SENTENCES, *CHINESE]
        self.check(
            {
                "uncased": WordPiece(training.train_wordpiece(sentences * 3, 1200, lowercase=True), lowercase=True),
                "llama": SentencePiece(trained_llama(sentences), "llama"),
            },
            lines(100, seed=2),
        )

    @pytest.mark.faults
    def test_results_of_every_kind(self):
        sentences = [*SENTENCES, *CHINESE]
        corpus = [line for line in lines(700, seed=1) if line not in LONG]
        roberta = training.train_byte_level(sentences, 700, ROBERTA)
        llama3 = training.train_byte_level(corpus, 1500, ("<s>", "</s>"), "llama3")
        unigram = training.train_sentencepiece(corpus, 1500)
        llama = trained_llama(sentences)
        albert = training.train_sentencepiece(sentences, 900, specials=("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"))
        # Several of a kind in one export: none may use another's model.
        tokenizers = {
            "uncased": WordPiece(training.train_wordpiece(sentences * 3, 1200, lowercase=True), lowercase=True),
            "cased": WordPiece(training.train_wordpiece(sentences * 3, 1200, lowercase=False), lowercase=False),
            "roberta": ByteLevelBPE(*roberta, special_tokens=ROBERTA, lstrip=["<mask>"]),
            "llama3": ByteLevelBPE(*llama3, special_tokens=("<s>", "</s>"), pattern="llama3", ignore_merges=True),
            "t5": SentencePiece(unigram),
            "llama": SentencePiece(llama, "llama"),
            "albert": SentencePiece(albert, "albert"),
            "mbart": SentencePiece(llama, "mbart"),
            "characters": Characters(training.train_characters(sentences, ROBERTA)),
        }
        self.check(tokenizers, lines(500, seed=2))

    def check(self, tokenizers, varied):
        server = tf.Module()
        server.tokenizers = tokenizers
        texts = tf.constant(varied)
        folder = temporary_folder(self)
        for name, tokenizer in server.tokenizers.items():
            setattr(server, name, served(tokenizer))
        tf.saved_model.save(server, folder / "model")
        (folder / "lines.json").write_text(json.dumps([text.decode() for text in texts.numpy()]))
        (folder / "names.json").write_text(json.dumps([*server.tokenizers]))
        # A Turkish locale lower-cases I to a dotless ı, in TensorFlow's op as well, unless this is prevented.
        python("-c", SCRIPT, cwd=folder, TF_CPP_MIN_LOG_LEVEL="3", LC_ALL="tr_TR.UTF-8")
        for name, tokenizer in server.tokenizers.items():
            here = {key: value.numpy() for key, value in results(tokenizer, texts).items()}
            here["sizes"] = np.array([*map(len, here["texts"])])
            here["texts"] = np.frombuffer(b"".join(here["texts"]), np.uint8)
            there = np.load(folder / f"{name}.npz")
            self.assertEqual(sorted(there), sorted(here))
            for key, value in here.items():
                np.testing.assert_array_equal(there[key], value, f"{name}: {key}")
            self.assertNotEqual(here["asked"].size, here["ids"].size)


if __name__ == "__main__":
    tf.test.main()
