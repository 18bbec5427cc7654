"""The answers of text signatures, for given logits."""

import pathlib

import numpy as np
import tensorflow as tf

import tfzoo
from tests.export import small
from tfzoo import embeddings, generation
from tfzoo.errors import UserError
from tfzoo.export import answers, savedmodel
from tfzoo.export.answers import Options
from tfzoo.export.answers.continuations import Continuations
from tfzoo.export.answers.embeddings import Embeddings
from tfzoo.export.answers.entities import Tags
from tfzoo.export.answers.labels import Labels
from tfzoo.export.answers.next_sentence import NextSentence
from tfzoo.export.answers.words import Words, readable
from tfzoo.export.precision import Limits
from tfzoo.generation.folder import decoder_start_id
from tfzoo.models.record import FolderRecord

SENTENCE = pathlib.Path(__file__).parents[1] / "assets" / "golden_sentence"
TOKENIZER = small.tokenizer()
BPE = small.byte_level_tokenizer()


def answer(model, tokenizer, texts, logits, **options):
    """Returns the text signature's outputs, as NumPy arrays, for a model with `logits` [B, L, C], and its inputs."""
    found = answers.find(model, tokenizer, Options(**({"sequence_length": 32} | options)))
    calls = []

    def call(inputs):
        calls.append({name: value.numpy() for name, value in inputs.items()})
        head = next(iter(model.heads), None)
        return {f"{head}_logits" if head != "lm" else "logits": tf.constant(logits, tf.float32)}

    inputs = dict(zip(found.inputs, (tf.constant(text) for text in texts)))
    return {name: value.numpy() for name, value in found.answer(inputs, call).items()}, calls[0]


def one_hot(labels, size, value=20.0):
    return np.eye(size, dtype=np.float32)[labels] * value


