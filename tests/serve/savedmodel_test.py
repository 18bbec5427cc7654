"""SavedModels: defaults of inputs, warm-up, folders that cannot be loaded, and batches."""

import os
import pathlib
import shutil
import unittest.mock
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import function

from tests.helpers import temporary_folder
from tests.serve import models
from tfzoo.serve import inference, messages, records, warmup
from tfzoo.serve.batching import Parameters, Scheduler
from tfzoo.serve.errors import StatusError
from tfzoo.serve.loading import Loader
from tfzoo.serve.metrics import Metrics
from tfzoo.serve.servable import ModelSpec


class Scaled(tf.Module):
    """x times `scale`, which is 3 by default."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x"), tf.TensorSpec([], tf.float32, "scale")])
    def times(self, x, scale):
        return {"y": x * scale}


class Calling(tf.Module):
    """3 times (x squared plus the bias, 5), or 0 if the first x is negative: a condition, a loop and nested calls."""

    def __init__(self):
        self.bias = tf.Variable(5.0)

    @tf.function
    def square(self, x):
        return x * x

    @tf.function
    def shifted(self, x):
        return self.square(x) + self.bias

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def compute(self, x):
        def thrice():
            return tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y + self.shifted(x)), [0, 0.0 * x])[1]

        return {"y": tf.cond(x[0] < 0, lambda: 0.0 * self.square(x), thrice)}


def predict_log(**inputs: list[float]) -> messages.PredictionLog:
    log = messages.PredictionLog()
    log.predict_log.request.model_spec.name = "m"
    for name, values in inputs.items():
        proto = tf.make_tensor_proto(np.array(values, np.float32))
        log.predict_log.request.inputs[name].MergeFromString(proto.SerializeToString())
    return log


class SavedModelTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.original = temporary_folder(cls) / "1"
        models.save(cls.original, 2.0)

    def setUp(self) -> None:
        super().setUp()
        self.folder = temporary_folder(self) / "1"
        self.metrics = Metrics()

    def copy(self) -> pathlib.Path:
        shutil.copytree(self.original, self.folder)
        return self.folder

    def load(self, **options):
        servable = Loader(self.metrics, **options)("m", 1, self.folder)
        self.addCleanup(servable.close)
        return servable

    def warm(self, *logs: messages.PredictionLog) -> None:
        (self.copy() / warmup.FILE).parent.mkdir()
        (self.folder / warmup.FILE).write_bytes(b"".join(records.record(log.SerializeToString()) for log in logs))

    def test_an_input_with_a_default_may_be_missing_over_grpc(self) -> None:
        module = Scaled()
        tf.saved_model.save(module, str(self.folder), {"serving_default": module.times.get_concrete_function()})
        path = self.folder / "saved_model.pb"
        saved = messages.SavedModel.FromString(path.read_bytes())
        default = tf.make_tensor_proto(np.float32(3.0)).SerializeToString()
        saved.meta_graphs[0].signature_def["serving_default"].defaults["scale"].MergeFromString(default)
        path.write_bytes(saved.SerializeToString())
        servable = self.load()
        x = np.array([1, 2], np.float32)

        def predict(**inputs):
            def read(signature):
                inference.check_names(signature, inputs.keys())
                return inputs

            return inference.predict(servable, servable.run, ModelSpec("m"), read, (), inference.GRPC)["y"].tolist()

        self.assertEqual(predict(x=x), [3, 6])
        self.assertEqual(predict(x=x, scale=np.array(2, np.float32)), [2, 4])
        with self.assertRaisesRegex(
            StatusError,
            r"^Signature input alias: x\(feed name: serving_default_x:0\) not found in request and no default value "
            r"provided. Inputs expected to be in the request \{scale\}, or default input alias set: scale$",
        ):
            predict(scale=x)
        definitions = messages.SignatureDefMap.FromString(servable.signature_def_map())
        self.assertEmpty(definitions.signature_def["serving_default"].defaults)

    def test_functions_that_call_functions(self) -> None:
        module = Calling()
        tf.saved_model.save(module, str(self.folder), {"serving_default": module.compute.get_concrete_function()})
        with unittest.mock.patch.object(
            tf.graph_util, "import_graph_def", wraps=tf.graph_util.import_graph_def
        ) as imported:
            servable = self.load()
        for call in imported.call_args_list:  # No other thread of Python runs while TensorFlow imports a graph.
            self.assertLen(call.args[0].library.function, 1)
        self.assertGreaterEqual(len(imported.call_args_list), 4)
        for x, expected in (([2.0, 5.0], [27.0, 90.0]), ([-1.0], [0.0])):
            values = servable.run("serving_default", {"x": np.array(x, np.float32)})
            self.assertAllEqual(values["y"], expected)

    def test_a_function_with_a_gradient_of_its_own(self) -> None:
        @function.Defun(tf.float32, tf.float32)
        def gradient(x, dy):
            return 10.0 * dy

        @function.Defun(tf.float32, grad_func=gradient)
        def double(x):
            return 2.0 * x

        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            x = tf.compat.v1.placeholder(tf.float32, [None], "x")
            y = double(x)
            (slope,) = tf.gradients(ys=y, xs=x)
            tf.compat.v1.saved_model.simple_save(session, str(self.folder), {"x": x}, {"y": y, "slope": slope})
        values = self.load().run("serving_default", {"x": np.array([3.0], np.float32)})
        self.assertAllEqual(values["y"], [6.0])
        self.assertAllEqual(values["slope"], [10.0])

    def test_warm_up_runs_every_request(self) -> None:
        log = messages.PredictionLog()
        log.classify_log.request.model_spec.signature_name = "classify"
        example = tf.train.Example(
            features=tf.train.Features(feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=[1]))})
        )
        rows = log.classify_log.request.input.example_list.examples
        rows.add().MergeFromString(example.SerializeToString())
        self.warm(predict_log(x=[1.0]), log, messages.PredictionLog())
        self.load(warmup_iterations=2)
        text = self.metrics.text().decode()
        self.assertIn(f'model_warmup_latency_count{{model_path="{self.folder}",status="OK"}} 1.0', text)

    def test_a_request_that_fails_fails_the_load(self) -> None:
        session_run = messages.PredictionLog()
        session_run.session_run_log.request.feed.add(name="x")
        for log, message in (
            (predict_log(z=[1.0]), "^Signature input alias: x"),
            (session_run, "^Unsupported log_type for warmup: 5$"),
        ):
            with self.subTest(message), self.assertRaisesRegex(StatusError, message):
                self.warm(predict_log(x=[1.0]), log)
                self.load()
            self.load(warmup_iterations=0)
            shutil.rmtree(self.folder)
        self.warm(*[messages.PredictionLog()] * (warmup.MAX_RECORDS + 1))
        with self.assertRaisesRegex(StatusError, r"^Number of warmup records exceeds the maximum \(1000\) at "):
            self.load()

    def test_damaged_warm_up_files(self) -> None:
        self.warm(predict_log(x=[1.0]))
        path = self.folder / warmup.FILE
        good = path.read_bytes()
        self.assertEqual(list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()), list(records.read(path)))
        huge = (2**44).to_bytes(8, "little")
        for bad in (good[:-1], good[:5], good[:-1] + b"x", b"x" + good[1:],
                    huge + records.checksum(huge).to_bytes(4, "little") + good[12:]):  # fmt: skip
            path.write_bytes(bad)
            with self.assertRaisesRegex(StatusError, "is not a TFRecord file, or is damaged$"):
                self.load()

    def test_folders_that_cannot_be_loaded(self) -> None:
        self.copy()
        graph, variables = self.folder / "saved_model.pb", self.folder / "variables"
        original = graph.read_bytes()
        self.load()
        with self.assertRaisesRegex(StatusError, r"^Could not find meta graph def matching supplied tags: \{ gpu \}$"):
            self.load(tags=("gpu",))
        saved = messages.SavedModel.FromString(original)
        saved.meta_graphs[0].graph_def.node.add(name="unknown", op="NoSuchOperation")
        for content in (original[: len(original) // 2], b"", b"\xff" * 100, saved.SerializeToString()):
            graph.write_bytes(content)
            with self.assertRaises(StatusError):
                self.load()
        graph.unlink()
        os.mkfifo(graph)  # Reading it would wait forever.
        with self.assertRaisesRegex(StatusError, "saved_model.pb: cannot be read .*not a regular file"):
            self.load()
        graph.unlink()
        graph.write_bytes(original)
        variables.rename(self.folder / "elsewhere")
        with self.assertRaisesRegex(StatusError, "/1: cannot be loaded "):
            self.load()
        graph.unlink()
        with self.assertRaisesRegex(StatusError, "contains neither a SavedModel .saved_model.pb. nor an ONNX graph"):
            self.load()

    def test_batches(self) -> None:
        self.copy()
        scheduler = Scheduler(self.metrics, threads=1)
        self.addCleanup(scheduler.stop)
        parameters = Parameters(8, 0.01, allowed_batch_sizes=(4, 8), max_execution_batch_size=8)
        servable = self.load(scheduler=scheduler, batching=parameters)
        with ThreadPoolExecutor(16) as pool:
            inputs = [np.full(1 + i % 3, i, np.float32) for i in range(50)]
            answers = list(pool.map(lambda x: servable.run("serving_default", {"x": x})["y"], inputs))
        for x, y in zip(inputs, answers):
            np.testing.assert_array_equal(y, x / 2 + 2)
        # The model's own file decides if the server has no parameters.
        self.assertEqual(type(self.load(scheduler=scheduler)).__name__, "SavedModel")
        (self.folder / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
        servable = self.load(scheduler=scheduler)
        with self.assertRaisesRegex(StatusError, "^Task size 3 is larger than maximum input batch size 2$"):
            servable.run("serving_default", {"x": np.zeros(3, np.float32)})
        (self.folder / "batching_params.pbtxt").write_text("pad_variable_length_inputs: true")
        with self.assertRaisesRegex(StatusError, "pad_variable_length_inputs pads with the first element"):
            self.load(scheduler=scheduler)


if __name__ == "__main__":
    tf.test.main()
