"""Every kind of source, converted through the command's main and compared with golden files and KerasHub's outputs."""

import gzip
import json
import pathlib
import re
import shutil
from unittest import mock

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import tokenizers

from tests import helpers, made_run
from tests.export import small
from tfzoo import convert
from tfzoo.text import load as load_tokenizer
from tfzoo.training import checkpoint, runs
from tfzoo.weights import huggingface, keras_presets, tensors, tf1_files
from tfzoo.weights.safetensors_files import open_folder

ASSETS = pathlib.Path(__file__).parent / "assets"
GOLDEN, PRESETS = ASSETS / "golden", ASSETS / "keras_hub"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(97 + i) for i in range(26)), "##a", "##b"]


def outputs(folder, case):
    """Returns the outputs of the model in `folder` for a case's inputs, and the expected outputs, by name."""
    golden = dict(np.load(case / "golden.npz"))
    inputs = {name.removeprefix("input."): value for name, value in golden.items() if name.startswith("input.")}
    model, _ = huggingface.load(folder, tokenizer=False)
    answers = model({name: tf.constant(value) for name, value in inputs.items()})
    for name, expected in golden.items():
        if name.startswith("output."):
            name = name.removeprefix("output.")
            answer = answers[name].numpy()
            decodes = "decoder_padding_mask" in inputs and name != "memory"
            real = inputs["decoder_padding_mask" if decodes else "padding_mask"]
            if answer.shape[:2] == real.shape:  # The outputs at padding are arbitrary.
                answer, expected = answer[real], expected[real]
            yield name, answer, expected


class ConvertCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = helpers.temporary_folder(self)
        self.to = self.folder / "to"

    def convert(self, source, *flags, code=0, to=None):
        """Returns the lines printed to stdout or, if the command fails, to stderr."""
        exit_code, out, err = helpers.run(convert, f"--from={source}", f"--to={to or self.to}", *flags)
        self.assertEqual(exit_code, code, err)
        return (err if code else out).splitlines()

    def refused(self, source, pattern, *flags):
        (line,) = self.convert(source, *flags, code=2)
        self.assertRegex(line, pattern)
        self.assertFalse(self.to.exists())

    def assert_same_tensors(self, one, other, left_out=()):
        with open_folder(one) as first, open_folder(other) as second:
            self.assertEqual(set(first.names) - set(left_out), set(second.names))
            for name in second.names:
                self.assertEqual(first.read(name).tobytes(), second.read(name).tobytes(), name)


class HuggingFaceTest(ConvertCase):
    def copy(self, case, **files):
        folder = self.folder / case
        shutil.copytree(GOLDEN / case, folder)
        for name in ("case.json", "golden.npz"):
            (folder / name).unlink()
        for name, content in files.items():
            (folder / name.replace("_dot_", ".")).write_bytes(content)
        return folder

    def test_round_trip_with_the_files_next_to_the_weights(self):
        beside = {
            "vocab.txt": b"not\r\nWordPiece",
            "tokenizer_config.json": b'{"do_lower_case":true, "strip_accents": false}',
            "tokenizer.json": b"{}",
            "special_tokens_map.json": b"{ }",
            "chat_template.jinja": b"{{ x }}",
            "additional_chat_templates/rag.jinja": b"{{ y }}",
            "generation_config.json": b'{"max_length":5}',
        }
        source = self.copy("bart")
        for name, content in beside.items():
            (source / name).parent.mkdir(exist_ok=True)
            (source / name).write_bytes(content)
        (source / "pytorch_model.bin").write_bytes(b"\x80\x02")
        lines = self.convert(source)
        self.assertEqual(lines[0], f"read {source}: a Hugging Face folder")
        self.assertRegex(
            lines[1], r"to: BartForConditionalGeneration, [\d,]+ parameters, \d+ tensors in 1 file, float32$"
        )
        names = sorted({name.partition("/")[0] for name in beside} | {"README.md"})
        self.assertEqual(lines[2], f"other files written: {', '.join(names)}")
        self.assertEqual(lines[3], "files not converted: pytorch_model.bin")
        for name, content in beside.items():
            self.assertEqual((self.to / name).read_bytes(), content)
        self.assert_same_tensors(source, self.to)
        before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, self.to))
        self.assertEqual(before, after)

    def test_the_authors_model_card_is_kept(self):
        source, content = self.copy("bert"), b"---\r\nlicense: mit\r\n---\r\n# Theirs\n"
        (source / "README.md").write_bytes(content)
        self.assertNotIn("files not converted", "".join(self.convert(source)))
        self.assertEqual((self.to / "README.md").read_bytes(), content)

    def test_sentence_transformers(self):
        for case in ("bert", "cased"):
            source = GOLDEN.parent / "golden_sentence" / case
            to = self.folder / case
            lines = self.convert(source, to=to)
            self.assertEqual(lines[0], f"read {source}: a sentence-transformers folder")
            self.assertIn("BertModel, ", lines[1])
            self.assertNotIn("tensors not converted", "".join(lines))
            self.assertEqual(
                [line for line in lines if "files not converted" in line],
                ["files not converted: golden.npz"][: case == "bert"],
            )
            before, after = (huggingface.load(folder)[0] for folder in (source, to))
            self.assertEqual((before.embed, before.record.sentence), (after.embed, after.record.sentence))

    def test_other_dtypes_and_back(self):
        source = self.copy("t5")
        for dtype in ("float16", "bfloat16"):
            half, again, back = (self.folder / f"{dtype}_{name}" for name in ("half", "again", "back"))
            self.assertIn(f", {dtype}", self.convert(source, f"--dtype={dtype}", to=half)[1])
            self.assertIn(f", {dtype}", self.convert(half, to=again)[1])
            self.assertEqual((half / "model.safetensors").read_bytes(), (again / "model.safetensors").read_bytes())
            self.convert(half, "--dtype=float32", to=back)
            with open_folder(source) as before, open_folder(back) as after:
                stored = tensors.DTYPES[huggingface.DTYPES[dtype]]
                for name in after.names:
                    self.assertAllEqual(before.read(name).astype(stored).astype(np.float32), after.read(name))

    def test_shards(self):
        model = small.model(hidden_size=256, intermediate_size=1024)
        huggingface.save(model, self.folder / "one", small.tokenizer())
        self.assertIn("in 3 files", self.convert(self.folder / "one", "--max_shard_mb=3")[1])
        self.convert(self.to, to=self.folder / "back")
        for name in ("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json"):
            self.assertEqual((self.folder / "one" / name).read_bytes(), (self.folder / "back" / name).read_bytes())

    def test_tensors_that_are_not_converted_are_listed(self):
        source = self.copy("bert")
        arrays = safetensors.numpy.load_file(source / "model.safetensors")
        arrays["bert.embeddings.position_ids"] = np.arange(16)[None]
        arrays["cls.predictions.decoder.weight"] = arrays["bert.embeddings.word_embeddings.weight"]
        older = {n.replace("LayerNorm.weight", "LayerNorm.gamma").removeprefix("bert."): v for n, v in arrays.items()}
        (source / "model.safetensors").unlink()
        safetensors.numpy.save_file(older, source / "model.safetensors")
        self.assertEqual(
            self.convert(source)[3], "tensors not converted: cls.predictions.decoder.weight, embeddings.position_ids"
        )
        self.assert_same_tensors(GOLDEN / "bert", self.to)


