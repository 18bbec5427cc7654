"""report.html in headless Chromium: the console, requests, and overflow at the widths of a phone and of a desktop.

`make browser` runs these tests. With PICTURES=FOLDER they also write pictures of the pages.
"""

import json
import os
import pathlib
import unittest

import pytest

from tests import made_run
from tests.browser import chromium
from tests.helpers import temporary_folder
from tfzoo.training import page

pytestmark = pytest.mark.browser
WIDTHS = (400, 700, 1400)  # In CSS pixels.
_LONG = "x" * 300
# The elements that are wider than the window without a parent that scrolls.
_OVERFLOWING = """[...document.querySelectorAll("body *")].filter(element =>
    element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
    && !element.closest(".scroll") && !element.closest("svg")).map(element => element.outerHTML.slice(0, 200))"""


def runs(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folders of runs whose pages differ."""
    few = made_run.fine_tuning(folder / "few")
    loses = made_run.fine_tuning(folder / "loses", made_run.results(accuracy=0.7, linear=0.83))
    test = made_run.results(seed=5, accuracy=0.8) | {"file": "test.tsv"}
    (loses / "evaluation-test.json").write_text(json.dumps(test))
    long = made_run.results([f"a_long_label_{i}" for i in range(17)] + [_LONG, "a b " * 40, "标签"], 3000)
    long["mistakes"][0] |= {"text": _LONG, "text_pair": "نص", "where": _LONG}
    long |= {"file": _LONG}
    long["baselines"] |= {f"another_baseline_{i}": {"accuracy": 0.5} for i in range(9)}
    return {
        "few": few,
        "loses": loses,
        "long": made_run.fine_tuning(folder / "long", long, train_file=_LONG, model="bert_small"),
        "many": made_run.fine_tuning(folder / "many", made_run.results([f"label_{i}" for i in range(77)], 3000)),
        "pre_training": made_run.pre_training(folder / "pre_training"),
    }


@unittest.skipIf(chromium.missing(), chromium.missing())
class BrowserTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.browser = cls.enterClassContext(chromium.start())
        cls.pages = {name: page.write(folder) for name, folder in runs(temporary_folder(cls)).items()}

    def test_the_checks_can_fail(self):
        path = temporary_folder(self) / "bad.html"
        script = "<script>console.error('an error'); undefined_()</script>"
        path.write_text(f'<p style="width: 2000px">wide</p><img src="missing.png">{script}')
        self.browser.open(path, 400)
        self.assertGreaterEqual(len(self.browser.log("browser")), 2)
        self.assertEqual(len(self.browser.requests()), 2)
        self.assertGreater(self.browser.evaluate("document.documentElement.scrollWidth"), 400)
        self.assertEqual(len(self.browser.evaluate(_OVERFLOWING)), 1)

    def test_pages(self):
        for name, path in self.pages.items():
            for width in WIDTHS:
                for dark in (False, True):
                    with self.subTest(name, width=width, dark=dark):
                        self.browser.open(path, width, dark)
                        self.browser.evaluate('document.querySelectorAll("details").forEach(each => each.open = true)')
                        self.assertEqual(self.browser.log("browser"), [])
                        self.assertEqual(self.browser.requests(), [path.as_uri()])
                        self.assertEqual(self.browser.evaluate(_OVERFLOWING), [])
                        self.assertEqual(self.browser.evaluate("document.documentElement.scrollWidth"), width)
                        color = self.browser.evaluate("getComputedStyle(document.body).backgroundColor")
                        self.assertEqual(color, "rgb(21, 23, 26)" if dark else "rgb(251, 251, 250)")
                        if folder := os.environ.get("PICTURES"):
                            scheme = "dark" if dark else "light"
                            self.browser.picture(pathlib.Path(folder, f"{name}_{width}_{scheme}.png"))

    def test_the_marker_is_at_the_lowest_validation_loss(self):
        """Its place is compared with the line of the validation loss as the browser draws it."""
        self.browser.open(self.pages["few"], 1400)
        ring, lowest = self.browser.evaluate(
            """(() => {
                const middle = box => [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
                const line = document.querySelector("polyline.validation"), matrix = line.getScreenCTM();
                const points = [...line.points].map(point => point.matrixTransform(matrix));
                const low = points.reduce((a, b) => b.y > a.y ? b : a);
                return [middle(document.querySelector(".ring").getBoundingClientRect()), [low.x, low.y]];
            })()"""
        )
        self.assertAlmostEqual(ring[0], lowest[0], delta=1)
        self.assertAlmostEqual(ring[1], lowest[1], delta=1)


if __name__ == "__main__":
    unittest.main()
