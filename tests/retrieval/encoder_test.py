"""Indexes of real models: prompts, a folder without the head embed, wrong models, and interrupted commands."""

import json
import shutil
import unittest
from unittest import mock

import numpy as np
import pytest

import tfzoo
from tests import helpers
from tfzoo import index, query
from tfzoo.errors import UserError
from tfzoo.retrieval import build
from tfzoo.retrieval.encoder import Encoder

GOLDEN = helpers.ROOT / "tests" / "assets" / "golden_sentence"


class CommandTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.shared = helpers.temporary_folder(cls)
        cls.model_dir = cls.shared / "model"
        shutil.copytree(GOLDEN / "bert", cls.model_dir)
        path = cls.model_dir / "config_sentence_transformers.json"
        prompts = {"query": "find ", "document": "text "}
        path.write_text(
            json.dumps(
                json.loads(path.read_text())
                | {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
            )
        )
        cls.texts = [f"the text {i} " + "and more of it " * (i * 7 % 5) for i in range(23)]
        cls.input = cls.shared / "texts.txt"
        cls.input.write_text("\n".join(cls.texts))

    def run_index(self, folder, *argv):
        where = f"--model_dir={self.model_dir}", f"--input={self.input}", f"--output_dir={folder}"
        return helpers.run(index, *where, "--block_size=4", "--batch_size=3", *argv)

    def test_vectors_have_the_prompts_of_queries_and_documents(self):
        folder = self.shared / "prompts"
        code, out, err = self.run_index(folder)
        self.assertEqual((code, err), (0, ""))
        self.assertIn("23 documents, vectors of", out)
        model, tokenizer = tfzoo.load(self.model_dir)
        vectors = tfzoo.embed_texts(model, self.texts, tokenizer, prompt="text ")
        vectors = build.normalized(vectors)
        np.testing.assert_allclose(np.load(folder / "vectors.npy"), vectors, rtol=0, atol=2e-6)
        wanted = build.normalized(tfzoo.embed_texts(model, "a text", tokenizer, prompt="find ")) @ vectors.T
        (results,) = tfzoo.open_index(folder).search("a text", method="vectors", top=30)
        self.assertEqual(sorted(int(result.id) for result in results), list(range(1, 24)))
        found = {int(result.id) - 1: result.score for result in results}
        np.testing.assert_allclose([found[i] for i in range(23)], wanted[0], rtol=0, atol=2e-6)
        # By flags instead.
        code, _, err = self.run_index(self.shared / "flags", "--document_prompt=find ", "--query_prompt=")
        self.assertEqual((code, err), (0, ""))
        (found,) = tfzoo.open_index(self.shared / "flags").search("x", method="vectors", top=1)
        vectors = build.normalized(tfzoo.embed_texts(model, self.texts, tokenizer, prompt="find "))
        wanted = build.normalized(tfzoo.embed_texts(model, "x", tokenizer, prompt="")) @ vectors.T
        self.assertAlmostEqual(found[0].score, float(wanted.max()), places=5)

    @pytest.mark.faults
    def test_an_interrupted_command_gives_the_same_bytes(self):
        whole, folder = self.shared / "whole", self.shared / "interrupted"
        self.assertEqual(self.run_index(whole)[0], 0)
        for calls in (3, 1):  # Blocks before the interruption; three others were computed when the second one comes.
            documents, count = Encoder.documents, 0

            def stop(encoder, texts, documents=documents, calls=calls):
                nonlocal count
                count += 1
                if count > calls + 2:  # Two calls when the model is loaded.
                    raise KeyboardInterrupt
                return documents(encoder, texts)

            with mock.patch.object(Encoder, "documents", stop):
                self.assertEqual(self.run_index(folder)[0], 130)
        self.assertEqual(json.loads((folder / "build.json").read_text())["blocks"], 4)
        self.assertEqual(self.run_index(folder)[0], 0)
        for path in whole.iterdir():
            if path.name != "lock":
                self.assertEqual((folder / path.name).read_bytes(), path.read_bytes(), path.name)

    def test_another_model_is_refused(self):
        folder = self.shared / "other"
        self.assertEqual(self.run_index(folder)[0], 0)
        where = f"--index_dir={folder}", "--query=a text", "--top=1"
        wrong = self.shared / "wrong"
        shutil.copytree(self.model_dir, wrong)
        path = wrong / "sentence_bert_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"max_seq_length": 9}))
        code, out, err = helpers.run(query, *where, f"--model_dir={wrong}")
        self.assertEqual((code, out), (2, ""))
        self.assertRegex(err, r"\Aerror: .*wrong: is not the model of .*other \(fingerprint .*; restore it, or .*\n\Z")
        # The same model elsewhere is the same model.
        moved = self.shared / "moved"
        self.model_dir.rename(moved)
        try:
            code, out, err = helpers.run(query, *where)
            self.assertEqual((code, out), (2, ""))
            self.assertRegex(err, r"\Aerror: .*other: its model: .*; or specify the folder with --model_dir\n\Z")
            code, found, err = helpers.run(query, *where, f"--model_dir={moved}")
            self.assertEqual((code, err), (0, ""))
        finally:
            moved.rename(self.model_dir)
        self.assertEqual(helpers.run(query, *where), (0, found, ""))
        code, out, err = helpers.run(
            index, f"--model_dir={wrong}", f"--input={self.input}", f"--output_dir={folder}", "--block_size=4"
        )
        self.assertEqual((code, out), (2, ""))
        self.assertRegex(err, r"\Aerror: --model_dir: is not the model with which .*other was begun .*\n\Z")

    def test_fingerprints(self):
        first, again = Encoder(str(self.model_dir)), Encoder(str(self.model_dir), weights="bfloat16")
        self.assertEqual(first.fingerprint, again.fingerprint)
        model = first._model
        model.trainable_variables[-1].assign_add(np.full(model.trainable_variables[-1].shape, 1e-3))
        from tfzoo.retrieval import encoder

        self.assertNotEqual(encoder._fingerprint(model, first._tokenizer), first.fingerprint)

    def test_a_model_without_the_head_embed(self):
        folder = self.shared / "plain"
        model, tokenizer = tfzoo.load(self.model_dir, heads=("lm",))
        tfzoo.save(model, folder, tokenizer)
        code, out, err = helpers.run(
            index, f"--model_dir={folder}", f"--input={self.input}", f"--output_dir={self.shared / 'mean'}"
        )
        self.assertEqual(code, 0, err)
        self.assertRegex(err, r"\A.*plain: has no head embed; a text's vector is the mean of its tokens' states\n\Z")

    def test_a_model_that_does_not_exist(self):
        code, out, err = helpers.run(
            index, "--model_dir=nowhere", f"--input={self.input}", f"--output_dir={self.shared / 'none'}"
        )
        self.assertEqual((code, out), (2, ""))
        self.assertRegex(err, r"\Aerror: --model_dir=nowhere: no such folder.*\n\Z")
        self.assertFalse((self.shared / "none").exists())
        with self.assertRaises(UserError):
            Encoder("nowhere")


if __name__ == "__main__":
    unittest.main()