class RefusedTest(ConvertCase):
    def test_errors_are_one_line(self):
        empty = self.folder / "empty"
        empty.mkdir()
        self.refused(self.folder / "nowhere", "^error: --from=.*nowhere: no such folder")
        self.refused(empty, "neither config.json nor a checkpoint")
        pickle = self.folder / "pickle"
        pickle.mkdir()
        shutil.copy(GOLDEN / "bert" / "config.json", pickle)
        (pickle / "pytorch_model.bin").write_bytes(b"\x80\x02")
        self.refused(pickle, "a pickle")
        shutil.copy(pickle / "pytorch_model.bin", pickle / "model.safetensors")
        self.refused(pickle, "model.safetensors: is a pickle")
        self.refused(GOLDEN / "bert", "--checkpoint=x: does not apply to a Hugging Face folder", "--checkpoint=x")

    def test_a_target_that_is_not_empty(self):
        self.to.mkdir()
        self.convert(GOLDEN / "bert")  # An empty folder may exist.
        before = {path.name: path.read_bytes() for path in self.to.iterdir()}
        self.assertIn("model.safetensors", before)
        (line,) = self.convert(GOLDEN / "gpt2", code=2)
        self.assertRegex(line, "to: already exists and is not an empty folder")
        self.assertEqual(before, {path.name: path.read_bytes() for path in self.to.iterdir()})
        (self.folder / "file").write_text("")
        self.assertRegex(
            self.convert(GOLDEN / "gpt2", code=2, to=self.folder / "file")[0],
            "file: already exists and is not an empty folder",
        )
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["file", "to"])


class RunTest(ConvertCase):
    def test_the_best_or_a_named_checkpoint(self):
        run, model = self.folder / "run", small.model()
        run.mkdir()
        (run / "flags.cfg").write_text("--model=bert_tiny\n")
        runs.write_config(run, {"main": model}, {"main": "bert_tiny"}, None)
        small.tokenizer().save(run / "tokenizer")
        store = checkpoint.Checkpoints(run / "checkpoints")
        values = {}
        for step in (1, 2):
            model.set_weights([w + step for w in model.get_weights()])
            store.save(step, checkpoint.model_variables(model), {})
            values[step] = model.heads["lm"].bias.numpy()
        for step, flags in ((2, ()), (1, (f"--checkpoint={store.path(1)}",))):
            to = self.folder / str(step)
            lines = self.convert(run, *flags, to=to)
            self.assertRegex(lines[1], "BertForPreTraining, .*float32$")
            written = "other files written: README.md, tokenizer.json, tokenizer_config.json, vocab.txt"
            self.assertEqual(lines[2:], [written])
            loaded, tokenizer = huggingface.load(to)
            self.assertAllEqual(loaded.heads["lm"].bias, values[step])
            self.assertEqual(tokenizer.fingerprint(), small.tokenizer().fingerprint())

    def test_the_model_card(self):
        run, model = made_run.fine_tuning(self.folder / "mine"), small.model(heads=("classify",), num_labels=3)
        runs.write_config(run, {"main": model}, {"main": "bert_tiny"}, None)
        small.tokenizer().save(run / "tokenizer")
        store = checkpoint.Checkpoints(run / "checkpoints")
        for step in (600, 1500):
            store.save(step, checkpoint.model_variables(model), {}, best=step == 600)
        self.convert(run)
        card = huggingface_hub.ModelCard.load(self.to / "README.md")
        self.assertEqual((card.data.base_model, card.data.pipeline_tag), ("owner/encoder", "text-classification"))
        self.assertEqual(card.data.eval_results[0].dataset_name, "dev.tsv")
        self.assertIn("| Accuracy | 0.900 | 0.867 to 0.933 | 0.348 | 0.824 |", card.text)
        self.assertIn(f"{model.count_params():,} parameters. It was trained from", card.text)
        # The results are not those of another checkpoint.
        self.convert(run, f"--checkpoint={store.path(1500)}", to=self.folder / "last")
        self.assertIn("No score of this model is known", (self.folder / "last" / "README.md").read_text())
        (run / "evaluation.json").write_text("{")
        self.assertRegex(
            self.convert(run, to=self.folder / "damaged", code=2)[0], "^error: .*evaluation.json, line 1: is not JSON"
        )


