"""Hugging Face folders: reading, writing, and one-line errors before memory is allocated."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

import tfzoo
from tests import helpers, parity
from tfzoo import models, nn, text
from tfzoo.errors import UserError
from tfzoo.models.record import FolderRecord
from tfzoo.text.wordpiece import WordPiece
from tfzoo.weights import huggingface, table, tensors

GOLDEN = pathlib.Path(__file__).parents[1] / "assets" / "golden"
TOKENS = {"token_ids": tf.constant([[5, 6, 7, 8, 9]])}


class FolderCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = helpers.temporary_folder(self)

    def copy(self, case="bert", config=None, change=None, drop=()):
        """Returns a golden folder with changed fields in its config and changed tensors."""
        folder = self.folder / f"{case}_{len(list(self.folder.iterdir()))}"
        shutil.copytree(GOLDEN / case, folder)
        record = json.loads((folder / "config.json").read_text()) | (config or {})
        (folder / "config.json").write_text(json.dumps(record))
        if change or drop:
            path = folder / "model.safetensors"
            arrays = safetensors.numpy.load_file(path)
            for name in drop:
                del arrays[name]
            for name, value in (change or {}).items():
                arrays[name] = value(arrays[name]) if callable(value) else value
            path.unlink()
            safetensors.numpy.save_file(arrays, path)
        return folder


class LoadTest(FolderCase):
    def test_names_of_older_files_and_of_bare_models(self):
        expected = huggingface.load(GOLDEN / "bert")[0](TOKENS)
        arrays = safetensors.numpy.load_file(GOLDEN / "bert" / "model.safetensors")
        older = {
            n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
            for n, v in arrays.items()
        }
        older["cls.predictions.decoder.weight"] = arrays["bert.embeddings.word_embeddings.weight"]
        older["bert.embeddings.position_ids"] = np.arange(16)[None]
        bare = {n.removeprefix("bert."): v for n, v in arrays.items() if n.startswith("bert.")}
        for renamed, config in ((older, {}), (bare, {"architectures": ["BertModel"]})):
            folder = self.copy(config=config)
            (folder / "model.safetensors").unlink()
            safetensors.numpy.save_file(renamed, folder / "model.safetensors")
            outputs = huggingface.load(folder)[0](TOKENS)
            for name, value in outputs.items():
                self.assertAllEqual(value, expected[name])

    def test_new_heads_and_unused_tensors_are_logged(self):
        with self.assertLogs("absl", "INFO") as logs:
            model, _ = tfzoo.load(GOLDEN / "bert", heads=("classify",), num_labels=4)
        logged = "\n".join(logs.output)
        self.assertIn("newly initialised: classifier.weight, classifier.bias", logged)
        self.assertIn("cls.predictions.bias", logged)
        self.assertIn("in the file but not used", logged)
        outputs = model(TOKENS)
        self.assertEqual(outputs["classify_logits"].shape, (1, 4))
        self.assertAllEqual(outputs["pooled"], huggingface.load(GOLDEN / "bert")[0](TOKENS)["pooled"])
        self.assertGreater(np.std(model.heads["classify"].dense.kernel), 0)

    def test_a_head_that_hugging_face_does_not_have_is_new(self):
        model, _ = tfzoo.load(GOLDEN / "bert", heads=("relation",), labels=("a", "b", "c"))
        outputs = model(TOKENS | {"entity_positions": np.array([[1, 2]])})
        self.assertEqual(outputs["relation_logits"].shape, (1, 3))
        self.assertGreater(np.std(model.heads["relation"].classifier.dense.kernel), 0)
        self.assertAllEqual(outputs["sequence"], huggingface.load(GOLDEN / "bert")[0](TOKENS)["sequence"])

    def test_a_file_may_have_more_heads_than_its_architecture(self):
        """bert-base-uncased declares BertForMaskedLM, and contains the other head and the pooler."""
        folder = self.copy(config={"architectures": ["BertForMaskedLM"]})
        with self.assertLogs("absl", "INFO") as logs:
            model, _ = huggingface.load(folder)
        self.assertEqual(model.head_names, ("lm",))
        self.assertIn("bert.pooler.dense.bias, ", logs.output[0])
        self.assertRegex(logs.output[0], "in the file but not used: .*cls.seq_relationship.weight")
        self.assertAllEqual(model(TOKENS)["logits"], huggingface.load(GOLDEN / "bert")[0](TOKENS)["logits"])

    def test_half_precision_and_shards(self):
        model, _ = huggingface.load(GOLDEN / "t5_v1_1")
        for dtype, arguments in (("float16", {}), ("bfloat16", {}), ("float32", {"max_shard_bytes": 6000})):
            folder = self.folder / dtype
            huggingface.save(model, folder, dtype=dtype, **arguments)
            self.assertEqual(len(list(folder.glob("*.safetensors"))) > 1, bool(arguments))
            again = self.folder / f"{dtype}_again"
            loaded = huggingface.load(folder)[0]
            stored = tensors.DTYPES[huggingface.DTYPES[dtype]]
            for one, other in zip(model.variables, loaded.variables):
                if table.is_state(one):
                    continue
                self.assertAllEqual(np.asarray(one.value).astype(stored).astype(np.float32), other.value)
            huggingface.save(loaded, again, dtype=dtype, **arguments)
            for path in folder.iterdir():
                self.assertEqual(path.read_bytes(), (again / path.name).read_bytes(), path.name)

    def test_a_fresh_model_is_written_and_read(self):
        heads = dict(num_heads=4, num_kv_heads=2, head_dim=8)
        for name, overrides in (("palm_tiny", heads), ("mistral_7b", heads), ("gpt2", dict(num_heads=4))):
            sizes = dict(vocab_size=50, hidden_size=16, num_layers=1, intermediate_size=8)
            model = tfzoo.build(name, **sizes, **overrides)
            tfzoo.save(model, self.folder / name)
            again, _ = tfzoo.load(self.folder / name)
            self.assertEqual(again.config, model.config)
            self.assertAllEqual(again(TOKENS)["logits"], model(TOKENS)["logits"])
        self.assertEqual(json.loads((self.folder / "mistral_7b" / "config.json").read_text())["model_type"], "mistral")

    def test_a_tokenizer_is_written_with_the_maximum_length_unless_its_files_specify_it(self):
        words = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnop"])
        for case, given, expected in (
            ("bert", {}, 16),
            ("bert", {"model_max_length": 9}, 9),
            ("bert", {"model_max_length": None}, None),
            ("t5", {}, "missing"),
        ):
            with self.subTest(case, given=given):
                start = self.copy(case)
                words.save(start)
                path = start / "tokenizer_config.json"
                content = json.dumps(json.loads(path.read_text()) | given)
                path.write_text(content)
                tokenizer = text.load(start)
                folder = self.folder / f"again_{len(list(self.folder.iterdir()))}"
                tfzoo.save(huggingface.load(start, tokenizer=False)[0], folder, tokenizer)
                written = (folder / path.name).read_text()
                self.assertEqual(json.loads(written).get("model_max_length", "missing"), expected)
                if given:
                    self.assertEqual(written, content)

    def test_saving_rejects_what_would_be_lost(self):
        model, _ = huggingface.load(GOLDEN / "gpt2")
        (self.folder / "notes").write_text("mine")
        for arguments, message in (
            (dict(folder=self.folder), "already exists and is not an empty folder"),
            (dict(folder=self.folder / "new", dtype="int8"), "dtype 'int8'"),
        ):
            with self.assertRaisesRegex(UserError, message):
                huggingface.save(model, **arguments)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["notes"])
        odd = tfzoo.build("bert_tiny", num_layers=1, vocab_size=50, norm_first=True)
        with self.assertRaisesRegex(
            UserError, r"norm_first \(True\) cannot be expressed in Hugging Face's config of model_type bert"
        ):
            huggingface.save(odd, self.folder / "odd")
        relation = tfzoo.build("bert_tiny", num_layers=1, vocab_size=50, heads=("relation",))
        with self.assertRaisesRegex(UserError, "no bert with the heads relation"):
            huggingface.save(relation, self.folder / "relation")


class NamesTest(FolderCase):
    def test_two_architectures_of_every_kind_have_the_reference_s_names(self):
        """They are written under these names, and read with and without their prefix."""
        self.check_names(2)

    @pytest.mark.faults
    def test_every_architecture_has_the_reference_s_names(self):
        self.check_names(None)

    def check_names(self, most):
        golden = json.loads((GOLDEN.parent / "golden_names" / "golden.json").read_text())["model_types"]
        missing = {
            name
            for family in models.FAMILIES
            if models.page(family).WEIGHTS is not None
            for name in models.page(family).ARCHITECTURES
        } - {name for case in golden.values() for name in case["names"]}
        self.assertEqual(missing, {"TransformerModel", "TransformerForConditionalGeneration"})  # tfzoo's own.
        for kind, case in golden.items():
            page = models.page(models.model_types()[kind])
            prefix = getattr(page, "PREFIXES", {}).get(kind, page.PREFIX)
            for architecture, names in sorted(case["names"].items())[:most]:
                with self.subTest(architecture):
                    record = case["config"] | {"architectures": [architecture]}
                    record |= {"is_decoder": True} if architecture == "ReformerModelWithLMHead" else {}
                    config = huggingface.decode_config("config.json", record, page)
                    model = page.Model(config, heads=page.ARCHITECTURES[architecture])
                    model.record = FolderRecord(config=record)
                    folder = self.folder / architecture
                    tfzoo.save(model, folder)
                    arrays = safetensors.numpy.load_file(folder / "model.safetensors")
                    self.assertEqual({*arrays} ^ {*names}, set())
                    if architecture not in sorted(case["names"])[:2] and page.ARCHITECTURES[architecture]:
                        continue
                    if page.ARCHITECTURES[architecture]:
                        arrays = {n.removeprefix(prefix): array for n, array in arrays.items()}
                    else:
                        arrays = {prefix + n: array for n, array in arrays.items()}
                    (folder / "model.safetensors").unlink()
                    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
                    again, _ = tfzoo.load(folder)
                    for one, other in zip(model.weights, again.weights, strict=True):
                        self.assertAllEqual(one, other)


class RefusedTest(FolderCase):
    def test_a_table_of_positions_that_is_not_sinusoidal(self):
        folder = self.copy("pegasus", change={"model.decoder.embed_positions.weight": lambda table: table + 0.1})
        with self.assertRaisesRegex(UserError, "model.decoder.embed_positions.weight is not the sinusoidal table"):
            huggingface.load(folder)

    def refused(self, folder, *parts):
        with self.assertRaises(UserError) as caught:
            huggingface.load(folder)
        message = str(caught.exception)
        self.assertNotIn("\n", message)
        for part in (str(folder), *parts):
            self.assertIn(part, message)

    def test_tensors_that_do_not_match(self):
        name = "bert.encoder.layer.1.output.dense.weight"
        self.refused(self.copy(drop=[name]), "missing tensors: " + name)
        self.refused(self.copy(change={"bert.surprise": np.zeros(3, np.float32)}), "unexpected tensors: bert.surprise")
        self.refused(self.copy(change={name: lambda a: a[:-1]}), name, "shape [15, 24]", "[16, 24]")
        self.refused(self.copy(change={name: lambda a: np.full_like(a, np.nan)}), name, "is nan at")
        other = {"cls.predictions.decoder.weight": np.ones((53, 16), np.float32)}
        self.refused(self.copy(change=other), "cls.predictions.decoder.weight", "differ")
        self.refused(self.copy(config={"num_hidden_layers": 1}), "1 encoder layers", "tensors have 2")

    def test_configs_that_do_not_match(self):
        self.refused(self.copy(config={"model_type": "brt"}), "config.json", "'brt'", "did you mean bert")
        self.refused(self.copy(config={"architectures": ["BertForLove"]}), "BertForLove", "BertForMaskedLM")
        self.refused(self.copy(config={"position_embedding_type": "relative_key"}), "position_embedding_type")
        self.refused(self.copy(config={"hidden_act": "swoosh"}), "config.json", "'swoosh'")
        self.refused(self.copy(config={"num_attention_heads": 3}), "hidden_size (16)", "num_heads (3)")
        self.refused(self.copy(config={"hidden_size": "16"}), "hidden_size ('16')", "of type int")
        self.refused(self.copy(config={"hidden_size": 10**6, "num_attention_heads": 2}), "shape")
        self.refused(self.copy(config={"hidden_size": 10**9}), "hidden_size", "must be from 1 to 1,000,000")
        self.refused(self.copy(config={"num_hidden_layers": 9999}), "num_layers (9999)", "from 1 to 2,000")
        self.refused(self.copy(config={"num_hidden_layers": 25}), "25 encoder layers", "tensors have 2")
        self.refused(self.copy(config={"vocab_size": 10**7}), "[53, 16]", "[10000000, 16]")
        for content, message in (
            ("[]", "not an object"),
            ("{", "JSON"),
            ('{"a": NaN}', "NaN"),
            ("[" * 99999, "is nested too deeply"),
        ):
            folder = self.copy()
            (folder / "config.json").write_text(content)
            self.refused(folder, "config.json", message)

    def test_files_that_are_not_weights(self):
        pickle = self.copy()
        (pickle / "model.safetensors").write_bytes(b"\x80\x02}q\x00.")
        self.refused(pickle, "model.safetensors", "pickle")
        truncated = self.copy()
        content = (GOLDEN / "bert" / "model.safetensors").read_bytes()
        (truncated / "model.safetensors").write_bytes(content[:-100])
        self.refused(truncated, "model.safetensors", "truncated")


# Loads a model of 200 MB, then tries bad folders; prints the growth of memory, in bytes.
_FRESH = """
import json, pathlib, sys
import tensorflow as tf
from tfzoo.weights import huggingface
from tfzoo import nn
from tfzoo.errors import UserError

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