class AnswersTest(tf.test.TestCase):
    def test_what_a_decoder_reads_first(self):
        """As in `generate`: from the folder, generation_config.json before config.json; in a run, as in training."""
        model = small.model("bart")
        for config, generation_config, start in (
            (None, None, TOKENIZER.sep_id),
            ({}, None, TOKENIZER.sep_id),
            ({"id2label": {}}, None, 2),  # The default of BART.
            ({"decoder_start_token_id": 0}, None, 0),
            ({"decoder_start_token_id": 3}, {"decoder_start_token_id": 0}, 0),
            ({"id2label": {}}, {"decoder_start_token_id": 5}, 5),
        ):
            model.record = None if config is None else FolderRecord(config, generation_config or {})
            self.assertEqual(decoder_start_id(model, TOKENIZER), start)

    def test_long_texts_may_be_refused(self):
        model, logits = small.model(heads=("classify",)), np.zeros((2, 3))
        found, _ = answer(model, TOKENIZER, [["a " * 6, "a " * 7]], logits, sequence_length=8)
        self.assertAllEqual(found["truncated"], [False, True])
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "(?s)longer than 8 tokens,.*row.*\n1$"):
            answer(model, TOKENIZER, [["a " * 6, "a " * 7]], logits, sequence_length=8, long_texts="refuse")

    def test_labels(self):
        model = small.model(heads=("classify",))
        logits = np.log([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]])
        found, _ = answer(model, TOKENIZER, [["a", "b"]], logits)
        self.assertAllEqual(found["label"], [b"LABEL_1", b"LABEL_0"])
        self.assertAllClose(found["scores"], np.exp(logits))
        model.labels = ("no", "perhaps", "yes")
        found, _ = answer(model, TOKENIZER, [["a", "b"]], logits)
        self.assertAllEqual(found["labels"], [[b"no", b"perhaps", b"yes"]] * 2)
        self.assertAllEqual(found["label"], [b"perhaps", b"no"])
        model = small.model(heads=("classify",))
        model.record = FolderRecord({"problem_type": "multi_label_classification"})
        found, _ = answer(model, TOKENIZER, [["a", "b"]], np.zeros((2, 3)))
        self.assertAllClose(found["scores"], np.full((2, 3), 0.5))
        model.record = FolderRecord({"problem_type": "ranking"})
        with self.assertRaisesRegex(
            UserError, "config.json: problem_type is 'ranking'; it must be one of single_label"
        ):
            answers.find(model, TOKENIZER, Options(32))
        model.record = FolderRecord({"problem_type": "regression"})
        found, _ = answer(model, TOKENIZER, [["a"]], [[2.5, -1, 7]])
        self.assertAllEqual(found["values"], [[2.5, -1, 7]])
        self.assertAllEqual(found["labels"], [[b"LABEL_0", b"LABEL_1", b"LABEL_2"]])
        self.assertNotIn("scores", found)
        self.assertEqual(list(savedmodel._functions(model, TOKENIZER, Options(8))), ["serving_default", "tokens"])
        found, _ = answer(small.model(heads=("classify",), num_labels=1), TOKENIZER, [["a"]], [[2.5]])
        self.assertAllEqual(found["value"], [2.5])

    def entities(self, family, make_tokenizer, texts, labels, names):
        model = small.model(family, heads=("tag",), num_labels=len(names), vocab_size=300)
        tokenizer = make_tokenizer()  # After the model, whose seed clears the cache with the tokenizer's resources.
        model.labels = tuple(names)
        return answer(model, tokenizer, [texts], one_hot(labels, len(names)))[0]

    def test_entities(self):
        # [CLS] a ##b c . the d [SEP]: the label of the second piece does not count; I-PER after B-PER continues the
        # entity, and B-LOC after I-LOC begins a new one.
        names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
        found = self.entities(
            "bert", lambda: TOKENIZER, ["Ab c. the d", ""], [[1, 1, 3, 2, 0, 4, 3, 1], [1, 1, 0, 0, 0, 0, 0, 0]], names
        )
        self.assertAllEqual(found["num_entities"], [3, 0])
        self.assertAllEqual(found["types"], [[b"PER", b"LOC", b"LOC"], [b""] * 3])
        self.assertAllEqual(found["texts"], [[b"Ab c", b"the", b"d"], [b""] * 3])
        self.assertAllEqual(found["starts"][0], [0, 6, 10])
        self.assertAllEqual(found["ends"][0], [4, 9, 11])
        self.assertAllClose(found["scores"], [[1, 1, 1], [0, 0, 0]], atol=1e-6)

    def test_entities_of_a_byte_level_tokenizer(self):
        # <s> Ġa de é(2 bytes) , Ġ b </s>: words are " adeé", "," and " b", without the spaces before them.
        found = self.entities(
            "roberta", small.byte_level_tokenizer, [" adeé, b"], [[0, 1, 0, 0, 0, 0, 2, 2, 0]], ["O", "B-X", "Y"]
        )
        self.assertAllEqual(found["texts"], [["adeé".encode(), b"b"]])
        self.assertAllEqual(found["types"], [[b"X", b"Y"]])
        self.assertAllEqual((found["starts"], found["ends"]), [[[1, 7]], [[5, 8]]])

    def test_tags(self):
        tags = Tags(["O", "I-B", "B-A", "A", "B-"])
        self.assertEqual(tags.names, ["A", "B", "B-"])
        self.assertEqual((tags.kinds, tags.opens), ([-1, 1, 0, 0, 2], [False, False, True, False, False]))

    def test_answers(self):
        # [CLS] a [SEP] the of function [SEP]; probabilities over [CLS] and the context's three tokens.
        start, end = [[0.1, 0, 0, 0.6, 0.2, 0.1, 0], [0.2, 0, 0, 0.1, 0.1, 0.6, 0]]
        with np.errstate(divide="ignore"):
            logits = np.log(np.array([start, end]).T)[None]
        logits[~np.isfinite(logits)] = 50  # At positions where no answer may begin or end.
        found, calls = answer(small.model(heads=("span",)), TOKENIZER, [["a"], ["the  of function"]], logits)
        self.assertAllEqual(calls["segment_ids"], [[0, 0, 0, 1, 1, 1, 1]])
        self.assertAllEqual(found["answers"][0, :2], [b"the  of function", b"of function"])
        self.assertAllClose(found["scores"][0, :2], [0.36, 0.12])
        self.assertAllEqual((found["starts"][0, :2], found["ends"][0, :2]), [[0, 5], [16, 16]])
        self.assertAllClose(found["no_answer"], [0.02])
        found, _ = answer(small.model(heads=("span",)), TOKENIZER, [["a"], ["the"]], np.zeros((1, 5, 2)))
        self.assertAllEqual(found["answers"], [[b"the", b"", b"", b"", b""]])
        self.assertAllClose(found["scores"], [[0.25, 0, 0, 0, 0]])

    def test_words_are_what_one_reads(self):
        words, shows = readable(TOKENIZER, len(small.VOCAB) + 3)
        shown = [word for word, yes in zip(words, shows) if yes]
        self.assertEqual(shown, [*small.LETTERS, "the", "of", "function", ".", "東", "京", "ω"])
        words, shows = readable(BPE, BPE.vocab_size)
        self.assertEqual([word for word, yes in zip(words, shows) if yes], ["a"])

    def test_two_streams_are_asked_without_seeing(self):
        model = small.model("xlnet")
        logits = np.zeros((1, 2, len(small.VOCAB)))
        found, calls = answer(model, TOKENIZER, [["[MASK] a [MASK]"]], logits)
        self.assertAllEqual(calls["target_mapping"][0], one_hot([0, 2], 5, 1.0))
        self.assertAllEqual(calls["permutation_mask"][0], [[False, True, False, True, True]] * 5)
        self.assertAllEqual(found["num_masks"], [2])

    def test_who_answers_texts(self):
        options = Options(32, max_new_tokens=8)
        for family, heads, kind in (
            ("bert", ("lm", "next_sentence"), Words),
            ("bert", ("next_sentence",), NextSentence),
            ("bert", (), Embeddings),
            ("gpt2", ("lm",), Continuations),
            ("t5", ("lm",), Continuations),
            ("performer", ("lm",), Words),
            ("electra", ("discriminate",), type(None)),
            ("gpt2", ("classify",), Labels),
            ("gpt2", ("embed",), Embeddings),
        ):
            self.assertIsInstance(
                answers.find(small.model(family, heads=heads, num_layers=1), TOKENIZER, options), kind
            )
        with self.assertRaisesRegex(UserError, "--pooling=pooled"):
            answers.find(small.model("xlnet", heads=()), TOKENIZER, Options(32, pooling="pooled"))
        with self.assertRaisesRegex(UserError, "--prompt_name=query: the model has no head embed"):
            answers.find(small.model(heads=()), TOKENIZER, Options(32, prompt_name="query"))

    def test_vectors_as_a_folder_says(self):
        """Both in the graph and row by row they equal those of sentence-transformers."""
        for case, prompt, tokens in (("roberta", None, 12), ("roberta", "long", 20), ("cased", None, None)):
            model, tokenizer = tfzoo.load(SENTENCE / case)
            golden = np.load(SENTENCE / case / "golden.npz")
            texts = golden["texts"].tolist()
            found = answers.find(model, tokenizer, Options(embeddings.longest(model), prompt_name=prompt))
            got = found.answer({"text": tf.constant(texts)}, model)
            self.assertAllClose(got["embeddings"], golden[f"vectors/{prompt or ''}"], rtol=0, atol=2e-6)
            row_by_row = found.expected({"text": texts}, Limits(2e-5))
            self.assertAllClose(row_by_row["embeddings"], got["embeddings"], rtol=0, atol=2e-6)
            self.assertAllEqual(row_by_row["truncated"], got["truncated"])
            facts = found.facts()
            self.assertEqual((facts["lowercase"], facts.get("prompt_tokens")), (case == "cased", tokens))
            self.assertEqual(facts["prompt"], model.record.sentence.prompt(prompt))
        with self.assertRaisesRegex(UserError, "--pooling=mean: the model's head embed defines the pooling"):
            answers.find(model, tokenizer, Options(16, pooling="mean"))
        with self.assertRaisesRegex(UserError, "prompt_name 'quer': the model has no such prompt; it has query"):
            answers.find(model, tokenizer, Options(16, prompt_name="quer"))

    def test_a_text_is_looked_for_as_the_folder_says(self):
        texts = ["of the function", "a", "東京"]
        said = dict(num_beams=3, length_penalty=0.5, no_repeat_ngram_size=2, do_sample=True, temperature=0.7, top_k=9)
        model = small.model("gpt2", heads=("lm",))
        self.assertEqual(answers.search_of(model, 1), {})
        model.record = FolderRecord(generation_config=said)
        self.assertEqual(answers.search_of(model, 1), dict(no_repeat_ngram_size=2))
        with self.assertRaisesRegex(UserError, "--num_beams=3: must be a multiple"):
            model.record = FolderRecord(generation_config=said | {"num_beam_groups": 2})
            answers.search_of(model, 3)
        model.record = FolderRecord(generation_config=said)
        search = answers.search_of(model)
        self.assertEqual(search, dict(num_beams=3, length_penalty=0.5, no_repeat_ngram_size=2))
        more = dict(sequence_bias=[[[5], 1.5]], encoder_no_repeat_ngram_size=3, suppress_tokens=[7])
        model.record = FolderRecord(generation_config=said | more | dict(renormalize_logits=True))
        self.assertEqual(answers.search_of(model), search | more | dict(renormalize_logits=True))
        self.assertEqual(answers.search_of(model, 1), more | dict(no_repeat_ngram_size=2))
        with self.assertRaisesRegex(UserError, "generation_config.json: guidance_scale is 2.0"):
            model.record = FolderRecord(generation_config=said | dict(guidance_scale=2.0))
            answers.search_of(model)
        search |= more
        found = answers.find(model, TOKENIZER, Options(24, max_new_tokens=6, search=search))

        def written(text, most, **options):
            ids = found.reader.read({"text": tf.constant([text])}).inputs["token_ids"]
            options |= dict(max_new_tokens=most, return_scores=True)
            new = generation.generate_ids(model, ids, **found.ids, **options)
            # The first word of a text has no space before it, a word that continues a text has one.
            before = TOKENIZER.detokenize(ids).numpy()[0]
            whole = tf.concat([ids, new.token_ids[:, : int(new.lengths[0])]], 1)
            return TOKENIZER.detokenize(whole).numpy()[0].removeprefix(before), int(new.lengths[0])

        spec = tf.TensorSpec([None], tf.string)
        ask = tf.function(lambda text: found.answer({"text": text}, None), input_signature=[spec], autograph=False)
        got = ask(tf.constant(texts))
        wanted = [written(text, 6, **search) for text in texts]
        self.assertEqual(list(zip(got["generated_text"].numpy(), got["num_tokens"].numpy())), wanted)
        self.assertNotEqual(wanted, [written(text, 6, no_repeat_ngram_size=2, **more) for text in texts])
        self.assertEqual(ask(tf.constant([], tf.string))["num_tokens"].shape, [0])
        # Row by row: beams, the likeliest tokens, fewer tokens with beams, and sampled tokens.
        texts, counts = [*texts, "the", "the"], [6, 6, 3, 6, 6]
        drawn = dict(temperature=1.5, top_k=20, top_p=0.8)
        rows: dict = dict(
            max_new_tokens=counts,
            temperature=[0, 1, 0, 1.5, 1.5],
            top_k=[0, 1, 0, 20, 20],
            top_p=[1, 1, 1, 0.8, 0.8],
            seed=[5, 5, 5, 6, 7],
        )
        rows = {name: tf.constant(values, generation.ROWS[name][0]) for name, values in rows.items()}
        rowwise = tf.function(
            lambda text, rows: found.answer({"text": text}, None, **rows),
            input_signature=[spec, {name: tf.TensorSpec([None], values.dtype) for name, values in rows.items()}],
            autograph=False,
        )
        plain = dict(no_repeat_ngram_size=2) | more
        chosen = plain | dict(do_sample=True) | drawn
        options = [search, plain, search, chosen | dict(seed=6), chosen | dict(seed=7)]

        def asked(rows):
            got = rowwise(tf.constant(texts), rows)
            return list(zip(got["generated_text"].numpy(), got["num_tokens"].numpy()))

        wanted = [written(text, n, **each) for text, n, each in zip(texts, counts, options)]
        self.assertEqual(asked(rows), wanted)
        self.assertNotEqual(wanted[3], wanted[4])  # Only because of the seed.
        # Each of the numbers has an effect.
        for name, value in (("temperature", 0.2), ("top_k", 2), ("top_p", 0.1)):
            self.assertNotEqual(
                asked(rows | {name: tf.fill([5], tf.constant(value, generation.ROWS[name][0]))})[3:], wanted[3:]
            )