def tf1_name(name):
    """Returns google-research's name of a Hugging Face tensor; Hugging Face's names were derived from these."""
    name = re.sub(r"_embeddings\.weight$", "_embeddings", name)
    name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)
    name = re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", name)
    name = name.replace("seq_relationship.weight", "seq_relationship.output_weights")
    name = re.sub(r"(predictions|seq_relationship|lm_head)\.bias$", r"\1.output_bias", name)
    name = name.replace("generator_lm_head", "generator_predictions").replace("dense_prediction", "dense_1")
    name = re.sub(r"\.weight$", ".kernel", name)
    return name.replace("layer.", "layer_").replace(".", "/")


def tf1_arrays(case):
    arrays = safetensors.numpy.load_file(case / "model.safetensors")
    return {tf1_name(n): v.T if tf1_name(n).endswith("/kernel") else v for n, v in arrays.items()}


class TF1Test(ConvertCase):
    def write(self, name, arrays, config=None, words=WORDS, prefix="bert_model.ckpt"):
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        arrays = arrays | {"global_step": np.int64(7)}
        arrays |= {f"{n}/adam_{k}": v for n, v in list(arrays.items())[:3] for k in "mv"}
        values = [tf.constant(value) for value in arrays.values()]
        tf.raw_ops.SaveV2(
            prefix=str(folder / prefix), tensor_names=list(arrays), shape_and_slices=[""] * len(arrays), tensors=values
        )
        if config is not None:
            (folder / "bert_config.json").write_text(json.dumps(config))
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        return folder

    def bert_config(self, case="bert"):
        record = json.loads((GOLDEN / case / "config.json").read_text())
        names = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act"
        names += " max_position_embeddings type_vocab_size hidden_dropout_prob attention_probs_dropout_prob"
        return {n: record[n] for n in [*names.split(), "initializer_range"]} | {"directionality": "bidi"}

    def test_bert(self):
        folder = self.write("uncased_L-2_H-16_A-2", tf1_arrays(GOLDEN / "bert"), self.bert_config())
        (folder / "bert_model.ckpt.meta").write_bytes(b"")
        lines = self.convert(folder)
        self.assertEqual(lines[0], f"read {folder}: a TF1 checkpoint, bert")
        self.assertRegex(lines[1], "BertForPreTraining, .*float32$")
        self.assertEqual(
            lines[2:],
            [
                "other files written: README.md, tokenizer.json, tokenizer_config.json, vocab.txt",
                "files not converted: bert_model.ckpt.meta",
            ],
        )
        self.assert_same_tensors(GOLDEN / "bert", self.to)
        for name, answer, expected in outputs(self.to, GOLDEN / "bert"):
            self.assertAllClose(answer, expected, rtol=0, atol=1e-5, msg=name)
        self.assertEqual((self.to / "vocab.txt").read_bytes(), (folder / "vocab.txt").read_bytes())
        self.assertTrue(load_tokenizer(self.to).lowercase)
        before, after = (json.loads((f / "config.json").read_text()) for f in (GOLDEN / "bert", self.to))
        self.assertEqual({n: before[n] for n in after if n in before}, {n: after[n] for n in after if n in before})
        self.convert(folder / "bert_model.ckpt", to=self.folder / "by_prefix")
        self.assert_same_tensors(GOLDEN / "bert", self.folder / "by_prefix")

    def test_case(self):
        arrays, config = tf1_arrays(GOLDEN / "bert"), self.bert_config()
        for name, flags, lowercase in (
            ("cased_L-12_H-768_A-12", (), False),
            ("wwm_cased_L-24_H-1024_A-16", (), False),
            ("multi_cased_L-12_H-768_A-12", (), False),
            ("multilingual_L-12_H-768_A-12", (), True),
            ("chinese_L-12_H-768_A-12", (), True),
            ("mine", ("--nolowercase",), False),
        ):
            to = self.folder / f"to_{name}"
            self.convert(self.write(name, arrays, config), *flags, to=to)
            self.assertEqual(load_tokenizer(to).lowercase, lowercase, name)
        self.refused(self.folder / "mine", "pass --lowercase or --nolowercase")
        self.refused(self.write("uncased", arrays, config, WORDS + [f"x{i}" for i in range(90)]), "vocab.txt: has 123")

    def test_heads_of_fine_tuned_models(self):
        body = {n: v for n, v in tf1_arrays(GOLDEN / "bert_classify").items() if n.startswith("bert/")}
        arrays = safetensors.numpy.load_file(GOLDEN / "bert_classify" / "model.safetensors")
        extra = {"output_weights": arrays["classifier.weight"], "output_bias": arrays["classifier.bias"]}
        lines = self.convert(self.write("uncased", body | extra, self.bert_config("bert_classify")))
        self.assertIn("BertForSequenceClassification", lines[1])
        self.assert_same_tensors(GOLDEN / "bert_classify", self.to)
        body = {n: v for n, v in tf1_arrays(GOLDEN / "bert_span").items() if n.startswith("bert/")}
        arrays = safetensors.numpy.load_file(GOLDEN / "bert_span" / "model.safetensors")
        extra = {"cls/squad/output_weights": arrays["qa_outputs.weight"]}
        extra["cls/squad/output_bias"] = arrays["qa_outputs.bias"]
        body |= {"bert/pooler/dense/kernel": np.ones((16, 16), np.float32)}
        body |= {"bert/pooler/dense/bias": np.ones(16, np.float32)}
        lines = self.convert(
            self.write("span_uncased", body | extra, self.bert_config("bert_span")), to=self.folder / "span"
        )
        self.assertIn("tensors not converted: bert/pooler/dense/bias, bert/pooler/dense/kernel", lines)
        self.assert_same_tensors(GOLDEN / "bert_span", self.folder / "span")

    def test_electra(self):
        discriminator = tf1_arrays(GOLDEN / "electra_discriminator")
        generator = {
            name.replace("electra/", "generator/", 1): value
            for name, value in tf1_arrays(GOLDEN / "electra_generator").items()
        }
        shared = {n: v for n, v in generator.items() if not n.startswith("generator/embeddings/")}
        config = self.bert_config("electra_discriminator")
        self.assertGreater(len(generator), len(shared))
        folder = self.write("electra_small", shared | discriminator, config, prefix="electra_small")
        lines = self.convert(folder)
        self.assertRegex(lines[1], "ElectraForPreTraining, ")
        self.assertRegex(lines[3], "^tensors not converted: generator/.* more$")
        self.assert_same_tensors(GOLDEN / "electra_discriminator", self.to)
        self.assertTrue(load_tokenizer(self.to).lowercase)
        for name, answer, expected in outputs(self.to, GOLDEN / "electra_discriminator"):
            self.assertAllClose(answer, expected, rtol=0, atol=1e-5, msg=name)

        # The generator has the discriminator's embeddings, and as many heads of size 64 as fit.
        expected = self.folder / "expected"
        shutil.copytree(GOLDEN / "electra_generator", expected)
        arrays = safetensors.numpy.load_file(expected / "model.safetensors")
        others = safetensors.numpy.load_file(GOLDEN / "electra_discriminator" / "model.safetensors")
        own_embeddings = {n for n in arrays if n.startswith("electra.embeddings.")}
        (expected / "model.safetensors").unlink()
        safetensors.numpy.save_file(arrays | {n: others[n] for n in own_embeddings}, expected / "model.safetensors")
        self.convert(folder, "--part=generator", to=self.folder / "generator")
        self.assert_same_tensors(expected, self.folder / "generator")
        record = json.loads((self.folder / "generator" / "config.json").read_text())
        self.assertEqual((record["architectures"], record["num_attention_heads"]), (["ElectraForMaskedLM"], 1))

        untied = self.write("electra_untied", generator | discriminator, config)
        self.convert(untied, "--part=generator", to=self.folder / "untied")
        self.assert_same_tensors(GOLDEN / "electra_generator", self.folder / "untied")

    def test_electra_without_a_config(self):
        folder = self.write("electra", tf1_arrays(GOLDEN / "electra_discriminator"))
        self.convert(folder)
        self.assert_same_tensors(GOLDEN / "electra_discriminator", self.to)
        record = json.loads((self.to / "config.json").read_text())
        stored_name = json.loads((GOLDEN / "electra_discriminator" / "config.json").read_text())
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "intermediate_size"):
            self.assertEqual(record[name], stored_name[name], name)

    def trained(self, name, minimize):
        """Returns a checkpoint of BERT's weights and of the variables that TensorFlow's optimizers add to them."""
        folder = self.write(name, {"x": np.ones(1)}, self.bert_config())
        tf1 = tf.compat.v1
        with tf.Graph().as_default(), tf1.Session() as session:
            values = tf1_arrays(GOLDEN / "bert").items()
            weights = [tf1.Variable(value, name=name, use_resource=False) for name, value in values]
            minimize(tf.add_n([tf.reduce_sum(tf.square(weight)) for weight in weights]), weights)
            session.run(tf1.variables_initializer(weights))  # Averages begin with their values.
            session.run(tf1.global_variables_initializer())
            saved = tf1.global_variables()
            tf1.train.Saver(saved).save(session, str(folder / "bert_model.ckpt"))
        return folder, len(saved) - len(weights)

    def loaded_without(self, folder, count):
        """Checks that a checkpoint is read as BERT and that `count` of its variables are ignored and reported."""
        to = self.folder / f"to_{folder.name}"
        with mock.patch.object(tf1_files.logging, "info") as info:
            self.convert(folder, to=to)
        self.assert_same_tensors(GOLDEN / "bert", to)
        (call,) = info.call_args_list
        self.assertIn(f"{count} optimizer variables are ignored", call.args[0] % call.args[1:])

    @pytest.mark.faults
    def test_slots_of_tensorflows_optimizers(self):
        train = tf.compat.v1.train

        def averaged(loss, weights):
            train.AdamOptimizer().minimize(loss, train.get_or_create_global_step())
            train.ExponentialMovingAverage(0.9).apply(weights)

        for optimizer in (
            train.MomentumOptimizer(0.1, 0.9),
            train.AdagradOptimizer(0.1),
            train.AdadeltaOptimizer(),
            train.RMSPropOptimizer(0.1, centered=True),
            train.FtrlOptimizer(0.1),
            averaged,
        ):
            name = "uncased_" + getattr(optimizer, "_name", "averaged")
            with self.subTest(name):
                minimize = optimizer if callable(optimizer) else lambda loss, _, it=optimizer: it.minimize(loss)
                folder, count = self.trained(name, minimize)
                self.assertGreater(count, 20)
                self.loaded_without(folder, count)

    def test_slots_of_third_party_optimizers(self):
        arrays = tf1_arrays(GOLDEN / "bert")
        for number, (slots, scalars) in enumerate((
            (("{}/AdamWeightDecayOptimizer", "{}/AdamWeightDecayOptimizer_1"), ()),
            (("{}/LAMBOptimizer", "{}/LAMBOptimizer_1"), ("loss_scale/good_steps", "loss_scale/loss_scale")),
            (("{}/lamb_m", "{}/lamb_v", "{}/accum"), ("current_loss_scale", "good_steps", "batch_finite")),
            (("{}/Adafactor/vr", "{}/Adafactor/vc", "{}/vr", "{}/vc"), ("train/beta1_power", "train/beta2_power_1")),
            (("{}_slot_vr", "{}_slot_vc", "{}_slot_m"), ()),
            (("training/Adam/{}/m", "training/Adam/{}/v"), ("training/Adam/iter", "training/Adam/learning_rate")),
        )):  # fmt: skip
            with self.subTest(slots):
                # A factor of Adafactor's has another shape than its weight.
                more = {slot.format(name): np.ones(3, np.float32) for slot in slots for name in arrays}
                more |= {name: np.float32(1) for name in scalars}
                folder = self.write(f"uncased_{number}", arrays | more, self.bert_config())
                self.loaded_without(folder, len(more) + 7)

    def test_other_variables_are_not_treated_as_slots(self):
        arrays, config = tf1_arrays(GOLDEN / "bert"), self.bert_config()
        for name, value in (
            ("bert/pooler/adam_m", np.ones(3)),  # Does not belong to any variable.
            ("bert/pooler/dense/kernel_1", np.ones((16, 16))),
            ("bert/good_steps", np.ones(3)),  # Not a scalar.
            ("ema/bert/pooler/dense/kernel", np.ones((16, 16))),
            ("gain", np.float32(1)),
        ):
            with self.subTest(name):
                folder = self.write(f"uncased_{name.replace('/', '_')}", arrays | {name: value}, config)
                self.refused(folder, f"unexpected tensors: {name};")

    def test_other_projects(self):
        arrays, config = tf1_arrays(GOLDEN / "bert"), self.bert_config()
        layer = "bert/encoder/layer_0"
        for number, (names, project) in enumerate((
            (("bert/encoder/transformer/group_0/inner_group_0/ffn_1/intermediate/dense/kernel", *arrays), "ALBERT"),
            ((f"{layer}/bottleneck/input/dense/kernel", *arrays), "MobileBERT"),
            (("bert/embeddings/token_type_embeddings_6", *arrays), "TAPAS"),
            (("electra/encoder/layer_0/attention/self/conv_attn_key/depthwise_kernel",), "ConvBERT"),
            (("model/transformer/layer_0/rel_attn/q/kernel", "model/lm_loss/bias"), "XLNet"),
            (("model/h0/attn/c_attn/w", "model/wpe"), "GPT-2"),
            (("encoder/block_000/layer_000/SelfAttention/q", "shared/embedding"), "T5 .Mesh TensorFlow."),
            (("transformer/adaptive_embed/cutoff_0/lookup_table",), "Transformer-XL"),
        )):  # fmt: skip
            with self.subTest(project):
                folder = self.write(f"uncased_{number}", {name: np.ones(3) for name in names}, config)
                message = (
                    rf"looks like {project} \(it contains {re.escape(names[0])}\), "
                    ".*the only TF1 checkpoints supported .*BERT and ELECTRA"
                )
                self.refused(folder, message)
        scoped = {f"student/{name}": value for name, value in arrays.items()}
        self.refused(self.write("uncased_scoped", scoped, config), "BERT's variables in a scope, student/ ")

    def test_refused(self):
        arrays, config = tf1_arrays(GOLDEN / "bert"), self.bert_config()
        self.refused(self.write("uncased_none", arrays), "bert_config.json: no such file")
        self.refused(self.write("uncased_other", {"x": np.ones(3)}, config), "neither BERT nor ELECTRA")
        self.refused(
            self.write("uncased_extra", arrays | {"bert/more": np.ones(3)}, config), "unexpected tensors: bert/more"
        )
        name = "bert/encoder/layer_1/output/dense/bias"
        less = {n: v for n, v in arrays.items() if n != name}
        self.refused(self.write("uncased_less", less, config), f"missing tensors: {name}")
        self.refused(
            self.write("uncased_shape", arrays | {name: np.ones(3)}, config), name + r" has the shape \[3\], .*\[16\]"
        )
        nan = np.full_like(arrays[name], np.nan)
        self.refused(self.write("uncased_nan", arrays | {name: nan}, config), f"tensor '{name}' is nan")
        self.refused(self.write("uncased_wide", arrays, config | {"vocab_size": 10**7}), "shape")
        self.refused(
            self.write("uncased_deep", arrays, config | {"num_hidden_layers": 9999}), "must be from 1 to 2,000"
        )
        folder = self.write("uncased_two", arrays, config, prefix="a.ckpt")
        self.write("uncased_two", arrays, config, prefix="b.ckpt")
        self.refused(folder, "has 2 checkpoints")
        self.convert(folder, "--checkpoint=b.ckpt")


