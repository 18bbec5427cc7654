"""OpenAI's routes and /v1/rerank, asked by the official client, with exports of tiny models."""

import http.client
import json
import threading
from unittest import mock

import numpy as np
import openai
import tensorflow as tf

from tests import helpers
from tests.serve import artifacts
from tfzoo.onnx_decoding import graphs
from tfzoo.serve import decoder, messages
from tfzoo.serve.core import Core
from tfzoo.serve.limits import Limits
from tfzoo.serve.loading import Loader
from tfzoo.serve.manager import Manager
from tfzoo.serve.metrics import Metrics
from tfzoo.serve.rest import server as rest_server
from tfzoo.serve.rest.http import Settings
from tfzoo.serve.servable import ModelSpec


class OpenAITest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        folder = helpers.temporary_folder(cls)
        config = messages.parse_text(artifacts.save_all(folder), messages.ModelServerConfig, "models.config")
        metrics = Metrics()
        manager = Manager(Loader(metrics), poll_seconds=0, max_retries=0)
        cls.addClassCleanup(manager.stop)
        manager.reload(config)
        cls.core = Core(manager, metrics, Limits(max_new_tokens=100))
        settings = Settings(max_request_bytes=2**20, max_requests=8, timeout=helpers.PATIENCE)
        cls.server = rest_server.Server(
            rest_server.application(cls.core, settings), rest_server.listen("127.0.0.1", 0), None
        )
        cls.addClassCleanup(cls.server.stop, 5)
        address = f"http://127.0.0.1:{cls.server.port}/v1"
        cls.client = cls.enterClassContext(openai.OpenAI(base_url=address, api_key="any", max_retries=0))

    def expected(self, ids: list[int], count: int) -> tuple[str, list[int]]:
        """Returns the likeliest continuation, each token computed from all previous ones at once."""
        with self.core.servable(ModelSpec("writer")) as servable:
            inputs = servable.signatures["tokens"].inputs
            empty = {n: np.zeros([1, s.shape[1], 0, s.shape[3]], s.dtype) for n, s in inputs.items() if "past" in n}
            all_ids = list(ids)
            for _ in range(count):
                feeds = {
                    "input_ids": np.array([all_ids]),
                    "attention_mask": np.ones((1, len(all_ids)), np.int64),
                    "position_ids": np.arange(len(all_ids))[None],
                }
                all_ids.append(int(servable.run("tokens", feeds | empty)["logits"][0, -1].argmax()))
            made = decoder.Decoder(servable.folder)
        return made._tokens.detokenize(all_ids[len(ids) :]), all_ids[len(ids) :]

    def prompt_ids(self, text: str) -> list[int]:
        with self.core.servable(ModelSpec("writer")) as servable:
            return decoder.Decoder(servable.folder).ids(text)

    def refused(self, error: type, text: str, function, **arguments) -> None:
        with self.assertRaises(error) as raised:
            function(**arguments)
        self.assertIn(text, raised.exception.body["message"])

    def test_models(self) -> None:
        self.assertEqual(
            [model.id for model in self.client.models.list()], ["answering", "encoder", "graph", "ranker", "writer"]
        )

    def test_a_completion_is_the_likeliest_text(self) -> None:
        ids = self.prompt_ids("de a")
        text, written = self.expected(ids, 6)
        ends = {2}  # </s>
        self.assertFalse(ends & {*written}, "choose another prompt")
        answer = self.client.completions.create(model="writer", prompt="de a", max_tokens=6, temperature=0)
        self.assertEqual((answer.choices[0].text, answer.choices[0].finish_reason), (text, "length"))
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.completion_tokens), (len(ids), 6))
        self.assertEqual(answer.object, "text_completion")
        for name in ("writer:1", "writer"):
            stream = self.client.completions.create(
                model=name, prompt="de a", max_tokens=6, temperature=0, stream=True,
                stream_options={"include_usage": True},
            )  # fmt: skip
            chunks = list(stream)
            self.assertEqual("".join(chunk.choices[0].text for chunk in chunks[:-1]), text)
            self.assertGreater(len(chunks), 3)
            self.assertEqual(chunks[-2].choices[0].finish_reason, "length")
            self.assertEqual((chunks[-1].choices, chunks[-1].usage.total_tokens), ([], len(ids) + 6))

    def test_sampling_follows_the_seed(self) -> None:
        def texts(seed):
            answer = self.client.completions.create(model="writer", prompt=["a", "de"], max_tokens=8, seed=seed, n=2)
            return [choice.text for choice in answer.choices]

        first = texts(1)
        self.assertLen(set(first), 4)
        self.assertEqual(texts(1), first)
        self.assertNotEqual(texts(2), first)

    def test_stop(self) -> None:
        text, _ = self.expected(self.prompt_ids("de a"), 12)
        stop = text[5:7]
        end = text.index(stop)
        for stream in (False, True):
            answer = self.client.completions.create(
                model="writer", prompt="de a", max_tokens=12, temperature=0, stop=[stop, "never"], stream=stream
            )
            choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
            self.assertEqual("".join(choice.text for choice in choices), text[:end])
            self.assertEqual(choices[-1].finish_reason, "stop")

    def test_chat(self) -> None:
        conversation = [{"role": "system", "content": "a"}, {"role": "user", "content": "de</s>"}]
        with self.core.servable(ModelSpec("writer")) as servable:
            made = decoder.Decoder(servable.folder)
        # The template's </s> is the token; the user's is text.
        end = 2
        ids = made.chat_ids(conversation)
        self.assertEqual(ids.count(end), 2)
        self.assertEqual(made._tokens.detokenize(ids), "s:au:de</s>a:")
        length = made.length - len(ids)
        self.assertGreater(length, 0)
        arguments = dict(model="writer", messages=conversation, temperature=0)
        answer = self.client.chat.completions.create(**arguments)
        message = answer.choices[0].message
        self.assertEqual((message.role, answer.object), ("assistant", "chat.completion"))
        stream = list(self.client.chat.completions.create(**arguments, stream=True))
        self.assertEqual(stream[0].choices[0].delta.role, "assistant")
        self.assertEqual("".join(chunk.choices[0].delta.content for chunk in stream), message.content)
        self.assertEqual(stream[-1].choices[0].finish_reason, answer.choices[0].finish_reason)

    def test_a_savedmodel_writes_in_one_call(self) -> None:
        create = self.client.completions.create
        answer = create(model="graph", prompt="ab", max_tokens=3)
        self.assertEqual((answer.choices[0].text, answer.choices[0].finish_reason), ("bbb", "length"))
        self.assertIsNone(answer.usage)
        chunks = list(create(model="graph", prompt=["ab", "c"], max_tokens=9, stream=True))
        self.assertEqual([chunk.choices[0].text for chunk in chunks], ["bbbbb", "ccccc"])
        self.assertEqual([chunk.choices[0].finish_reason for chunk in chunks], ["stop", "stop"])
        messages = [{"role": "user", "content": "a"}]
        self.refused(
            openai.BadRequestError, "has no chat template", self.client.chat.completions.create,
            model="graph", messages=messages,
        )  # fmt: skip

    def test_a_savedmodel_answers_a_message(self) -> None:
        chat = self.client.chat.completions.create
        question = {"role": "user", "content": "a"}
        answer = chat(model="answering", messages=[question])  # Four tokens, the most of this export.
        self.assertEqual((answer.choices[0].message.content, answer.choices[0].finish_reason), ("aaaa", "length"))
        parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
        (chunk,) = chat(model="answering", messages=[parts], max_completion_tokens=2, stream=True)
        self.assertEqual((chunk.choices[0].delta.role, chunk.choices[0].delta.content), ("assistant", "bb"))
        self.refused(
            openai.BadRequestError, "exactly one message", chat, model="answering", messages=[question, question]
        )
        self.refused(
            openai.BadRequestError, "use /v1/chat/completions", self.client.completions.create,
            model="answering", prompt="a",
        )  # fmt: skip

    def test_embeddings(self) -> None:
        texts = ["the function", "of a"]
        body = json.dumps({"instances": [{"text": text} for text in texts]}).encode()
        predictions = self.post("/v1/models/encoder:predict", body)["predictions"]
        vectors = np.array([row["embeddings"] for row in predictions], np.float32)
        answer = self.client.embeddings.create(model="encoder", input=texts)  # The client asks for base64.
        np.testing.assert_array_equal(np.array([each.embedding for each in answer.data], np.float32), vectors)
        self.assertEqual([each.index for each in answer.data], [0, 1])
        answer = self.client.embeddings.create(model="encoder", input=texts[0], encoding_format="float")
        np.testing.assert_array_equal(np.array(answer.data[0].embedding, np.float32), vectors[0])
        create = self.client.embeddings.create
        self.refused(openai.BadRequestError, "dimensions: ", create, model="encoder", input="a", dimensions=3)
        self.refused(openai.BadRequestError, "does not have the signature", create, model="ranker", input="a")
        self.refused(openai.BadRequestError, "input", create, model="encoder", input=[[1, 2]])

    def post(self, path: str, body: bytes) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=helpers.PATIENCE)
        self.addCleanup(connection.close)
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return json.loads(answer.read())

    def test_rerank(self) -> None:
        documents = ["a function", "the", "x"]
        rows = [{"text": "of", "text_pair": each} for each in documents]
        predictions = self.post("/v1/models/ranker:predict", json.dumps({"instances": rows}).encode())["predictions"]
        scores = [row["scores"][1] for row in predictions]
        order = sorted(range(3), key=lambda i: -scores[i])
        request: dict = {"model": "ranker", "query": "of", "documents": documents, "return_documents": True}
        answer = self.post("/v1/rerank", json.dumps(request | {"top_n": 2}).encode())
        self.assertEqual(
            answer["results"],
            [{"index": i, "relevance_score": scores[i], "document": {"text": documents[i]}} for i in order[:2]],
        )
        answer = self.post(
            "/v1/rerank", json.dumps({"model": "ranker", "query": "of", "documents": [{"text": "x"}]}).encode()
        )
        self.assertEqual(answer["results"][0]["relevance_score"], scores[2])
        wrong: dict
        for wrong, text in (
            ({"model": "ranker", "query": "of", "documents": []}, "documents: must contain"),
            ({"model": "ranker", "query": "of", "documents": [{"body": "x"}]}, "documents: must contain"),
            ({"model": "ranker", "query": "of"}, "has no documents"),
            ({"model": "encoder", "query": "of", "documents": ["a"]}, "does not have the signature"),
        ):
            self.assertIn(text, self.post("/v1/rerank", json.dumps(wrong).encode())["error"]["message"])

    def test_errors(self) -> None:
        create = self.client.completions.create
        for error, text, arguments in (
            (openai.NotFoundError, "Servable not found", dict(model="nobody", prompt="a")),
            (openai.NotFoundError, "Specific(writer, 9)", dict(model="writer:9", prompt="a")),
            (openai.BadRequestError, "Unrecognized servable version label: x", dict(model="writer:x", prompt="a")),
            (openai.BadRequestError, "does not write text", dict(model="encoder", prompt="a")),
            (openai.BadRequestError, "has no tokens", dict(model="writer", prompt="")),
            (openai.BadRequestError, "leaves no room", dict(model="writer", prompt="b" * 40)),
            (
                openai.BadRequestError,
                "max_tokens: must be at most 100",
                dict(model="writer", prompt="a", max_tokens=101),
            ),
            (openai.BadRequestError, "temperature", dict(model="writer", prompt="a", temperature=3)),
            (openai.BadRequestError, "logit_bias: only {}", dict(model="writer", prompt="a", logit_bias={"1": 1})),
            (openai.BadRequestError, "n: 20 answers", dict(model="writer", prompt=["a"] * 20)),
            (openai.BadRequestError, "color: the parameter", dict(model="writer", prompt="a", extra_body={"color": 1})),
        ):
            self.refused(error, text, create, **arguments)
            if "max_tokens" in arguments or "nobody" in arguments.values():
                self.refused(error, text, create, **arguments, stream=True)
        chat = self.client.chat.completions.create
        for conversation in ([], [{"role": "user"}], [{"role": "user", "content": [{"type": "image_url"}]}], ["a"]):
            self.refused(openai.BadRequestError, "messages", chat, model="writer", messages=conversation)

    def test_a_client_that_disconnects_ends_its_work(self) -> None:
        steps, reached, finished = [], threading.Event(), threading.Event()
        step = graphs.Reading.run
        go_on = threading.Event()

        def slow(self, *arguments):
            steps.append(1)
            if len(steps) == 3:
                reached.set()
                go_on.wait(helpers.PATIENCE)
            return step(self, *arguments)

        write = decoder.Decoder.write

        def watched(self, *arguments):
            try:
                yield from write(self, *arguments)
            finally:
                finished.set()

        for stream in (False, True):
            for event in (reached, finished, go_on):
                event.clear()
            steps.clear()
            with (
                mock.patch.object(graphs.Reading, "run", slow),
                mock.patch.object(decoder.Decoder, "write", watched),
            ):
                connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=helpers.PATIENCE)
                request = {"model": "writer", "prompt": "a", "max_tokens": 20, "temperature": 0, "stream": stream}
                connection.request("POST", "/v1/completions", json.dumps(request))
                self.assertTrue(reached.wait(helpers.PATIENCE))
                connection.close()
                threading.Timer(0.3, go_on.set).start()
                self.assertTrue(finished.wait(helpers.PATIENCE))
                self.assertLess(len(steps), 8)
        # The model is free again.
        self.client.completions.create(model="writer", prompt="a", max_tokens=1)


if __name__ == "__main__":
    tf.test.main()
