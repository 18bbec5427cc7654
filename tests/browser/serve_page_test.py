"""The page of the embedded server in headless Chromium: forms, answers, keyboard, requests and overflow.

`make browser` runs these tests. With PICTURES=FOLDER they also write pictures of the page.
"""

import os
import pathlib
import time
import unittest
from typing import Any

import numpy as np
import pytest

from tests.browser import chromium
from tests.helpers import PATIENCE, temporary_folder
from tfzoo.serve import messages, tensors
from tfzoo.serve.core import Core
from tfzoo.serve.errors import StatusError
from tfzoo.serve.manager import Manager
from tfzoo.serve.metrics import Metrics
from tfzoo.serve.rest import server as rest_server
from tfzoo.serve.rest.http import Settings
from tfzoo.serve.servable import PREDICT, ModelSpec, Signature, TensorSpec

pytestmark = pytest.mark.browser
WIDTHS = (400, 700, 1400)  # In CSS pixels.
TEXT, FLOAT, INT = 7, 1, 3
SENTENCE = "Ada 😀 met <b>Bob</b> in Paris."
# Model -> the inputs of its signature, and the answer for one row: output -> (DataType, value).
ANSWERS: dict[str, tuple[dict[str, int], dict[str, tuple[int, Any]]]] = {
    "classifier": (
        {"text": TEXT},
        {
            "label": (TEXT, "good"), "labels": (TEXT, ["bad", "good"]), "scores": (FLOAT, [0.25, 0.75]),
            "truncated": (10, True),
        },
    ),
    "entities": (
        {"text": TEXT},
        {
            "types": (TEXT, ["PER", "LOC", ""]), "texts": (TEXT, ["Ada", "Paris", ""]),
            "scores": (FLOAT, [0.9, 0.8, 0]), "starts": (INT, [0, 24, 0]), "ends": (INT, [3, 29, 0]),
            "num_entities": (INT, 2),
        },
    ),
    "reader": (
        {"question": TEXT, "context": TEXT},
        {
            "answers": (TEXT, ["Paris", "Bob"]), "scores": (FLOAT, [0.7, 0.1]), "starts": (INT, [24, 13]),
            "ends": (INT, [29, 16]), "no_answer": (FLOAT, 0.2),
        },
    ),
    "filler": (
        {"text": TEXT},
        {"words": (TEXT, [["shape", "size"]]), "probabilities": (FLOAT, [[0.6, 0.1]]), "num_masks": (INT, 1)},
    ),
    "writer": (
        {"text": TEXT, "max_new_tokens": INT, "temperature": FLOAT},
        {"generated_text": (TEXT, " upon a time"), "num_tokens": (INT, 3)},
    ),
    "encoder": ({"text": TEXT}, {"embeddings": (FLOAT, list(np.linspace(0, 1, 384)))}),
    "numbers": ({"ids": INT}, {"value": (FLOAT, 0.1)}),
}  # fmt: skip
# The elements that are wider than the window without a parent that scrolls.
OVERFLOWING = """[...document.querySelectorAll("body *")].filter(element =>
    element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
    && !element.closest("pre")).map(element => element.outerHTML.slice(0, 200))"""


class Fixed:
    """A Servable that gives the same answer for every row."""

    runtime = "test"

    def __init__(self, name: str, version: int, folder: pathlib.Path):
        if name == "broken":
            raise StatusError("DATA_LOSS", "the folder is damaged")
        self.name, self.version, self.folder = name, version, folder
        inputs, self._answer = ANSWERS[name]
        outputs = {key: self._spec(key, kind, np.ndim(value)) for key, (kind, value) in self._answer.items()}
        shapes = {key: self._spec(key, kind, int(name == "numbers")) for key, kind in inputs.items()}
        self.signatures = {"serving_default": Signature("serving_default", PREDICT, shapes, outputs)}

    def _spec(self, name: str, kind: int, rank: int) -> TensorSpec:
        return TensorSpec(name, tensors.TYPES[kind][1], (None,) * (1 + rank), kind)

    def signature_def_map(self) -> bytes:
        return b""

    def run(self, signature_name, inputs, outputs=None, deadline=None) -> dict[str, np.ndarray]:
        if b"fail" in next(iter(inputs.values())).ravel().tolist():
            raise StatusError("INVALID_ARGUMENT", "the text <i>fails</i>")
        return {name: self._row(kind, value) for name, (kind, value) in self._answer.items()}

    def _row(self, kind: int, value) -> np.ndarray:
        if kind != TEXT:
            return np.array([value], tensors.TYPES[kind][1])
        array = np.array([value], object)
        flat = [each.encode() for each in array.ravel()]
        return np.fromiter(flat, object, len(flat)).reshape(array.shape)

    def close(self) -> None:
        pass