def forget():
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew.

warm, large, *bad = sys.argv[1:]
huggingface.load(warm)
grown = {}
for folder in (*bad, large):
    forget()
    before = peak()
    try:
        kept = huggingface.load(folder)
    except UserError as error:
        pass
    grown[folder] = peak() - before
print(json.dumps(grown))
"""


class LargeTest(FolderCase):
    def test_large_tensors_in_every_dtype(self):
        sizes = dict(vocab_size=600, hidden_size=512, num_layers=1, num_heads=8, intermediate_size=600)
        for name in ("gpt2", "bert_small"):  # Fused and plain, transposed and not.
            model = helpers.noisy_model(name, **sizes, heads=("lm",))
            tfzoo.save(model, self.folder / name)
            for dtype in ("float32", "bfloat16", "float16", "float64"):
                with self.subTest(name, dtype=dtype):
                    loaded, _ = huggingface.load(self.folder / name, dtype=dtype)
                    large = 0
                    for variable, expected in zip(loaded.weights, model.weights, strict=True):
                        self.assertAllEqual(variable.value, tf.cast(expected.value, dtype), variable.path)
                        large += expected.value.shape.num_elements() >= table._SMALL
                    self.assertGreaterEqual(large, 7)

    def test_they_can_be_changed(self):
        tfzoo.save(tfzoo.build("gpt2", vocab_size=600, hidden_size=512, num_layers=1, num_heads=8), self.folder / "m")
        model, _ = huggingface.load(self.folder / "m")
        embeddings = model.tokens.embeddings
        before = embeddings.numpy()
        embeddings.assign_add(np.ones(embeddings.shape))
        self.assertAllEqual(embeddings, before + 1)
        again, _ = huggingface.load(self.folder / "m")
        self.assertAllEqual(again.tokens.embeddings, before)


class MemoryTest(FolderCase):
    @pytest.mark.faults
    def test_memory_of_loading_and_of_rejecting(self):
        sizes = dict(vocab_size=60000, hidden_size=512, num_layers=6, num_heads=8, intermediate_size=2048)
        large = self.folder / "large"
        with nn.unset_weights():  # Drawing 50 million numbers takes seconds.
            model = tfzoo.build("bert_small", **sizes, heads=("lm",))
        for variable in model.variables:
            variable.assign(np.zeros(variable.shape))
        size = sum(int(np.prod(v.shape)) * 4 for v in model.variables)
        tfzoo.save(model, large)
        del model
        bad = [
            self.copy(config={"hidden_size": 10**6, "num_attention_heads": 2}),
            self.copy(config={"vocab_size": 10**7}),
            self.copy(config={"num_hidden_layers": 9999}),
            self.copy(config={"max_position_embeddings": 10**8}),
        ]
        result = helpers.python("-c", _FRESH, GOLDEN / "bert", large, *bad)
        grown = json.loads(result.stdout.splitlines()[-1])
        self.assertLess(grown.pop(str(large)), 1.2 * size)
        for folder, growth in grown.items():
            self.assertLess(growth, 64e6, folder)


class TablesTest(tf.test.TestCase):
    def test_a_gap_in_a_page_is_an_internal_error_and_named(self):
        model, _ = huggingface.load(GOLDEN / "gpt2")
        with self.assertRaisesRegex(KeyError, "0 entries for gpt2/decoder/"):
            table.slots({"transformer.wte": "decoder/embeddings/tokens"}, model)

    def test_every_case_of_the_reference_exists(self):
        self.assertGreater(len(parity.cases(GOLDEN)), 40)


if __name__ == "__main__":
    tf.test.main()
