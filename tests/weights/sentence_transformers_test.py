"""Sentence-transformers folders: vectors equal the library's for any padding; writing; errors."""

import json
import pathlib
import re
import shutil

import numpy as np
import safetensors.numpy
import tensorflow as tf

import tfzoo
from tests import helpers
from tfzoo import embeddings
from tfzoo.config import POOLINGS, EmbeddingConfig, Projection
from tfzoo.errors import UserError
from tfzoo.models.record import SentenceRecord
from tfzoo.text.framing import TEXT
from tfzoo.text.reader import lowered
from tfzoo.weights import sentence_transformers

GOLDEN = pathlib.Path(__file__).parents[1] / "assets" / "golden_sentence"
CASES = ("bert", "cased", "roberta", "gpt2")


def vectors(model, tokenizer, golden, prompt, **options):
    return tfzoo.embed_texts(model, golden["texts"].tolist(), tokenizer, prompt_name=prompt or None, **options)


def loaded(folder, golden):
    """Returns (model, texts, tokenizer)."""
    model, tokenizer = tfzoo.load(folder)
    return model, golden["texts"].tolist(), tokenizer


class FolderCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = helpers.temporary_folder(self)

    def copy(self, case, changes=None, drop=()):
        """Returns a golden folder with changes in its files: {file: changed fields, or the whole content}."""
        folder = self.folder / f"{case}_{len(list(self.folder.iterdir()))}"
        shutil.copytree(GOLDEN / case, folder)
        for name in drop:
            (folder / name).unlink()
        for name, change in (changes or {}).items():
            path = folder / name
            content = json.loads(path.read_text()) if path.exists() else {}
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content | change if isinstance(change, dict) else change))
        return folder