@unittest.skipIf(chromium.missing(), chromium.missing())
class ServePageTest(unittest.TestCase):
    browser: chromium.Browser
    addresses: list[str]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = temporary_folder(cls)
        entries = ""
        for name in [*ANSWERS, "broken"]:
            (folder / name / "1").mkdir(parents=True)
            entries += f'config {{ name: "{name}" base_path: "{folder}/{name}" model_platform: "tensorflow" }}'
        config = messages.parse_text(f"model_config_list {{ {entries} }}", messages.ModelServerConfig, "models.config")
        metrics = Metrics()
        manager = Manager(Fixed, poll_seconds=0, max_retries=0)
        cls.addClassCleanup(manager.stop)
        manager.reload(config, wait=False)
        end = time.monotonic() + PATIENCE
        while len([name for name in ANSWERS if cls.is_available(manager, name)]) < len(ANSWERS):
            if time.monotonic() > end:
                raise AssertionError("a model was not loaded")
            time.sleep(0.05)
        core = Core(manager, metrics)
        cls.browser = cls.enterClassContext(chromium.start())
        cls.addresses = []
        for keys in ((), (b"secret",)):
            settings = Settings(max_request_bytes=2**20, max_requests=8, api_keys=keys)
            server = rest_server.Server(
                rest_server.application(core, settings), rest_server.listen("127.0.0.1", 0), None
            )
            cls.addClassCleanup(server.stop, 1)
            cls.addresses.append(f"http://127.0.0.1:{server.port}/")

    @staticmethod
    def is_available(manager, name: str) -> bool:
        try:
            return any(int(state) == 30 for _, state, _ in manager.status(ModelSpec(name)))
        except StatusError:
            return False

    def wait(self, condition: str):
        """Returns the value of a JavaScript expression as soon as it is true."""
        end = time.monotonic() + 60
        while True:
            if value := self.browser.evaluate(condition):
                return value
            if time.monotonic() > end:
                raise AssertionError(f"{condition}: {self.browser.evaluate('document.body.innerText')[-2000:]}")
            time.sleep(0.05)

    def open(self, width: int = 1400, dark: bool = False, address: int = 0) -> None:
        self.browser.open(self.addresses[address], width, dark)
        self.wait('document.getElementById("state").textContent !== "Loading ..."')

    def choose(self, model: str) -> None:
        self.browser.evaluate(
            f"""(() => {{ const select = document.getElementById("model"); select.value = "{model}";
            select.dispatchEvent(new Event("change")); }})()"""
        )

    def fill(self, **values: str) -> None:
        for name, value in values.items():
            self.browser.evaluate(
                f"""(() => {{ const field = document.querySelector('[name="{name}"]'); field.value = {value!r};
                field.dispatchEvent(new Event("input", {{bubbles: true}})); }})()"""
            )

    def send(self) -> str:
        """Sends the form and returns the text of the answer."""
        self.browser.evaluate('document.getElementById("answer").replaceChildren()')
        self.browser.evaluate('document.getElementById("send").click()')
        return self.wait('document.getElementById("answer").innerText')

    def key(self, key: str, modifiers: int = 0) -> None:
        for kind in ("keyDown", "keyUp"):
            code = {"Tab": 9, "Enter": 13}[key]
            self.browser.command(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers
            )

    def test_answers_of_every_kind(self):
        for width in WIDTHS:
            for dark in (False, True):
                self.open(width, dark)
                for name, (inputs, _) in ANSWERS.items():
                    with self.subTest(name, width=width, dark=dark):
                        self.choose(name)
                        texts = {key: SENTENCE for key, kind in inputs.items() if kind == TEXT}
                        self.fill(**texts)
                        self.send()
                        self.assertEqual(self.browser.evaluate(OVERFLOWING), [])
                        self.assertEqual(self.browser.evaluate("document.documentElement.scrollWidth"), width)
                        if folder := os.environ.get("PICTURES"):
                            scheme = "dark" if dark else "light"
                            self.browser.picture(pathlib.Path(folder, f"serve_{name}_{width}_{scheme}.png"))
                            self.browser._resize(width, 900)
                self.assertEqual(self.browser.log("browser"), [])
                requested = self.browser.requests()
                self.assertTrue(all(each.startswith(self.addresses[0]) for each in requested), requested)

    def test_labels_are_bars(self):
        self.open()
        self.choose("classifier")
        self.fill(text=SENTENCE)
        self.assertIn("was truncated", self.send())
        rows = self.browser.evaluate('[...document.querySelectorAll("#answer tr")].map(row => row.innerText.trim())')
        self.assertEqual([row.split() for row in rows], [["good", "0.75"], ["bad", "0.25"]])
        widths = self.browser.evaluate(
            '[...document.querySelectorAll(".bar")].map(b => b.getBoundingClientRect().width)'
        )
        self.assertAlmostEqual(widths[0] / widths[1], 3, delta=0.05)

    def test_entities_and_answers_are_marked_in_the_text(self):
        self.open()
        marks = '[...document.querySelectorAll("#answer mark")].map(each => each.firstChild.data)'
        self.choose("entities")
        self.fill(text=SENTENCE)
        self.send()
        self.assertEqual(self.browser.evaluate(marks), ["Ada", "Paris"])
        # What looks like HTML is text.
        self.assertIn("<b>Bob</b>", self.browser.evaluate('document.querySelector("#answer .answer").textContent'))
        self.choose("reader")
        self.fill(question="Where?", context=SENTENCE)
        self.send()
        self.assertEqual(self.browser.evaluate(marks), ["Paris"])
        self.choose("writer")
        self.fill(text="Once")
        self.send()
        self.assertEqual(self.browser.evaluate(marks), [" upon a time"])

    def test_the_code_does_the_same(self):
        self.open()
        self.choose("classifier")
        self.fill(text="it's")
        curl = self.browser.evaluate('document.getElementById("curl").textContent')
        body = """'{"signature_name":"serving_default","instances":[{"text":"it'\\''s"}]}'"""
        self.assertEqual(curl, f"curl -s {self.addresses[0]}v1/models/classifier:predict -d {body}")
        python = self.browser.evaluate('document.getElementById("python").textContent')
        printed: list = []
        exec(python, {"print": printed.append})
        self.assertEqual(printed[0]["predictions"][0]["label"], "good")

    def test_errors_are_shown(self):
        self.open()
        self.choose("classifier")
        self.fill(text="fail")
        self.assertEqual(self.send(), "400: the text <i>fails</i>")
        self.choose("numbers")
        self.fill(ids="[1")
        self.assertIn("ids: ", self.send())

    def test_states_of_models(self):
        self.open()
        text = self.browser.evaluate('document.getElementById("models").innerText')
        self.assertIn("classifier", text)
        self.assertIn("AVAILABLE", text)
        self.assertEqual(self.browser.evaluate('document.querySelector(".failed").textContent'), "END")
        self.assertEqual(
            self.browser.evaluate('document.querySelector(".failed").parentElement.title'), "the folder is damaged"
        )

    def test_the_keyboard_is_sufficient(self):
        self.open()
        self.choose("classifier")
        self.browser.evaluate('document.querySelector("a").focus()')
        focused = []
        for _ in range(5):
            self.key("Tab")
            focused.append(self.browser.evaluate("document.activeElement.id || document.activeElement.name"))
        self.assertEqual(focused, ["model", "version", "signature", "text", "send"])
        outline = self.browser.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        self.assertEqual(outline, "solid")
        self.browser.evaluate("""document.querySelector('[name="text"]').focus()""")
        self.key("Enter", modifiers=2)  # Ctrl.
        self.assertIn("good", self.wait('document.getElementById("answer").innerText'))

    def test_the_page_of_all_routes(self):
        for width in WIDTHS:
            for dark in (False, True):
                self.browser.open(f"{self.addresses[0]}docs", width, dark)
                self.assertIn("/v1/models/{model}:predict", self.browser.evaluate("document.body.innerText"))
                self.assertEqual(self.browser.evaluate(OVERFLOWING), [])
                self.assertEqual(self.browser.log("browser"), [])
                self.assertTrue(all(each.startswith(self.addresses[0]) for each in self.browser.requests()))

    def test_a_key_is_asked_for_and_used(self):
        self.open(address=1)
        self.assertFalse(self.browser.evaluate('document.getElementById("key").hidden'))
        self.browser.evaluate(
            """(() => { const field = document.querySelector("#key input"); field.value = "secret";
            field.dispatchEvent(new Event("change", {bubbles: true})); })()"""
        )
        self.wait('!document.getElementById("form").hidden')
        self.choose("classifier")
        self.assertIn("good", self.send())
        curl = self.browser.evaluate('document.getElementById("curl").textContent')
        self.assertIn('"Authorization: Bearer $API_KEY"', curl)
        self.assertNotIn("secret", curl)


if __name__ == "__main__":
    unittest.main()
