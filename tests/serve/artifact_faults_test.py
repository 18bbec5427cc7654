"""Malformed requests to exported models: ONNX artifacts and SavedModels, with text, ids and OpenAI's routes."""

import contextlib
import os
import pathlib
import tempfile

import pytest
import tensorflow as tf

from tests.export import small
from tests.serve import artifacts, malformed
from tests.serve.process import ServerProcess

pytestmark = pytest.mark.faults

TRIES = int(os.environ.get("TFZOO_TEST_TRIES", 5000))
SEED = int(os.environ.get("TFZOO_TEST_SEED", 0))
MODELS = ("encoder", "ranker", "writer", "graph", "answering", "ranker")
SIGNATURES = {
    "serving_default": ("text",), "tokens": ("input_ids", "attention_mask", "token_type_ids"), "classify": ("inputs",),
    "generate": ("text", "max_new_tokens", "temperature", "top_k", "top_p", "seed"), "": ("text", "text_pair"),
}  # fmt: skip


class ArtifactTest(tf.test.TestCase):
    def test_many(self) -> None:
        self.assertEqual(len(small.VOCAB), malformed.VOCAB)
        with contextlib.ExitStack() as parts:
            folder = pathlib.Path(parts.enter_context(tempfile.TemporaryDirectory())).resolve()
            config = folder / "models.config"
            config.write_text(artifacts.save_all(folder))
            server = ServerProcess(f"--model_config_file={config}", "--file_system_poll_wait_seconds=0")
            parts.callback(server.close)
            requests = malformed.Requests(SEED, MODELS, SIGNATURES)
            outcomes = malformed.refusals(server, requests, ("grpc", "http", "openai", "openai"), TRIES)
            for outcome in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", 200, 400, 404):
                self.assertGreater(outcomes[outcome], 0, outcome)
            self.assertNotIn("Traceback", server.log())
            server.terminate()
            self.assertEqual(server.wait(), 0)


if __name__ == "__main__":
    tf.test.main()