class VectorsTest(FolderCase):
    def test_vectors_equal_the_librarys_with_every_prompt_and_any_padding(self):
        for case in CASES:
            golden = np.load(GOLDEN / case / "golden.npz")
            model, tokenizer = tfzoo.load(GOLDEN / case)
            self.assertEqual(model.head_names, ("embed",))
            prompts = [name.removeprefix("vectors/") for name in golden.files if name.startswith("vectors/")]
            self.assertIn("", prompts)
            for prompt in prompts:
                wanted = golden[f"vectors/{prompt}"]
                self.assertAllClose(vectors(model, tokenizer, golden, prompt), wanted, rtol=0, atol=2e-6)
                self.assertAllClose(vectors(model, tokenizer, golden, prompt, batch_size=1), wanted, rtol=0, atol=2e-6)

    def test_every_pooling_in_the_older_spelling_and_the_newer(self):
        golden = np.load(GOLDEN / "roberta" / "golden.npz")
        drop = ("config_sentence_transformers.json",)  # Including the prompts.
        for mode, (ours, flag) in sentence_transformers._POOLINGS.items():
            for fields in ({"pooling_mode": None, flag: True}, {"pooling_mode": mode}):
                fields["include_prompt"] = None
                folder = self.copy("roberta", {"1_Pooling/config.json": fields}, drop)
                self.assertEqual(sentence_transformers.read(folder).embed, EmbeddingConfig(pooling=(ours,)))
            got = tfzoo.embed_texts(*loaded(folder, golden))
            self.assertAllClose(got, golden[f"modes/{mode}"], rtol=0, atol=2e-6, msg=mode)
        self.assertCountEqual([ours for ours, _ in sentence_transformers._POOLINGS.values()], POOLINGS)

    def test_flags_define_the_order_of_vectors_and_no_flag_is_the_mean(self):
        flags = {flag: True for _, flag in sentence_transformers._POOLINGS.values()}
        for fields, pooling in (
            (dict(reversed(flags.items())), ("first", "max", "mean", "mean_sqrt_len", "weighted_mean", "last")),
            ({"pooling_mode_cls_token": False}, ("mean",)),
            ({"pooling_mode_max_tokens": True, "pooling_mode": "cls"}, ("first",)),
            ({"pooling_mode": ["lasttoken", "cls", "cls"]}, ("last", "first", "first")),
        ):
            folder = self.copy("roberta", {"1_Pooling/config.json": {"pooling_mode": None} | fields})
            self.assertEqual(sentence_transformers.read(folder).embed.pooling, pooling)

    def test_padding_and_weights_in_half_precision_change_little(self):
        model, tokenizer = tfzoo.load(GOLDEN / "bert")
        reading = embeddings.reader_of(model, tokenizer).read({TEXT: tf.constant(["a b", "the function of a"])})
        self.assertEqual(reading.inputs["padding_mask"].numpy().sum(1).tolist(), [4, 6])
        alone = {name: value[:1, :4] for name, value in reading.inputs.items()}
        self.assertAllClose(model(reading.inputs)["embedding"][:1], model(alone)["embedding"], rtol=0, atol=1e-6)
        left = {name: np.roll(value[:1], 2, axis=1) for name, value in reading.inputs.items()}
        left["position_ids"] = np.array([[0, 0, 0, 1, 2, 3]])
        self.assertAllClose(model(left)["embedding"], model(alone)["embedding"], rtol=0, atol=1e-6)
        del alone["padding_mask"]
        self.assertAllClose(model(reading.inputs)["embedding"][:1], model(alone)["embedding"], rtol=0, atol=1e-6)
        half, _ = tfzoo.load(GOLDEN / "bert", dtype="mixed_bfloat16")
        self.assertEqual(half(reading.inputs)["embedding"].dtype, "float32")
        self.assertAllClose(half(reading.inputs)["embedding"], model(reading.inputs)["embedding"], rtol=0, atol=0.05)

    def test_any_encoder_can_embed(self):
        plain = self.copy("bert", drop=("modules.json",))
        model, tokenizer = tfzoo.load(plain, heads=("embed",), embed=EmbeddingConfig(layers=("normalize",)))
        got = tfzoo.embed_texts(model, "the function", tokenizer)
        self.assertAllClose(np.linalg.norm(got, axis=1), [1.0])
        bare, _ = tfzoo.load(plain)
        self.assertEqual(bare.head_names, ())
        reading = embeddings.reader_of(model, tokenizer).read({TEXT: tf.constant(["the function"])})
        mean = bare(reading.inputs)["sequence"].numpy().mean(1)
        self.assertAllClose(got, mean / np.linalg.norm(mean), atol=1e-6)
        with self.assertRaisesRegex(UserError, "has no head embed; load it with heads"):
            tfzoo.embed_texts(bare, "a", tokenizer)
        with self.assertRaisesRegex(UserError, "has no tokenizer"):
            tfzoo.embed_texts(model, "a", None)
        other, _ = tfzoo.load(GOLDEN / "bert", heads=("classify",))
        self.assertEqual(other.head_names, ("classify",))  # The embedding modules are not used.

    def test_prompts(self):
        record = SentenceRecord(prompts={"query": "query: ", "to": "to: "}, default_prompt_name="to")
        self.assertEqual([record.prompt(), record.prompt("query"), record.prompt("document")], ["to: ", "query: ", ""])
        with self.assertRaisesRegex(
            UserError, "prompt_name 'quary': the model has no such prompt; it has query, docum"
        ):
            record.prompt("quary")
        golden = np.load(GOLDEN / "roberta" / "golden.npz")
        model, texts, tokenizer = loaded(GOLDEN / "roberta", golden)
        own = tfzoo.embed_texts(model, texts, tokenizer, prompt="the query:  ")
        self.assertAllClose(own, golden["vectors/query"], rtol=0, atol=2e-6)
        self.assertNotAllClose(tfzoo.embed_texts(model, texts, tokenizer, prompt=""), own, atol=1e-2)

    def test_each_character_is_lower_cased_by_itself(self):
        text = "ΑΣ İI ẞÉ Ω K (東) Ǆ ﬁ ᾼ 𝐀 𐐀"
        self.assertEqual(lowered(tf.constant([text]))[0].numpy().decode(), "".join(map(str.lower, text)))

    def test_the_longest_text(self):
        for changes, drop, longest in (
            ({}, (), 16),
            ({"sentence_bert_config.json": {"max_seq_length": 9}}, (), 9),
            ({"sentence_bert_config.json": {"max_seq_length": 500}}, (), 24),  # The table of positions ends there.
            ({"tokenizer_config.json": {"model_max_length": int(1e30)}}, (), 24),
            ({"tokenizer_config.json": {"model_max_length": None}}, (), 24),
        ):
            model, _ = tfzoo.load(self.copy("bert", changes, drop))
            self.assertEqual(embeddings.longest(model), longest)