class RefusalTest(tf.test.TestCase):
    """Invalid requests, sent to the graphs that are exported."""

    def function(self, model, signature="serving_default", **options):
        options = Options(**({"sequence_length": 12} | options))
        stated, body = savedmodel._functions(model, TOKENIZER, options)[signature]
        function = savedmodel._function(body, stated)
        return lambda **inputs: {name: value.numpy() for name, value in function(*inputs.values()).items()}

    def refused(self, pattern, function, **inputs):
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, f"(?s){pattern}"):
            function(**{name: tf.constant(value) for name, value in inputs.items()})

    def test_as_many_rows_of_each_input(self):
        pair = self.function(small.model(heads=("classify",), num_layers=1), text_pair=True)
        self.refused("text_pair must have as many rows as text, but has.*1", pair, text=["a", "b"], text_pair=["c"])
        self.refused("text_pair must have as many rows as text, but has.*2", pair, text=["a"], text_pair=["b", "c"])
        span = self.function(small.model(heads=("span",), num_layers=1))
        self.refused("context must have as many rows as question", span, question=["a"], context=["b", "c"])
        self.refused("context must have as many rows as question", span, question=["a", "b"], context=["c"])
        tokens = self.function(small.model("t5", num_layers=1), "tokens")
        ids, two = np.ones((1, 3), np.int32), np.ones((2, 3), np.int32)
        given = dict(token_ids=ids, padding_mask=ids == 1, decoder_token_ids=two, decoder_padding_mask=two == 1)
        self.refused("decoder_(token_ids|padding_mask) must have as many rows as token_ids", tokens, **given)

    def test_generate(self):
        model = small.model("gpt2", num_layers=1)
        good = dict(text=["the", "a"], max_new_tokens=[4, 4], temperature=[1.0, 0.0], top_k=[0, 0], top_p=[1.0, 0.5])
        good["seed"] = [1, 2]
        nan, inf = float("nan"), float("inf")
        bad = [
            *(("temperature", value) for value in (nan, -1.0, inf, -inf)),
            *(("top_p", value) for value in (nan, 1.5, -1.0, 0.0, inf)),
            *(("top_k", value) for value in (-1,)),
            *(("max_new_tokens", value) for value in (0, 5, -1)),
        ]
        by_call = self.function(model, "generate", max_new_tokens=4)
        wanted = by_call(**{name: tf.constant(value) for name, value in good.items()})
        for name in [name for name in good if name != "text"]:
            self.refused(f"{name} must have as many rows as text, but has", by_call, **good | {name: good[name][:1]})
        for name, value in bad:
            if name != "max_new_tokens" or value < 1:  # The limit may be higher elsewhere.
                with self.assertRaisesRegex(UserError, f"^{name} .* must be"):
                    generation.read_options(do_sample=True, **{name: value})
            self.refused(f"{name} must be .*, but is.*in row. .1.", by_call, **good | {name: [good[name][0], value]})
        self.refused("the text has no tokens to continue from, in row. .1.", by_call, **good | {"text": ["the", ""]})

        by_row = self.function(model, "generate", max_new_tokens=4, refuse="row")
        found = by_row(**{name: tf.constant(value) for name, value in good.items()})
        self.assertAllEqual(found.pop("error"), ["", ""])
        self.assertEqual(found.keys(), wanted.keys())
        for name, value in found.items():
            self.assertAllEqual(value, wanted[name])
        for name, value in [*bad, ("text", "")]:
            given = good | {name: [good[name][0], value]}
            found = by_row(**{name: tf.constant(value) for name, value in given.items()})
            self.assertEqual(found["generated_text"].tolist(), [wanted["generated_text"][0], b""])
            self.assertEqual(found["num_tokens"].tolist(), [wanted["num_tokens"][0], 0])
            fine, error = found["error"].tolist()
            self.assertEqual(fine, b"")
            said = (
                "the text has no tokens to continue from" if name == "text" else f"^{name} must be .*, but is {value}"
            )
            self.assertRegex(error.decode(), said)

    def test_texts_row_by_row(self):
        model = small.model(heads=("tag",), num_layers=1)
        ask = self.function(model, sequence_length=8, long_texts="refuse", refuse="row")
        texts = ["the a of", "a " * 7, ""]
        found = ask(text=tf.constant(texts))
        wanted = self.function(model, sequence_length=8)(text=tf.constant(texts[::2]))
        self.assertEqual(found.pop("error").tolist(), [b"", b"the text is longer than 8 tokens", b""])
        for name, value in found.items():
            # On processors without AVX-512, products of three and of two rows may differ in the last place.
            check = self.assertAllClose if value.dtype == np.float32 else self.assertAllEqual
            check(value[[0, 2]], wanted[name], msg=name)
            self.assertFalse(any(value[1].ravel().tolist() if value.ndim > 1 else [value[1]]), name)
        expected = answers.find(model, TOKENIZER, Options(8, long_texts="refuse", refuse="row")).expected(
            {"text": texts}, Limits(2e-5)
        )
        self.assertEqual(expected["error"].tolist(), ["", "the text is longer than 8 tokens", ""])
        self.assertAllClose(found["scores"], expected["scores"])
        self.assertAllEqual(found["num_entities"], expected["num_entities"]["values"])
        self.assertEqual(ask(text=tf.constant([], tf.string))["error"].shape, (0,))

    def test_ids_row_by_row(self):
        model = small.model(heads=("relation",), num_layers=1)
        by_call, by_row = (self.function(model, "tokens", refuse=refuse) for refuse in ("call", "row"))
        size = len(small.VOCAB)
        given = dict(
            token_ids=np.array([[1, 2, 3], [1, 2, size], [4, 5, 6], [7, 8, 9]], np.int32),
            segment_ids=np.array([[0, 1, 1], [0, 0, 0], [0, -1, 0], [0, 0, 0]], np.int32),
            padding_mask=np.ones((4, 3), bool),
            entity_positions=np.array([[0, 2], [0, 1], [0, 1], [1, 3]], np.int32),
        )
        found = by_row(**{name: tf.constant(value) for name, value in given.items()})
        said = [
            "",
            f"token_ids must be from 0 to {size - 1}, but is {size}",
            "segment_ids must be from 0 to 1, but is -1",
            "entity_positions must be positions in token_ids, but is 3",
        ]
        self.assertEqual([error.decode() for error in found["error"]], said)
        wanted = by_call(**{name: tf.constant(value[:1]) for name, value in given.items()})
        self.assertAllClose(found["relation_logits"][:1], wanted["relation_logits"])
        self.assertAllEqual(found["relation_logits"][1:], np.zeros((3, 3)))
        for row, name in enumerate(("token_ids", "segment_ids", "entity_positions"), 1):
            wrong = {name: value[row : row + 1] for name, value in given.items()}
            self.refused(f"{name} must be .*, but is.*in row. .0.", by_call, **wrong)
        none = by_call(**{name: tf.constant(value[:0]) for name, value in given.items()})
        self.assertEqual(none["relation_logits"].shape, (0, 3))
        # An error of the call, not of a row:
        short = given | {"segment_ids": given["segment_ids"][:, :2]}
        self.refused("segment_ids must have the shape of token_ids", by_row, **short)


if __name__ == "__main__":
    tf.test.main()
