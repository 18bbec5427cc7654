"""Compares the records of predictors."""

import dataclasses
import unittest
from typing import Any
from unittest import mock

import numpy as np

from tests import helpers
from tfzoo.export import answers as heads
from tfzoo.export import interface, tokenizer_files
from tfzoo.export.answers import Options
from tfzoo.prediction import onnx_graphs
from tfzoo.prediction.models import ModelPredictor

TEXTS = [
    "",
    "the function of a",
    "naïve Größe, 東京 x!",
    "  two  spaces\tand [SEP] </s> ",
    "a [MASK] of <mask>.",
    "the function of a function of a function of the function of the function " * 3,
    "x",
]


class Case(unittest.TestCase):
    def assert_near(self, one: Any, other: Any, where: str = "") -> None:
        """Asserts that two records are equal up to rounding errors."""
        self.assertEqual(type(one), type(other), where)
        if isinstance(one, dict):
            self.assertEqual(one.keys(), other.keys(), where)
            for name in one:
                self.assert_near(one[name], other[name], f"{where}/{name}")
        elif isinstance(one, list):
            self.assertEqual(len(one), len(other), where)
            for i, (x, y) in enumerate(zip(one, other)):
                self.assert_near(x, y, f"{where}/{i}")
        elif isinstance(one, float):
            self.assertAlmostEqual(one, other, delta=3e-5 * max(1, abs(one)), msg=where)
        else:
            self.assertEqual(one, other, where)


class _Graph:
    """A session that computes what an ONNX graph of a model would; the graphs themselves are tested elsewhere."""

    def __init__(self, model):
        self._model = model
        self._inputs = {value.onnx: (name, value.dtype) for name, value in interface.inputs_of(model).items()}

    def get_inputs(self):
        return [_Named(name) for name in self._inputs]

    def get_outputs(self):
        names = interface.onnx_outputs(self._model)
        if "span_logits" in names:
            return [_Named("start_logits"), _Named("end_logits")]
        return [_Named(name) for name in names.values()]

    def run(self, names, feeds):
        inputs = {self._inputs[name][0]: value.astype(self._inputs[name][1]) for name, value in feeds.items()}
        outputs = {name: np.asarray(value) for name, value in self._model(inputs).items()}
        if "span_logits" in outputs:
            return [outputs["span_logits"][..., 0], outputs["span_logits"][..., 1]]
        return [outputs[name] for name in interface.onnx_outputs(self._model)]


@dataclasses.dataclass
class _Named:
    name: str


class OnnxCase(Case):
    """Compares models with ONNX artifacts of them."""

    def predictors(self, model, tokenizer, **options):
        """Returns the predictors of a model and of an ONNX artifact of it."""
        stated = Options(32, **options)
        answer = heads.find(model, tokenizer, stated)
        folder = helpers.temporary_folder(self)
        (folder / "tokenizer").mkdir()
        tokenizer_files.write(tokenizer, model.LAYOUT, folder / "tokenizer")
        shapes = {value.onnx: {"shape": ["batch", value.axis]} for value in interface.inputs_of(model).values()}
        manifest = {
            "model": {"heads": list(model.head_names), "config": dataclasses.asdict(model.config)},
            "labels": list(model.labels),
            **answer.facts(),
            "options": dataclasses.asdict(stated),
            "signatures": {"model": {"inputs": shapes}},
            "manifest_sha256": "",
        }
        with mock.patch.object(onnx_graphs, "open_session", lambda path, device: _Graph(model)):
            graph = onnx_graphs.OnnxPredictor(folder, manifest)
        pooling, prompt = options.get("pooling"), options.get("prompt_name")
        return ModelPredictor(lambda: (model, tokenizer), pooling=pooling, prompt_name=prompt), graph

    def check(self, model, tokenizer, texts=None, **options):
        one, other = self.predictors(model, tokenizer, **options)
        rows = [(text,) for text in TEXTS] if texts is None else texts
        expected = one.answer(rows)
        self.assertTrue(any("truncated" in record for record in expected))
        self.assertEqual(one.task, other.task)
        self.assert_near(expected, other.answer(rows))
        return expected
