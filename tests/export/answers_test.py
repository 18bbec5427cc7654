"""What text signatures answer, with logits that are given, and how texts are framed."""

import numpy as np
import tensorflow as tf

from tests.export import small
from tfzoo import generation
from tfzoo.errors import UserError
from tfzoo.export import answers, savedmodel
from tfzoo.export.answers import Options, Tags
from tfzoo.models.record import FolderRecord
from tfzoo.text import framing
from tfzoo.text.byte_level import ByteLevelBPE
from tfzoo.text.framing import PAIR, TEXT

TOKENIZER = small.tokenizer()


def byte_level():
    letters = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 256)]] + [
        chr(256 + i) for i in range(68)
    ]
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    return ByteLevelBPE([*special, *letters, "Ġa", "de"], [("Ġ", "a"), ("d", "e")], special_tokens=special)


BPE = byte_level()


def answer(model, tokenizer, texts, logits, **options):
    """The text signature's outputs where the model gives `logits` [B, L, C], as NumPy arrays."""
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


class ReaderTest(tf.test.TestCase):
    def read(self, texts, family="bert", tokenizer=TOKENIZER, heads=("classify",), **options):
        pieces = {TEXT: "text", PAIR: "text_pair"} if options.get("text_pair") else {TEXT: "text"}
        options = Options(**({"sequence_length": 32} | options))
        reader = answers.Reader(small.model(family, heads=heads), tokenizer, options, pieces)
        return reader.read(dict(zip(pieces.values(), map(tf.constant, texts))))

    def test_frames(self):
        cls, sep = TOKENIZER.cls_id, TOKENIZER.sep_id
        for family, tokenizer, single, pair, segments in (
            ("bert", TOKENIZER, (cls, TEXT, sep), (cls, TEXT, sep, PAIR, sep), (0, 0, 0, 1, 1)),
            ("roberta", BPE, (0, TEXT, 2), (0, TEXT, 2, 2, PAIR, 2), (0,) * 6),
            ("xlnet", TOKENIZER, (TEXT, sep, cls), (TEXT, sep, PAIR, sep, cls), (0, 0, 1, 1, 2)),
            ("t5", BPE, (TEXT, 2), (TEXT, 2, PAIR, 2), (0, 0, 1, 1)),
        ):
            self.assertEqual(framing.frame(family, tokenizer).parts, single)
            self.assertEqual(framing.frame(family, tokenizer, pair=True), framing.Frame(pair, segments))
        self.assertEqual(framing.frame("llama", BPE).parts, (0, TEXT))
        self.assertEqual(framing.frame("gpt2", BPE).parts, (TEXT,))
        with self.assertRaisesRegex(UserError, "text_pair: gpt2 .*no token to part"):
            framing.frame("gpt2", BPE, pair=True)

    def test_a_batch(self):
        reading = self.read([["the function", "", "a"], ["of", "the", ""]], text_pair=True)
        the, function, of, a = (small.VOCAB.index(word) for word in ("the", "function", "of", "a"))
        rows = [[2, the, function, 3, of, 3], [2, 3, the, 3, 0, 0], [2, a, 3, 3, 0, 0]]
        self.assertAllEqual(reading.inputs["token_ids"], rows)
        segments = [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]]
        self.assertAllEqual(reading.inputs["segment_ids"], segments)
        self.assertAllEqual(reading.inputs["padding_mask"], np.arange(6) < [[6], [4], [4]])
        self.assertAllEqual(reading.of[PAIR], [[0, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0], [0] * 6])

    def test_each_of_two_may_have_half_and_what_the_other_leaves(self):
        texts = [["a " * 20, "b", "a " * 20], ["b", "a " * 20, "b " * 20]]
        reading = self.read(texts, text_pair=True, sequence_length=10)
        lengths = [tf.reduce_sum(tf.cast(reading.of[piece], tf.int32), 1).numpy().tolist() for piece in (TEXT, PAIR)]
        self.assertEqual(lengths, [[6, 1, 4], [1, 6, 3]])
        self.assertAllEqual(reading.truncated, [True, True, True])

    def test_long_texts(self):
        texts = [["a " * 6, "a " * 7]]
        self.assertAllEqual(self.read(texts, sequence_length=8).truncated, [False, True])
        with self.assertRaisesRegex(tf.errors.InvalidArgumentError, "longer than 8 tokens"):
            self.read(texts, sequence_length=8, long_texts="refuse")
        with self.assertRaisesRegex(UserError, "--sequence_length=2 leaves no room"):
            self.read(texts, sequence_length=2)

    def test_an_encoder_decoder_reads_on_both_sides(self):
        inputs = self.read([["a b"]], "bart").inputs
        self.assertAllEqual(inputs["decoder_token_ids"], [[TOKENIZER.pad_id, *inputs["token_ids"][0, :-1]]])
        self.assertAllEqual(inputs["decoder_padding_mask"], inputs["padding_mask"])

    def test_what_a_decoder_reads_first(self):
        """As `generate` has it: the folder's word, generation_config.json's before config.json's; padding in a run."""
        model = small.model("bart")
        for config, generation_config, start in (
            (None, None, TOKENIZER.pad_id),
            ({}, None, TOKENIZER.pad_id),
            ({"id2label": {}}, None, 2),  # BART's own.
            ({"decoder_start_token_id": 0}, None, 0),
            ({"decoder_start_token_id": 3}, {"decoder_start_token_id": 0}, 0),
            ({"id2label": {}}, {"decoder_start_token_id": 5}, 5),
        ):
            model.record = None if config is None else FolderRecord(config, generation_config or {})
            self.assertEqual(answers.decoder_start_id(model, TOKENIZER), start)