class KerasHubTest(ConvertCase):
    def preset(self, name, **settings):
        folder = self.folder / f"{name}_{len(list(self.folder.iterdir()))}"
        shutil.copytree(PRESETS / name, folder)
        for path in folder.glob("*.h5.gz"):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
        (folder / "golden.npz").unlink()
        record = json.loads((folder / "config.json").read_text())
        record["config"] |= settings
        (folder / "config.json").write_text(json.dumps(record))
        return folder

    def test_outputs_equal_kerashubs(self):
        architectures = {
            "bert": "BertModel",
            "roberta": "RobertaModel",
            "xlm_roberta": "XLMRobertaModel",
            "distilbert": "DistilBertModel",
            "electra": "ElectraModel",
            "electra_plain": "ElectraModel",
            "albert": "AlbertModel",
            "gpt2": "GPT2LMHeadModel",
            "bart": "BartForConditionalGeneration",
            "t5": "T5ForConditionalGeneration",
            "t5_gated": "T5ForConditionalGeneration",
            "llama": "LlamaForCausalLM",
            "llama3": "LlamaForCausalLM",
            "mistral": "MistralForCausalLM",
            "qwen": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM",
        }
        backbones = {path.name for path in PRESETS.iterdir() if not (path / "task.json").exists()}
        self.assertEqual(set(architectures), backbones)
        covered = {json.loads((path / "config.json").read_text())["class_name"] for path in PRESETS.iterdir()}
        self.assertEqual(covered, set(keras_presets.BACKBONES))
        for case, architecture in architectures.items():
            with self.subTest(case):
                to = self.folder / f"to_{case}"
                lines = self.convert(self.preset(case), to=to)
                self.assertIn(f": {architecture}, ", lines[1])
                left = "tensors not converted: " + ", ".join(
                    f"layers/dense{'_1' if case == 'electra' else ''}/vars/{i}" for i in (0, 1)
                )
                self.assertEqual(left in lines, "electra" in case)
                count = 0
                for name, answer, expected in outputs(to, PRESETS / case):
                    limit = 1e-5 * max(1, np.abs(expected).max())
                    self.assertAllClose(answer, expected, rtol=0, atol=limit, msg=f"{case} {name}")
                    count += 1
                self.assertGreater(count, 0)

    @pytest.mark.faults
    def test_tasks(self):
        """A preset with the head of its task has the outputs of KerasHub's task."""
        architectures = {
            "bert_classifier": ("BertForSequenceClassification", {"classifier_dropout": 0.3}),
            "roberta_classifier": ("RobertaForSequenceClassification", {"classifier_dropout": 0.0}),
            "xlm_roberta_classifier": ("XLMRobertaForSequenceClassification", {}),
            "distilbert_classifier": (
                "DistilBertForSequenceClassification",
                {"seq_classif_dropout": 0.2, "problem_type": "multi_label_classification"},
            ),
            "albert_classifier": ("AlbertForSequenceClassification", {"classifier_dropout_prob": 0.1}),
            "roberta_masked_lm": ("RobertaForMaskedLM", {}),
            "xlm_roberta_masked_lm": ("XLMRobertaForMaskedLM", {}),
            "gpt2_causal_lm": ("GPT2LMHeadModel", {}),
            "bart_seq2seq_lm": ("BartForConditionalGeneration", {}),
            "t5_seq2seq_lm": ("T5ForConditionalGeneration", {}),
        }
        self.assertEqual(set(architectures), {path.parent.name for path in PRESETS.glob("*/task.json")})
        for case, (architecture, fields) in architectures.items():
            with self.subTest(case):
                to, preset = self.folder / f"to_{case}", self.preset(case)
                lines = self.convert(preset, to=to)
                self.assertIn(f": {architecture}, ", lines[1])
                # BERT's pooler is part of the classifier, so the command lists no tensors as not converted.
                self.assertEqual(lines[2:], ["other files written: README.md"])
                record = json.loads((to / "config.json").read_text())
                self.assertEqual({name: record.get(name) for name in fields}, fields)
                settings = json.loads((preset / "task.json").read_text())["config"]
                ((name, answer, expected),) = outputs(to, PRESETS / case)
                activation = {"softmax": tf.nn.softmax, "sigmoid": tf.sigmoid}.get(settings.get("activation"))
                answer = answer if activation is None else activation(answer)
                self.assertEqual(name, "classify_logits" if "classifier" in case else "logits")
                self.assertAllClose(answer, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))

    def test_a_backbone_without_its_task(self):
        lines = self.convert(self.preset("bert_classifier"), "--notask")
        self.assertIn(": BertModel, ", lines[1])
        self.assertEqual(lines[3:], ["files not converted: task.json, task.weights.h5"])
        (line,) = self.convert(GOLDEN / "bert", "--notask", code=2, to=self.folder / "x")
        self.assertIn("--task=False: does not apply to a Hugging Face folder", line)

    def task(self, case, **values):
        """Returns a preset whose task.json has other values; `config` changes its config."""
        folder = self.preset(case)
        record = json.loads((folder / "task.json").read_text())
        record["config"] |= values.pop("config", {})
        (folder / "task.json").write_text(json.dumps(record | values))
        return folder

    def test_tasks_that_are_rejected(self):
        notask = ".* --notask"
        for kind, words in (("Bert", "exact gelu.*1e-12"), ("DistilBert", "1e-05.*1e-12"), ("Albert", "1e-05.*1e-12")):
            case = f"{kind.lower()}_classifier"
            self.refused(self.task(case, class_name=f"{kind}MaskedLM"), f"head of {kind}MaskedLM .*{words}{notask}")
        case = "bert_classifier"
        self.refused(self.task(case, class_name="BertTextEmbedder"), f"'BertTextEmbedder' is not supported.*{notask}")
        self.refused(self.task(case, class_name="AlbertTextClassifier"), "AlbertTextClassifier, .* BertBackbone")
        self.refused(self.task(case, config=dict(activation="tanh")), "activation is 'tanh'; only linear, softmax")
        self.refused(self.task(case, config=dict(num_classes=4)), r"layers/dense.* has the shape \[8, 3\], .*\[8, 4\]")
        self.refused(self.task(case, config=dict(num_classes=0)), "num_classes is 0, not")
        folder = self.preset(case)
        (folder / "task.weights.h5").unlink()
        self.refused(folder, f"task.weights.h5: no such file, but BertTextClassifier has weights{notask}")
        # Its name before KerasHub 0.17.
        self.convert(self.task(case, class_name="BertClassifier"))

    def test_tokenizers(self):
        self.assertEqual(
            self.convert(self.preset("bert"))[2:],
            ["other files written: README.md, tokenizer.json, tokenizer_config.json, vocab.txt"],
        )
        tokenizer = load_tokenizer(self.to)
        self.assertTrue(tokenizer.lowercase)
        self.assertEqual(tokenizer.vocab, (PRESETS / "bert/assets/tokenizer/vocabulary.txt").read_text().split())
        for case, name in (("t5", "spiece.model"), ("xlm_roberta", "sentencepiece.bpe.model")):
            folder = self.preset(case)
            (folder / "assets" / "tokenizer").mkdir(parents=True)
            (folder / "assets" / "tokenizer" / "vocabulary.spm").write_bytes(b"spm")
            self.convert(folder, to=self.folder / f"to_{case}")
            self.assertEqual((self.folder / f"to_{case}" / name).read_bytes(), b"spm")

    def test_byte_level_tokenizers(self):
        """The tokenizers give KerasHub's ids, and config.json has the ids of their special tokens."""
        cases = {
            "gpt2": ("GPT2Tokenizer", dict(bos_token_id=27, eos_token_id=27)),
            "roberta": ("RobertaTokenizer", dict(bos_token_id=0, pad_token_id=1, eos_token_id=2)),
            "bart": ("BartTokenizer", dict(bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2)),
            "llama3": ("PreTrainedTokenizerFast", dict(bos_token_id=24, eos_token_id=[25, 26])),
            "qwen": ("Qwen2Tokenizer", dict(bos_token_id=None, eos_token_id=28, pad_token_id=28)),
            "qwen3": ("Qwen2Tokenizer", dict(bos_token_id=None, eos_token_id=28, pad_token_id=27)),
        }
        self.assertEqual(set(cases), {path.parents[2].name for path in PRESETS.glob("*/assets/tokenizer/merges.txt")})
        for case, (kind, ids) in cases.items():
            with self.subTest(case):
                to, preset = self.folder / f"to_{case}", self.preset(case)
                (preset / "task.json").write_text("{}")
                lines = self.convert(preset, to=to)
                names = "README.md, merges.txt, tokenizer.json, tokenizer_config.json, vocab.json"
                self.assertEqual(lines[2:], [f"other files written: {names}", "files not converted: task.json"])
                preset_assets = PRESETS / case / "assets" / "tokenizer"
                merges = (preset_assets / "merges.txt").read_text()
                self.assertFalse(merges.startswith("#"))
                self.assertEqual((to / "merges.txt").read_text(), "#version: 0.2\n" + merges)
                vocab = json.loads((preset_assets / "vocabulary.json").read_text())
                self.assertEqual(json.loads((to / "vocab.json").read_text()), vocab)
                record = json.loads((to / "config.json").read_text())
                self.assertEqual({name: record.get(name) for name in ids}, ids)
                settings = json.loads((to / "tokenizer_config.json").read_text())
                self.assertEqual(settings["tokenizer_class"], kind)
                for role in ("bos", "pad"):
                    if ids.get(f"{role}_token_id") is not None:
                        self.assertEqual(vocab[settings[f"{role}_token"]], ids[f"{role}_token_id"])
                tokenizer = tokenizers.Tokenizer.from_file(str(to / "tokenizer.json"))
                golden = dict(np.load(PRESETS / case / "golden.npz"))
                texts = [name.removeprefix("ids.") for name in golden if name.startswith("ids.")]
                self.assertNotEmpty(texts)
                for text in texts:
                    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
                    self.assertEqual(token_ids, golden[f"ids.{text}"].tolist(), text)
                _, loaded_tokenizer = huggingface.load(to)
                self.assertEqual(
                    loaded_tokenizer.tokenize(texts).to_list(), [golden[f"ids.{text}"].tolist() for text in texts]
                )
                framed = {"roberta": [0, 5, 2], "bart": [0, 5, 2], "llama3": [24, 1]}.get(case, [vocab["b"]])
                self.assertEqual(tokenizer.encode("b").ids, framed)
                end = settings["eos_token"]
                self.assertEqual(tokenizer.encode(end, add_special_tokens=False).ids, [vocab[end]])
        # A version line in merges.txt is kept once.
        preset = self.preset("gpt2")
        (preset / "assets/tokenizer/merges.txt").write_text("#version: 0.2\na b\n")
        self.convert(preset)
        self.assertEqual((self.to / "merges.txt").read_text(), "#version: 0.2\na b\n")

    def test_byte_level_tokenizers_that_are_rejected(self):
        def changed(case, name, content):
            folder = self.preset(case)
            (folder / name).write_text(content)
            return folder

        merges, vocabulary = "assets/tokenizer/merges.txt", "assets/tokenizer/vocabulary.json"
        self.refused(changed("gpt2", merges, "a b\nab\n"), "merges.txt, line 2: 'ab' is not two tokens")
        self.refused(
            changed("gpt2", merges, "a é\n"), "vocabulary.json and merges.txt do not belong to the same tokenizer"
        )
        self.refused(changed("gpt2", vocabulary, '{"a": 0}'), r"has no <.endoftext.>, which GPT2Tokenizer requires")
        self.refused(changed("gpt2", vocabulary, '{"a": 0, "<|endoftext|>": 99}'), "has 100 tokens, .* is 29")
        self.refused(changed("gpt2", vocabulary, '{"a": "0"}'), "a is '0', not")
        other = '{"class_name": "MistralTekkenTokenizer", "config": {}}'
        self.refused(changed("gpt2", "tokenizer.json", other), "'MistralTekkenTokenizer' is not a supported byte-level")
        vocab = json.loads((PRESETS / "roberta" / vocabulary).read_text())
        vocab["<pad>"], vocab["</s>"] = vocab["</s>"], vocab["<pad>"]
        self.refused(changed("roberta", vocabulary, json.dumps(vocab)), "padding token has id 2, .* requires 1")

    def test_refused(self):
        self.refused(self.preset("bert", vocabulary_size=10**7), r"shape \[29, 8\], .*\[10000000, 8\]")
        self.refused(self.preset("bert", num_layers=3), "missing tensors: layers/transformer_encoder_2/")
        self.refused(self.preset("bert", num_layers=1), "unexpected tensors: layers/transformer_encoder_1/")
        self.refused(self.preset("bert", num_heads=3), r"config.json: hidden_size \(8\).*num_heads \(3\)")
        self.refused(self.preset("bert", shape="round"), "config.json: shape is 'round'")
        self.refused(self.preset("albert", num_groups=2), "num_groups is 2; only 1")
        self.refused(self.preset("llama", rope_position_scaling_factor=2.0), "factor is 2.0; only 1.0")
        folder = self.preset("bert")
        record = json.loads((folder / "config.json").read_text()) | {"class_name": "BertBackbon"}
        (folder / "config.json").write_text(json.dumps(record))
        self.refused(folder, "'BertBackbon' .*did you mean BertBackbone")


class ProcessTest(ConvertCase):
    @pytest.mark.faults
    def test_the_command(self):
        done = helpers.python("-m", "tfzoo.convert", f"--from={GOLDEN / 'distilbert'}", f"--to={self.to}")
        self.assertEqual(done.stdout.count("\n"), 4, done.stderr)
        self.assert_same_tensors(GOLDEN / "distilbert", self.to)


if __name__ == "__main__":
    tf.test.main()
