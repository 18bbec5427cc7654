"""The programs in export/consumers, which do not use tfzoo, reproduce the answers of the exported model."""

import contextlib
import functools
import html
import http.server
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.parse
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from tests.export import small
from tests.text.varied import CODE, SENTENCES
from tfzoo import generation
from tfzoo.export import answers, artifact, publish, tokenizer_graph
from tfzoo.export.precision import Limits
from tfzoo.text import training
from tfzoo.text.byte_level import ByteLevelBPE

CONSUMERS = pathlib.Path(__file__).parents[2] / "export" / "consumers"
LABELS = ["World", "Sports & <games>", "Business"]
TEXTS = ["the function of a", "Größe, naïve café 東京", "x"]
PROMPTS = ["The quick brown fox", "Größere Straßen: 東京 👍🏽", "\n    return x  # it's"]

FOLDER: pathlib.Path
CLASSIFIER: Any
WRITER: Any
TOKENIZER: ByteLevelBPE
EXPORTED: dict[str, pathlib.Path]


def setUpModule():
    global FOLDER, CLASSIFIER, WRITER, TOKENIZER, EXPORTED
    FOLDER = pathlib.Path(tempfile.mkdtemp())
    unittest.addModuleCleanup(shutil.rmtree, FOLDER)
    TOKENIZER = ByteLevelBPE(*training.train_byte_level([*SENTENCES, *CODE], 400), special_tokens=["<|endoftext|>"])
    CLASSIFIER = small.model("bert", heads=("classify",), num_layers=1)
    CLASSIFIER.labels = tuple(LABELS)
    WRITER = small.model("gpt2", vocab_size=TOKENIZER.vocab_size, max_positions=96)
    # Tested elsewhere, and slow.
    with mock.patch.object(publish, "replay"), mock.patch.object(tokenizer_graph, "write", return_value=""):
        EXPORTED = {
            name: artifact.export(model, tokenizer, FOLDER / "exports", name, formats=["onnx"])["onnx"]
            for name, model, tokenizer in (
                ("classifier", CLASSIFIER, small.tokenizer()),
                ("writer", WRITER, TOKENIZER),
            )
        }