class AnswersTest(tf.test.TestCase):
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
            answers.find(model, TOKENIZER, answers.Options(32))
        model.record = FolderRecord({"problem_type": "regression"})
        found, _ = answer(model, TOKENIZER, [["a"]], [[2.5, -1, 7]])
        self.assertAllEqual(found["values"], [[2.5, -1, 7]])
        self.assertAllEqual(found["labels"], [[b"LABEL_0", b"LABEL_1", b"LABEL_2"]])
        self.assertNotIn("scores", found)
        self.assertEqual(list(savedmodel.signatures(model, TOKENIZER, Options(8))), ["serving_default", "tokens"])
        found, _ = answer(small.model(heads=("classify",), num_labels=1), TOKENIZER, [["a"]], [[2.5]])
        self.assertAllEqual(found["value"], [2.5])

    def entities(self, family, make_tokenizer, texts, labels, names):
        model = small.model(family, heads=("tag",), num_labels=len(names), vocab_size=300)
        tokenizer = make_tokenizer()  # Behind the model, whose seed empties the cache that holds its resources.
        model.labels = tuple(names)
        return answer(model, tokenizer, [texts], one_hot(labels, len(names)))[0]

    def test_entities(self):
        # [CLS] a ##b c . the d [SEP]: the second piece's own label does not count; I-PER after B-PER goes on, and
        # B-LOC after I-LOC begins anew.
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
        found = self.entities("roberta", byte_level, [" adeé, b"], [[0, 1, 0, 0, 0, 0, 2, 2, 0]], ["O", "B-X", "Y"])
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
        logits[~np.isfinite(logits)] = 50  # Where no answer may begin or end.
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
        words, readable = answers.readable(TOKENIZER, len(small.VOCAB) + 3)
        shown = [word for word, yes in zip(words, readable) if yes]
        self.assertEqual(shown, [*small.LETTERS, "the", "of", "function", ".", "東", "京", "ω"])
        words, readable = answers.readable(BPE, BPE.vocab_size)
        self.assertEqual([word for word, yes in zip(words, readable) if yes], ["a"])

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
            ("bert", ("lm", "next_sentence"), answers.Words),
            ("bert", ("next_sentence",), answers.NextSentence),
            ("bert", (), answers.Embeddings),
            ("gpt2", ("lm",), answers.Continuations),
            ("t5", ("lm",), answers.Continuations),
            ("performer", ("lm",), answers.Words),
            ("electra", ("discriminate",), type(None)),
            ("gpt2", ("classify",), answers.Labels),
        ):
            self.assertIsInstance(
                answers.find(small.model(family, heads=heads, num_layers=1), TOKENIZER, options), kind
            )
        with self.assertRaisesRegex(UserError, "--pooling=pooled"):
            answers.find(small.model("xlnet", heads=()), TOKENIZER, Options(32, pooling="pooled"))

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
        found = answers.find(model, TOKENIZER, Options(24, max_new_tokens=6, search=search))

        def written(text, most, **options):
            ids = found.reader.read({"text": tf.constant([text])}).inputs["token_ids"]
            options |= dict(max_new_tokens=most, return_scores=True)
            new = generation.generate_ids(model, ids, **found.ids, **options)
            return TOKENIZER.detokenize([new.token_ids[0, : int(new.lengths[0])].numpy()])[0], int(new.lengths[0])

        spec = tf.TensorSpec([None], tf.string)
        ask = tf.function(lambda text: found.answer({"text": text}, None), input_signature=[spec], autograph=False)
        got = ask(tf.constant(texts))
        wanted = [written(text, 6, **search) for text in texts]
        self.assertEqual(list(zip(got["generated_text"].numpy(), got["num_tokens"].numpy())), wanted)
        self.assertNotEqual(wanted, [written(text, 6, no_repeat_ngram_size=2) for text in texts])
        self.assertEqual(ask(tf.constant([], tf.string))["num_tokens"].shape, [0])
        # Row by row: beams, the likeliest tokens, fewer tokens by beams, and drawn.
        texts, counts = [*texts, "the", "the"], [6, 6, 3, 6, 6]
        drawn = dict(temperature=1.5, top_k=20, top_p=0.8)
        rows: dict = dict(
            max_new_tokens=counts,
            temperature=[0, 1, 0, 1.5, 1.5],
            top_k=[0, 1, 0, 20, 20],
            top_p=[1, 1, 1, 0.8, 0.8],
            seed=[5, 5, 5, 6, 7],
        )
        rows = {name: tf.constant(values, found.ROWS[name]) for name, values in rows.items()}
        rowwise = tf.function(
            lambda text, rows: found.answer({"text": text}, None, rows),
            input_signature=[spec, {name: tf.TensorSpec([None], values.dtype) for name, values in rows.items()}],
            autograph=False,
        )
        plain = dict(no_repeat_ngram_size=2)
        chosen = plain | dict(do_sample=True) | drawn
        options = [search, plain, search, chosen | dict(seed=6), chosen | dict(seed=7)]

        def asked(rows):
            got = rowwise(tf.constant(texts), rows)
            return list(zip(got["generated_text"].numpy(), got["num_tokens"].numpy()))

        wanted = [written(text, n, **each) for text, n, each in zip(texts, counts, options)]
        self.assertEqual(asked(rows), wanted)
        self.assertNotEqual(wanted[3], wanted[4])  # By the seed alone.
        # Each of the numbers says something.
        for name, value in (("temperature", 0.2), ("top_k", 2), ("top_p", 0.1)):
            self.assertNotEqual(
                asked(rows | {name: tf.fill([5], tf.constant(value, found.ROWS[name]))})[3:], wanted[3:]
            )


if __name__ == "__main__":
    tf.test.main()