class SavedTest(FolderCase):
    def test_what_is_read_is_written_again(self):
        for case in CASES:
            golden = np.load(GOLDEN / case / "golden.npz")
            model, tokenizer = tfzoo.load(GOLDEN / case)
            tfzoo.save(model, self.folder / case, tokenizer)
            again, loaded_tokenizer = tfzoo.load(self.folder / case)
            self.assertEqual(again.embed, model.embed)
            for field in ("max_length", "lowercase", "prompts", "default_prompt_name", "similarity"):
                self.assertEqual(getattr(again.record.sentence, field), getattr(model.record.sentence, field))
            self.assertAllEqual(vectors(again, loaded_tokenizer, golden, ""), vectors(model, tokenizer, golden, ""))
            read = [
                {
                    re.sub(r"^(bert|roberta|transformer)\.", "", name)  # A bare model's names may have it or not.
                    for path in folder.rglob("*.safetensors")
                    for name in safetensors.numpy.load_file(path)
                }
                for folder in (GOLDEN / case, self.folder / case)
            ]
            self.assertEqual(*read)
            tfzoo.save(again, self.folder / f"{case}_again", loaded_tokenizer)
            for path in filter(pathlib.Path.is_file, (self.folder / case).rglob("*")):
                other = self.folder / f"{case}_again" / path.relative_to(self.folder / case)
                self.assertEqual(path.read_bytes(), other.read_bytes(), path)

    def test_the_files(self):
        model, tokenizer = tfzoo.load(GOLDEN / "bert")
        tfzoo.save(model, self.folder / "saved", tokenizer, dtype="bfloat16")

        def content(name):
            return json.loads((self.folder / "saved" / name).read_text())

        self.assertEqual(content("config.json")["architectures"], ["BertModel"])
        self.assertEqual(
            [(entry["idx"], entry["path"], entry["type"].rpartition(".")[2]) for entry in content("modules.json")],
            [
                (0, "", "Transformer"),
                (1, "1_Pooling", "Pooling"),
                (2, "2_Dense", "Dense"),
                (3, "3_Normalize", "Normalize"),
                (4, "4_Dense", "Dense"),
            ],
        )
        self.assertEqual(content("sentence_bert_config.json"), {"max_seq_length": 16, "do_lower_case": False})
        self.assertEqual(sum(value is True for value in content("1_Pooling/config.json").values()), 7)
        self.assertEqual(
            content("4_Dense/config.json"),
            {
                "in_features": 10,
                "out_features": 6,
                "bias": False,
                "activation_function": "torch.nn.modules.activation.GELU",
            },
        )
        arrays = safetensors.numpy.load_file(self.folder / "saved" / "2_Dense" / "model.safetensors")
        self.assertEqual(
            {name: value.shape for name, value in arrays.items()}, {"linear.weight": (10, 48), "linear.bias": (10,)}
        )

    def test_a_fresh_model(self):
        embed = EmbeddingConfig(pooling=("last", "first"), layers=(Projection(5, "silu"), "normalize"))
        sizes = dict(vocab_size=30, hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8, max_positions=12)
        model = tfzoo.build("bert_tiny", heads=("embed",), embed=embed, **sizes)
        tfzoo.save(model, self.folder / "fresh")
        again, _ = tfzoo.load(self.folder / "fresh")
        self.assertEqual(again.embed, embed)
        self.assertEqual(again.record.sentence.max_length, 12)
        inputs = {"token_ids": np.array([[3, 4, 5]])}
        self.assertAllEqual(again(inputs)["embedding"], model(inputs)["embedding"])
        self.assertEqual(model(inputs)["embedding"].shape, (1, 5))
        performer = tfzoo.build("performer_small", heads=("embed",))
        with self.assertRaisesRegex(UserError, "sentence-transformers does not support performer"):
            tfzoo.save(performer, self.folder / "performer")


