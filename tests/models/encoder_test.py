"""How RoBERTa, ELECTRA, DistilBERT and ALBERT differ from BERT, in addition to tests/parity_test.py."""

import json
import pathlib
import shutil

import numpy as np
import tensorflow as tf

from tests.helpers import temporary_folder
from tests.nn.formulas import randomize
from tfzoo import models
from tfzoo.errors import UserError
from tfzoo.weights import huggingface

GOLDEN = pathlib.Path(__file__).parents[1] / "assets" / "golden"
SMALL = dict(vocab_size=31, hidden_size=8, num_layers=2, num_heads=2, intermediate_size=12, max_positions=16)


class EncoderTest(tf.test.TestCase):
    def changed(self, case, **fields):
        """Returns a copy of a golden folder whose config.json has other fields."""
        folder = temporary_folder(self) / "model"
        shutil.copytree(GOLDEN / case, folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        return folder

    def test_roberta_counts_real_tokens_wherever_the_padding_stands(self):
        model, _ = huggingface.load(GOLDEN / "roberta")
        ids = np.array([5, 9, 7, 12])
        alone = model({"token_ids": ids[None]})["sequence"][0]
        for mask in ([1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1]):
            mask = np.array(mask, bool)
            padded = np.ones(6, np.int64)
            padded[mask] = ids
            sequence = model({"token_ids": padded[None], "padding_mask": mask[None]})["sequence"][0]
            self.assertAllClose(sequence[mask], alone, atol=1e-5)

    def test_packed_documents_attend_to_themselves_alone(self):
        ids = np.array([[5, 9, 7, 12, 8, 6, 11]])
        packed = {"token_ids": ids, "position_ids": np.array([[0, 1, 2, 0, 1, 2, 3]])}
        for name in ("roberta_base", "distilbert_base_uncased"):
            model = models.build(name, heads=("lm",), **SMALL)
            randomize(model)
            logits = model(packed | {"document_ids": np.array([[1] * 3 + [2] * 4])})["logits"]
            for part in (slice(0, 3), slice(3, 7)):
                self.assertAllClose(logits[:, part], model({"token_ids": ids[:, part]})["logits"], atol=1e-5)
            self.assertNotAllClose(logits, model(packed)["logits"], atol=1e-3)

    def test_roberta_positions_are_written_as_hugging_face_counts_them(self):
        model = models.build("roberta_base", heads=(), **SMALL)
        folder = temporary_folder(self) / "model"
        huggingface.save(model, folder)
        record = json.loads((folder / "config.json").read_text())
        self.assertEqual((record["max_position_embeddings"], record["pad_token_id"]), (18, 1))
        self.assertEqual(model.encoder.embeddings.positions.shape, (18, 8))
        self.assertEqual(huggingface.load(folder)[0].config, model.config)

    def test_xlm_roberta_is_read_and_stays_what_it_is(self):
        folder = self.changed("roberta", model_type="xlm-roberta", architectures=["XLMRobertaForMaskedLM"])
        model, _ = huggingface.load(folder)
        self.assertEqual(model.head_names, ("lm",))
        huggingface.save(model, folder.parent / "again")
        record = json.loads((folder.parent / "again" / "config.json").read_text())
        self.assertEqual((record["model_type"], record["architectures"]), ("xlm-roberta", ["XLMRobertaForMaskedLM"]))

    def test_the_lm_heads_of_roberta_and_electra_are_gelu_whatever_the_blocks_are(self):
        x = np.linspace(-2, 2, 5)
        gelu = tf.nn.gelu(x)
        for case, expected in (("roberta", gelu), ("electra_generator", gelu), ("distilbert", tf.nn.relu(x))):
            key = "activation" if case == "distilbert" else "hidden_act"
            model, _ = huggingface.load(self.changed(case, **{key: "relu"}))
            self.assertAllClose(model.heads["lm"].transform.activation(x), expected)
            self.assertAllClose(model.encoder.stack.blocks[0].mlp.up.activation(x), tf.nn.relu(x))

    def test_albert_applies_one_layer_again_and_again(self):
        one, two = (huggingface.load(self.changed("albert_tag", num_hidden_layers=layers))[0] for layers in (1, 2))
        self.assertEqual(len(one.variables), len(two.variables))
        inputs = {"token_ids": np.array([[5, 9, 7]])}
        again = two.encoder.stack.blocks[0](one(inputs)["sequence"])
        self.assertAllClose(two(inputs)["sequence"], again, atol=1e-6)

    def test_albert_projects_embeddings_of_any_size_and_electra_narrow_ones(self):
        folder = temporary_folder(self)
        for name, size, projected in (("albert_base_v2", 8, 1), ("electra_small", 6, 1), ("electra_base", 0, 0)):
            model = models.build(name, **SMALL, embedding_size=size, heads=())
            self.assertEqual(model.encoder.embeddings.projection is not None, bool(projected))
            huggingface.save(model, folder / name)
            self.assertEqual(huggingface.load(folder / name)[0].config, model.config)
        record = json.loads((folder / "electra_base" / "config.json").read_text())
        self.assertEqual(record["embedding_size"], 8)
        with self.assertRaisesRegex(UserError, "embedding_size"):
            huggingface.save(models.build("albert_base_v2", **SMALL, embedding_size=0, heads=()), folder / "none")

    def test_what_the_pages_do_not_do_is_refused_by_name(self):
        for case, field, value in (
            ("roberta", "is_decoder", True),
            ("roberta", "position_embedding_type", "relative_key"),
            ("electra_generator", "tie_word_embeddings", False),
            ("distilbert", "tie_word_embeddings", False),
            ("albert", "num_hidden_groups", 2),
            ("albert", "inner_group_num", 2),
        ):
            with self.subTest(case=case, field=field), self.assertRaisesRegex(UserError, f"config.json: {field} is"):
                huggingface.load(self.changed(case, **{field: value}))


if __name__ == "__main__":
    tf.test.main()
