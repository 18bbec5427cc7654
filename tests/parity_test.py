"""Every family compared with its reference: the golden files of tests/assets, converted to a model and written back."""

import json
import pathlib
import tempfile

import numpy as np
import pytest
import tensorflow as tf

import tfzoo
from tests import parity
from tfzoo.weights import huggingface

GOLDEN = pathlib.Path(__file__).parent / "assets" / "golden"


class ParityTest(tf.test.TestCase):
    def test_a_case_of_each_kind_gives_what_its_reference_gave_and_is_written_back_bit_by_bit(self):
        cases = parity.cases(GOLDEN)
        self.check({json.loads((case / "config.json").read_text())["model_type"]: case for case in cases}.values())

    @pytest.mark.faults
    def test_every_case_gives_what_its_reference_gave_and_is_written_back_bit_by_bit(self):
        self.check(parity.cases(GOLDEN))

    def check(self, cases):
        for case in cases:
            with self.subTest(case=case.name), tempfile.TemporaryDirectory() as folder:
                model, tokenizer = huggingface.load(case)
                for name, difference in parity.compare(case, model).items():
                    allowed = parity.GRADIENTS if name == "gradients" else parity.OUTPUTS
                    self.assertLessEqual(difference, allowed, f"{case.name}: {name}")
                parity.there_and_back(case, model, tokenizer, pathlib.Path(folder))

    def test_a_model_of_our_own_says_what_hugging_face_needs(self):
        expected = {
            "gpt2": dict(eos_token_id=None, bos_token_id=None, pad_token_id=0, architectures=["GPT2LMHeadModel"]),
            "t5_small": dict(decoder_start_token_id=0, tie_word_embeddings=True, d_kv=6, num_decoder_layers=2),
            "mbart_large_cc25": dict(decoder_start_token_id=2, model_type="mbart", decoder_ffn_dim=24),
            "transformer_base": dict(decoder_start_token_id=52, pad_token_id=52, model_type="marian"),
            "mistral_7b": dict(sliding_window=4, model_type="mistral", num_key_value_heads=2, pad_token_id=0),
        }
        arguments_of = {name: arguments for name, arguments in parity.fresh_models() if "lm" in arguments["heads"]}
        for name, fields in expected.items():
            with self.subTest(name=name), tempfile.TemporaryDirectory() as folder:
                case = parity.write_fresh(pathlib.Path(folder), name, arguments_of[name], seed=1)
                record = json.loads((case / "saved" / "config.json").read_text())
                self.assertLessEqual(fields.items(), record.items())
                golden = dict(np.load(case / "golden.npz"))
                model, _ = tfzoo.load(case / "saved")
                outputs = model({k.removeprefix("input."): v for k, v in golden.items() if k.startswith("input.")})
                self.assertAllEqual(outputs["logits"], golden["output.logits"])

    def test_a_small_change_of_a_weight_is_noticed(self):
        model, _ = huggingface.load(GOLDEN / "bert")
        variable = model.encoder.stack.blocks[1].mlp.down.kernel
        variable.assign(variable * 1.001)
        differences = parity.compare(GOLDEN / "bert", model)
        self.assertGreater(differences["sequence"], parity.OUTPUTS)
        self.assertGreater(differences["logits"], parity.OUTPUTS)


if __name__ == "__main__":
    tf.test.main()