class RefusedTest(FolderCase):
    def test_unknown_settings_are_named(self):
        def module(i, **fields):
            entries = json.loads((GOLDEN / "bert" / "modules.json").read_text())
            entries[i] |= fields
            return {"modules.json": entries}

        entries = json.loads((GOLDEN / "bert" / "modules.json").read_text())
        pooling, texts, prompts = (
            "1_Pooling/config.json",
            "sentence_bert_config.json",
            "config_sentence_transformers.json",
        )
        for changes, *parts in (
            (module(0, type="sentence_transformers.models.CLIPModel"), "modules.json: module 0", "CLIPModel"),
            (
                module(0, type="sentence_transformers.models.WordEmbeddings"),
                "models.WordEmbeddings",
                "use one of Transformer",
            ),
            (module(1, type="models.Poolin"), "module 1", "did you mean Pooling"),
            (module(2, type="custom.LayerNorm"), "module 2", "custom.LayerNorm"),
            (module(2, path="../elsewhere"), "'../elsewhere'", "plain folder name"),
            (module(2, kwargs=["task"]), "module 2", "kwargs", "['task']"),
            (module(2, type="models.Pooling"), "Transformer, Pooling, Pooling"),
            ({"modules.json": entries[:1]}, "the modules are Transformer;"),
            ({"modules.json": ["Pooling"]}, "module 0: is 'Pooling', not an object"),
            ({pooling: {"pooling_mode": "median"}}, pooling, "pooling_mode is 'median', not one of cls, max"),
            ({pooling: {"pooling_mode": []}}, "pooling_mode is empty"),
            (
                {pooling: {"pooling_mode_mean_token": True}},
                "pooling_mode_mean_token is True",
                "did you mean pooling_mode_mean",
            ),
            ({pooling: {"include_prompt": "no"}}, "include_prompt is 'no', not true or false"),
            (
                {pooling: {"embedding_dimension": 4}},
                "2_Dense/config.json: in_features is 48, but the previous module outputs 24",
            ),
            ({"2_Dense/config.json": {"in_features": 40}}, "in_features is 40", "outputs 48 numbers"),
            (
                {"2_Dense/config.json": {"out_features": 9}},
                "4_Dense/config.json: in_features is 10",
                "outputs 9 numbers",
            ),
            ({"4_Dense/config.json": {"out_features": 7}}, "4_Dense/model.safetensors", "linear.weight", "[6, 10]"),
            ({"4_Dense/config.json": {"bias": True}}, "missing tensors: embed.dense_1.linear.bias"),
            (
                {"2_Dense/config.json": {"bias": False}},
                "2_Dense: has a tensor linear.bias, contrary to its config.json",
            ),
            (
                {"2_Dense/config.json": {"activation_function": "torch.nn.Mish"}},
                "activation_function is 'torch.nn.Mish'",
            ),
            ({"2_Dense/config.json": {"use_residual": True}}, "use_residual is true"),
            (
                {"2_Dense/config.json": {"module_input_name": "token_embeddings"}},
                "module_input_name is 'token_embeddings'",
            ),
            ({"3_Normalize/config.json": {"p": 1}}, "3_Normalize/config.json: p is 1, an unknown field of Normalize"),
            ({texts: {"max_seq_length": 0}}, f"{texts}: max_seq_length is 0"),
            ({texts: {"query_length": 32}}, "query_length is 32, an unknown field of Transformer"),
            ({texts: {"model_args": {"dtype": "float16"}}}, "model_args is {'dtype': 'float16'}"),
            ({texts: {"transformer_task": "fill-mask"}}, "transformer_task is 'fill-mask'"),
            ({texts: {"modality_config": {"image": {}}}}, "modality_config has image: {}"),
            (
                {prompts: {"model_type": "SparseEncoder"}},
                "model_type is 'SparseEncoder', not one of SentenceTransformer",
            ),
            ({prompts: {"prompts": {"query": 3}}}, "prompts: query is 3, not a string"),
            (
                {prompts: {"default_prompt_name": "question"}},
                "default_prompt_name is 'question', which is not in prompts",
            ),
            ({prompts: {"similarity_fn_name": "angle"}}, "similarity_fn_name is 'angle'"),
        ):
            folder = self.copy("bert", changes)
            with self.subTest(parts[0]), self.assertRaises(UserError) as caught:
                tfzoo.load(folder)
            for part in parts:
                self.assertIn(part, str(caught.exception))
            self.assertNotIn("\n", str(caught.exception))

    def test_a_missing_tensor_is_not_newly_initialised(self):
        folder = self.copy("bert", {"4_Dense/config.json": {"bias": True}})
        with self.assertRaisesRegex(UserError, "4_Dense: has no tensor linear.bias, contrary to its config.json"):
            tfzoo.load(folder, heads=("embed", "tag"))

    def test_pickled_weights(self):
        folder = self.copy("bert", drop=("2_Dense/model.safetensors",))
        (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
        with self.assertRaisesRegex(
            UserError, "2_Dense: contains no model.safetensors, only 'pytorch_model.bin', a pickle"
        ):
            tfzoo.load(folder)

    def test_states_of_another_size(self):
        folder = self.copy("roberta", {"1_Pooling/config.json": {"embedding_dimension": 16}})
        with self.assertRaisesRegex(
            UserError, "1_Pooling/config.json: the size of a token's vector is 16, but hidden_size is 8"
        ):
            tfzoo.load(folder)

    def test_configs_of_heads(self):
        for fields in (dict(pooling=("sum",)), dict(pooling=()), dict(layers=("norm",))):
            with self.assertRaisesRegex(UserError, "must be"):
                EmbeddingConfig(**fields)


if __name__ == "__main__":
    tf.test.main()
