"""A tokenizer that is too large for its checkpoint is rejected, and one with other ids is reported, for every kind."""

import dataclasses
import json
import pathlib
import shutil

import tensorflow as tf

import tfzoo
from tests.helpers import temporary_folder
from tests.text.varied import SENTENCES
from tfzoo.errors import UserError
from tfzoo.generation.folder import special_ids
from tfzoo.text import SPECIAL_TOKENS, training
from tfzoo.text.byte_level import ByteLevelBPE
from tfzoo.text.characters import Characters
from tfzoo.text.sentencepiece import SentencePiece
from tfzoo.text.wordpiece import WordPiece
from tfzoo.training import checkpoint, runs

ENDS = ("<s>", "</s>")
SIZES = dict(hidden_size=8, num_heads=2, num_layers=1, intermediate_size=8, max_positions=8)


def tokenizers() -> dict[str, tuple[str, tf.Module, tf.Module]]:
    """Returns for every kind a model, a tokenizer, and a tokenizer with the same roles and one more token."""
    byte_level, merges = training.train_byte_level(SENTENCES, 300, ENDS)
    characters = ["<pad>", "</s>", *"abcdefgh"]
    spiece = training.train_sentencepiece(SENTENCES, 400)
    return {
        "wordpiece": ("bert_tiny", WordPiece([*SPECIAL_TOKENS, "a"]), WordPiece([*SPECIAL_TOKENS, "b", "c"])),
        "byte_level": (
            "gpt2",
            ByteLevelBPE(byte_level, merges, special_tokens=ENDS),
            ByteLevelBPE([*byte_level, "Ġ的"], merges, special_tokens=ENDS),
        ),
        "sentencepiece": ("t5_small", SentencePiece(spiece, sentinels=0), SentencePiece(spiece, sentinels=1)),
        "characters": ("gpt2", Characters(characters), Characters([*characters, "i"])),
    }  # fmt: skip


class BelongingTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = temporary_folder(self)

    def refused(self, folder: pathlib.Path, *parts: str):
        with self.assertRaises(UserError) as caught:
            runs.load(folder)
        message = str(caught.exception)
        for part in parts:
            self.assertIn(part, message)
        self.assertNotIn("\n", message)

    def test_in_a_hugging_face_folder(self):
        for kind, (name, right, larger) in tokenizers().items():
            with self.subTest(kind=kind):
                sizes = SIZES | ({"num_decoder_layers": 1, "head_dim": 4} if name == "t5_small" else {})
                model = tfzoo.build(name, vocab_size=right.vocab_size, **sizes)
                folder = self.folder / kind
                tfzoo.save(model, folder, right)
                path = folder / "config.json"
                record = json.loads(path.read_text())
                self.assertEqual(record.get("pad_token_id"), right.pad_id)
                self.assertEqual(tfzoo.load(folder)[1].fingerprint(), right.fingerprint())

                role = "pad" if kind == "wordpiece" else "eos"
                key, token_id = f"{role}_token_id", getattr(right, f"{role}_id")
                path.write_text(json.dumps(record | {key: [token_id, token_id + 1]}))  # Llama 3 has several end tokens.
                with self.assertNoLogs("absl", "WARNING"):
                    tfzoo.load(folder)
                # A different id applies to generation; texts use the tokenizer's ids.
                path.write_text(json.dumps(record | {key: token_id + 1}))
                with self.assertLogs("absl", "WARNING") as logs:
                    model, tokenizer = tfzoo.load(folder)
                warning = (
                    f"{path}: {key} is {token_id + 1}, but {token_id} in the tokenizer; texts use the tokenizer's ids"
                )
                self.assertIn(warning, logs.output[0])
                self.assertLen(logs.output, 1)
                self.assertEqual(tokenizer.fingerprint(), right.fingerprint())
                if model.can_generate and key == "eos_token_id":
                    model.record = dataclasses.replace(model.record, generation_config={})
                    self.assertEqual(special_ids(model)[key], token_id + 1)
                self.assertIsNone(tfzoo.weights.huggingface.load(folder, tokenizer=False)[1])
                path.write_text(json.dumps(record))
                larger.save(folder)
                self.refused(
                    folder, f"{path}: vocab_size is {right.vocab_size}, but the tokenizer has "
                    f"{right.vocab_size + 1} tokens",
                )  # fmt: skip

    def test_in_a_runs_folder(self):
        for kind, (_, right, larger) in tokenizers().items():
            with self.subTest(kind=kind):
                run = self.folder / kind
                run.mkdir()
                (run / "flags.cfg").write_text("")
                # As large as the larger one, so only the fingerprint distinguishes them.
                model = tfzoo.build("gpt2", vocab_size=larger.vocab_size, **SIZES)
                runs.write_config(run, {"main": model}, {"main": "gpt2"}, larger)
                larger.save(run / "tokenizer")
                checkpoint.Checkpoints(run / "checkpoints").save(1, checkpoint.model_variables(model), {})
                self.assertEqual(runs.load(run)[1].fingerprint(), larger.fingerprint())

                tokenizer = run / "tokenizer"
                shutil.rmtree(tokenizer)
                self.other(kind, larger).save(tokenizer)
                self.refused(run, f"{tokenizer}: is not the tokenizer of this run", str(run / "config.json"))
                record = json.loads((run / "config.json").read_text())
                del record["tokenizer"]  # A run written by an earlier version.
                (run / "config.json").write_text(json.dumps(record))
                runs.load(run)
                shutil.rmtree(tokenizer)
                right.save(tokenizer)
                self.refused(run, f"{tokenizer}: has {right.vocab_size} tokens, but the model's vocab_size is")

    def other(self, kind: str, like: tf.Module) -> tf.Module:
        """Returns another tokenizer of the same kind and size."""
        if kind == "wordpiece":
            return WordPiece([*like.vocab[:-1], "d"])
        if kind == "characters":
            return Characters([*like.vocab[:-1], "j"])
        if kind == "byte_level":
            return ByteLevelBPE([*like.vocab[:-1], "Ġ字"], like.merges, special_tokens=ENDS)
        return SentencePiece(like.model, sentinels=1, roles={"pad": "</s>"})


if __name__ == "__main__":
    tf.test.main()
