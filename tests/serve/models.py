"""SavedModels for tests, in the styles of TensorFlow 1 and 2.

python -m tests.serve.models FOLDER writes those of which the tests ask a server, with a models.config. To test another
server, start it with that file and --allow_version_labels_for_unavailable_models, and set TFZOO_SERVER_GRPC and
TFZOO_SERVER_REST to its addresses, such as localhost:8500.
"""

import pathlib
import sys

import tensorflow as tf

_CLASSIFY = "tensorflow/serving/classify"
_REGRESS = "tensorflow/serving/regress"


class Linear(tf.Module):
    """x / 2 + `bias`, as Predict; the same of the feature x of tf.Examples, as Classify and Regress."""

    def __init__(self, bias: float):
        super().__init__()
        self.slope, self.bias = tf.Variable(0.5), tf.Variable(bias)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def predict(self, x):
        return {"y": self.slope * x + self.bias}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def upper(self, text):
        return {"upper": tf.strings.upper(text), "length_bytes": tf.strings.length(text), "count": tf.size(text)}

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.int64, "ids"), tf.TensorSpec([], tf.float64, "scale")])
    def several(self, ids, scale):
        return {"sum": tf.cast(tf.reduce_sum(ids, -1), tf.float64) * scale, "first": ids[:, 0]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def regress(self, inputs):
        return {"outputs": self._of_examples(inputs)[:, None]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
    def classify(self, inputs):
        y = self._of_examples(inputs)
        return {"classes": tf.stack([tf.strings.as_string(y), tf.fill(tf.shape(y), "other")], 1),
                "scores": tf.stack([y, 1 - y], 1)}  # fmt: skip

    def _of_examples(self, inputs):
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([], tf.float32)})["x"]
        return self.slope * x + self.bias


class Tokens(tf.Module):
    """The sums of the embeddings of at most `length` ids below `vocab_size`; all numbers are 1."""

    def __init__(self, vocab_size: int, length: int):
        super().__init__()
        self.words, self.positions = tf.Variable(tf.ones([vocab_size, 4])), tf.Variable(tf.ones([length, 4]))

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32, "token_ids")])
    def __call__(self, token_ids):
        positions = tf.gather(self.positions, tf.range(tf.shape(token_ids)[1]))
        return {"sum": tf.reduce_sum(tf.gather(self.words, token_ids) + positions, [1, 2])}


class Slow(tf.Module):
    """Adds 1 to 0 `n` times, one after another."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, "n")])
    def __call__(self, n):
        return {"sum": tf.while_loop(lambda i: i < n, lambda i: [i + 1], [0], parallel_iterations=1)[0]}


def save(folder: pathlib.Path, bias: float) -> None:
    """Writes a TensorFlow 2 SavedModel: half_plus_two has the bias 2, half_plus_three 3."""
    model = Linear(bias)
    signatures = {
        "serving_default": model.predict,
        "upper": model.upper,
        "several": model.several,
        "regress": model.regress,
        "classify": model.classify,
    }
    tf.saved_model.save(model, str(folder), signatures={k: v.get_concrete_function() for k, v in signatures.items()})


def save_tf1(folder: pathlib.Path, bias: float) -> None:
    """Writes a TensorFlow 1 SavedModel with a placeholder of unknown shape and signatures of Classify and Regress."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, name="x")
        slope, offset = v1.Variable(0.5, name="slope"), v1.Variable(bias, name="offset")
        y = tf.add(slope * x, offset, name="y")
        examples = v1.placeholder(tf.string, [None], name="examples")
        features = tf.io.parse_example(examples, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        score = tf.add(slope * features["x"], offset, name="score")
        session.run(v1.global_variables_initializer())
        info, define = v1.saved_model.build_tensor_info, v1.saved_model.build_signature_def
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, [v1.saved_model.tag_constants.SERVING], {
            "serving_default": define({"x": info(x)}, {"y": info(y)}, "tensorflow/serving/predict"),
            "classify": define({"inputs": info(examples)}, {"scores": info(score)}, _CLASSIFY),
            "regress": define({"inputs": info(examples)}, {"outputs": info(score)}, _REGRESS),
        })  # fmt: skip
        builder.save()


CONFIG = """model_config_list {{
  config {{ name: "half_plus_two" base_path: "{folder}/half_plus_two" model_platform: "tensorflow" }}
  config {{
    name: "half_plus_three"
    base_path: "{folder}/half_plus_three"
    model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 3 versions: 5 }} }}
    version_labels {{ key: "stable" value: 3 }}
    version_labels {{ key: "canary" value: 5 }}
  }}
  config {{ name: "old_style" base_path: "{folder}/old_style" model_platform: "tensorflow" }}
}}
"""


def save_all(folder: pathlib.Path) -> pathlib.Path:
    """Writes the models that the tests ask for, and returns the path of their models.config."""
    save(folder / "half_plus_two" / "1", 2.0)
    save(folder / "half_plus_three" / "3", 3.0)
    save(folder / "half_plus_three" / "5", 5.0)
    save_tf1(folder / "old_style" / "0000123", 2.0)
    config = folder / "models.config"
    config.write_text(CONFIG.format(folder=folder))
    return config


if __name__ == "__main__":
    print(save_all(pathlib.Path(sys.argv[1]).resolve()))