def program(name: str) -> Any:
    """Imports one of the Python programs as a module."""
    spec: Any = importlib.util.spec_from_file_location(name, CONSUMERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(prompt: str, most: int) -> list[int]:
    """Returns the tokens that `generate_ids` generates after a prompt."""
    result = generation.generate_ids(
        WRITER, TOKENIZER.tokenize([prompt]).to_list(), max_new_tokens=most, eos_token_id=TOKENIZER.eos_id,
        pad_token_id=0, return_scores=True,
    )  # fmt: skip
    return np.asarray(result.token_ids)[0, : int(result.lengths[0])].tolist()


def run(*command, cwd=None) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise AssertionError(done.stderr[-2000:])
    return done.stdout


class ConsumersTest(tf.test.TestCase):
    def expected(self) -> dict:
        answer: Any = answers.find(CLASSIFIER, small.tokenizer(), answers.Options(32))
        return answer.expected({"text": TEXTS}, Limits(2e-5))

    def check_classified(self, output: str):
        rows = [line.split("\t") for line in output.splitlines()]
        self.assertEqual([row[0] for row in rows], self.expected()["label"]["values"].tolist())
        self.assertAllClose([float(row[1]) for row in rows], self.expected()["scores"].max(-1), atol=6e-5)
        self.assertEqual([row[2] for row in rows], TEXTS)

    def check_written(self, *command, cwd=None):
        """The tokens are those of generate_ids, up to the last position or the end token."""
        for prompt in PROMPTS:
            room = 96 - len(TOKENIZER.tokenize([prompt])[0])
            ids = run(*command, EXPORTED["writer"], prompt, "--max_new_tokens=500", "--ids", cwd=cwd)
            self.assertEqual([int(token) for token in ids.split()], written(prompt, room))
        text = run(*command, EXPORTED["writer"], PROMPTS[0], "--max_new_tokens=8", cwd=cwd)
        ids = written(PROMPTS[0], 8)
        self.assertEqual(text, PROMPTS[0] + TOKENIZER.detokenize([ids]).numpy()[0].decode(errors="replace") + "\n")
        drawn = run(*command, EXPORTED["writer"], PROMPTS[0], "--temperature=9", "--top_k=1", "--ids", cwd=cwd)
        self.assertEqual([int(token) for token in drawn.split()], written(PROMPTS[0], 64))

        ended = shutil.copytree(EXPORTED["writer"], FOLDER / "ended", dirs_exist_ok=True)
        stated = json.loads((ended / "manifest.json").read_text())
        self.assertEqual(stated["generation"], {"eos_token_id": TOKENIZER.eos_id, "pad_token_id": 0})
        ids = written(PROMPTS[0], 64)
        end = next(token for token in ids if token != ids[0])  # Not the first token, so that there is a step before it.
        stated["generation"]["eos_token_id"] = [TOKENIZER.eos_id, end]
        (ended / "manifest.json").write_text(json.dumps(stated))
        short = run(*command, ended, PROMPTS[0], "--ids", cwd=cwd)
        self.assertEqual([int(token) for token in short.split()], ids[: ids.index(end) + 1])

    def test_a_text_classified_in_python(self):
        self.check_classified(run(sys.executable, CONSUMERS / "classify.py", EXPORTED["classifier"], *TEXTS))

    @pytest.mark.faults
    def test_a_prompt_continued_in_python(self):
        self.check_written(sys.executable, CONSUMERS / "generate.py")

    def test_steps_in_python(self):
        """The same without processes, which start slowly."""
        generate = program("generate")
        session = onnxruntime.InferenceSession(EXPORTED["writer"] / "model.onnx", providers=["CPUExecutionProvider"])
        ids = TOKENIZER.tokenize(PROMPTS[:1])[0].numpy().tolist()
        expected = written(PROMPTS[0], 40)
        self.assertGreater(len(set(expected)), 5)
        likeliest = generate.chooser(0, 0, None)
        self.assertEqual(generate.continued(session, ids, 40, [], likeliest), expected)
        self.assertEqual(generate.continued(session, ids, 40, [expected[7]], likeliest)[-1], expected[7])
        with mock.patch.object(sys, "argv", ["", str(EXPORTED["writer"]), PROMPTS[0], "--max_new_tokens=500"]):
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                generate.main()
        self.assertStartsWith(stdout.getvalue(), PROMPTS[0])

    def test_draws_in_python(self):
        logits, chooser = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32)), program("generate").chooser
        for temperature, top_k, chances in (
            (1.0, 0, [0.1, 0.2, 0.3, 0.4]),
            (0.5, 0, np.array([1, 4, 9, 16]) / 30),  # The squared deviations.
            (1.0, 2, [0, 0, 3 / 7, 4 / 7]),
        ):
            choose, count = chooser(temperature, top_k, 0), 4000
            found = np.bincount([choose(logits) for _ in range(count)], minlength=4) / count
            # Five standard deviations of a fraction.
            self.assertTrue(np.all(np.abs(found - chances) <= 5 * np.sqrt(np.array(chances) / count)), found)

    @pytest.mark.faults
    def test_masked_words_in_python(self):
        model, tokenizer = small.model(), small.tokenizer()
        with mock.patch.object(publish, "replay"):
            folder = artifact.export(model, tokenizer, FOLDER / "exports", "words", formats=["onnx"])["onnx"]
        found = run(sys.executable, CONSUMERS / "fill.py", folder, "the [MASK] of ω [MASK]").splitlines()
        self.assertLen(found, 2)
        ids = [2, *tokenizer.tokenize(["the [MASK] of ω [MASK]"], special=["[MASK]"]).to_list()[0], 3]
        logits = model({"token_ids": np.array([ids]), "padding_mask": np.ones((1, len(ids)), bool)})["logits"][0]
        for line, chances in zip(found, tf.nn.softmax(logits).numpy()[np.array(ids) == tokenizer.mask_id]):
            best = np.argsort(-chances)[:5]
            self.assertEqual([part.split()[0] for part in line.split("   ")], [small.VOCAB[i] for i in best])
            self.assertAllClose([float(part.split()[1]) for part in line.split("   ")], chances[best], atol=6e-5)

    def test_artifacts_of_other_kinds_are_refused_in_one_line(self):
        for program, artifact_, line in (
            ("fill", EXPORTED["classifier"], "is not an ONNX artifact of a masked language model; specify"),
            ("fill", EXPORTED["writer"], "is not an ONNX artifact of a masked language model; specify"),
            ("classify", EXPORTED["writer"], "is not a classifier, or has other heads as well"),
            ("classify", FOLDER, "is not an ONNX artifact; specify exports/onnx/NAME/VERSION"),
            ("generate", EXPORTED["classifier"], "is not an ONNX artifact of a decoder; specify"),
        ):
            command = [sys.executable, CONSUMERS / f"{program}.py", artifact_, "a text"]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(f"{artifact_} {line}", done.stderr.splitlines()[-1])

    @pytest.mark.faults
    def test_in_javascript(self):
        folder = javascript(self)
        self.check_classified(run("node", "classify.mjs", EXPORTED["classifier"], *TEXTS, cwd=folder))
        self.check_written("node", "generate.mjs", cwd=folder)

    @pytest.mark.faults
    def test_in_a_browser(self):
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser is None:
            self.skipTest("chromium is not installed")
        folder = javascript(self)
        shutil.copytree(EXPORTED["classifier"], folder / "artifact", dirs_exist_ok=True)
        handler = functools.partial(Quiet, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        page = f"http://127.0.0.1:{server.server_port}/classify.html"
        # Chromium's sandbox is not available to root. Virtual time stops while the page waits for a file.
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000", "--dump-dom"]

        def seen(**query) -> str:
            return run(*command, f"{page}?{urllib.parse.urlencode(query)}")

        for i, text in enumerate(TEXTS):
            rows = re.findall(r"<li><span>([0-9.]+) %</span>(.*?)<i", seen(text=text))
            scores = self.expected()["scores"][i]
            self.assertEqual([html.unescape(label) for _, label in rows], [LABELS[k] for k in np.argsort(-scores)])
            self.assertAllClose([float(score) / 100 for score, _ in rows], np.sort(scores)[::-1], atol=6e-4)
        self.assertIn("is ready; enter a text", seen())
        self.assertIn("The text has 42 tokens, but the model reads at most 32", seen(text="a " * 40))
        self.assertIn("nowhere/", seen(artifact="nowhere").split("<footer", 1)[1])


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *arguments):
        del format, arguments


def javascript(test: unittest.TestCase) -> pathlib.Path:
    """Returns a folder with the programs and the packages that they require."""
    folder = FOLDER / "javascript"
    if folder.exists():
        return folder
    if shutil.which("npm") is None:
        test.skipTest("npm is not installed")
    folder.mkdir()
    for path in (*CONSUMERS.glob("*.mjs"), *CONSUMERS.glob("*.html")):
        shutil.copy(path, folder)
    packages = ["onnxruntime-node", "onnxruntime-web", "@huggingface/tokenizers"]
    environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
    command = ["npm", "install", "--no-audit", "--no-fund", *packages]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(folder)
        raise AssertionError(f"npm install: {done.stderr[-500:]}")
    return folder


if __name__ == "__main__":
    tf.test.main()
