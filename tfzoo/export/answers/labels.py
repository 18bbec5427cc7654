"""Classification and regression: the label of a text, or its number."""

import numpy as np
import tensorflow as tf

from tfzoo.errors import UserError
from tfzoo.export.answers.base import Answer, softmax
from tfzoo.export.interface import Signature, Tensor
from tfzoo.text.framing import PAIR, TEXT

# Hugging Face's names for the interpretations of a classifier's logits.
PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")


class Labels(Answer):
    """The likeliest `label`, string [B], and the `scores`, float32 [B, C], of all `labels` [B, C].

    Scores are probabilities. They add up to 1 unless several labels may hold at once (problem_type in config.json).
    With a single class the output is `value` [B], the model's number. A regression of several numbers has `values`
    [B, C] and their `labels`.
    """

    head = "classify"

    def __init__(self, model, tokenizer, options):
        self.pieces = {TEXT: "text", PAIR: "text_pair"} if options.text_pair else {TEXT: "text"}
        super().__init__(model, tokenizer, options)
        self.labels = self.labels_of(model)
        count = len(self.labels)
        stated = model.problem_type or (model.record.config if model.record else {}).get("problem_type") or PROBLEMS[0]
        if stated not in PROBLEMS:
            raise UserError(f"config.json: problem_type is {stated!r}; it must be one of {', '.join(PROBLEMS)}")
        self.problem_type = "regression" if count == 1 else stated
        each, numbers = Tensor("string", ("batch", count)), Tensor("float32", ("batch", count))
        if count == 1:
            self.outputs = {"value": Tensor("float32", ("batch",))}
        elif self.problem_type == "regression":
            self.outputs = {"labels": each, "values": numbers}
        else:
            self.outputs = {"label": Tensor("string", ("batch",)), "labels": each, "scores": numbers}

    def labels_of(self, model) -> list[str]:
        """Returns the names of the classes."""
        return list(model.labels)

    def facts(self):
        return super().facts() | {"problem_type": self.problem_type, "labels": self.labels}

    def answer_reading(self, reading, texts, call):
        logits = tf.cast(call(reading.inputs)[f"{self.head}_logits"], tf.float32)
        if len(self.labels) == 1:
            return {"value": logits[:, 0]}
        labels = tf.constant(self.labels)
        outputs = {"labels": tf.tile(labels[tf.newaxis], [tf.shape(logits)[0], 1])}
        if self.problem_type == "regression":
            return outputs | {"values": logits}
        several = self.problem_type == "multi_label_classification"
        return outputs | {
            "label": tf.gather(labels, tf.argmax(logits, -1)),
            "scores": tf.sigmoid(logits) if several else tf.nn.softmax(logits),
        }

    def expected_of_rows(self, rows, limits):
        count = len(self.labels)
        logits = np.array([row.outputs(f"{self.head}_logits") for row in rows]).reshape(len(rows), count)
        if count == 1:
            return {"value": logits[:, 0].astype(np.float32)}
        labels = np.array(self.labels)
        named = np.tile(labels, (len(rows), 1))
        if self.problem_type == "regression":
            return {"labels": named, "values": logits.astype(np.float32)}
        ordered = np.sort(logits, -1)
        decided = ordered[:, -1] - ordered[:, -2] > limits.margin * np.maximum(1, np.abs(logits).max(-1))
        several = self.problem_type == "multi_label_classification"
        scores = 1 / (1 + np.exp(-logits)) if several else softmax(logits)
        return {
            "label": {"values": labels[logits.argmax(-1)], "decided": decided},
            "labels": named,
            "scores": scores.astype(np.float32),
        }

    # TF Serving's Classify returns classes with scores; Regress returns the single number, or the score of the second
    # of two classes.

    def _example_outputs(self) -> dict[str, dict[str, str]]:
        """Returns the signatures that read tf.Examples: {signature: {its output: the output of serving_default}}."""
        count = len(self.labels)
        if count > 1 and self.problem_type == "regression":
            return {}
        classify = {"classify": {"classes": "labels", "scores": "scores"}} if count > 1 else {}
        regress = {"regress": {"outputs": "value" if count == 1 else "scores"}} if count <= 2 else {}
        return classify | regress

    def _examples(self, method: str, outputs, sources: dict[str, str]) -> dict:
        renamed = {name: outputs[source] for name, source in sources.items()}
        if method == "regress" and len(self.labels) == 2:
            renamed["outputs"] = renamed["outputs"][:, 1]
        return renamed

    def functions(self, call):
        def answering(method, sources):
            def answer(inputs):
                features = {name: tf.io.FixedLenFeature([], tf.string) for name in self.inputs}
                outputs = self.answer(tf.io.parse_example(inputs, features), call, by_row=False)
                return self._examples(method, outputs, sources)

            return answer

        functions = super().functions(call)
        for method, sources in self._example_outputs().items():
            outputs = {
                name: Tensor("float32", ("batch",)) if method == "regress" else self.outputs[source]
                for name, source in sources.items()
            }
            examples = Signature({"inputs": Tensor("string", ("batch",))}, outputs)
            functions[method] = examples, answering(method, sources)
        return functions

    def more_cases(self, cases, limits):
        more: dict[str, dict[str, dict]] = {method: {} for method in self._example_outputs()}
        for method, sources in self._example_outputs().items():
            for case, sides in cases.items():
                outputs = self._examples(method, sides["outputs"], sources)
                # An invalid row would refuse the whole call.
                kept = sides["outputs"].get("error", np.full(len(next(iter(outputs.values()))), "")) == ""
                more[method][case] = {
                    "inputs": {name: texts[kept] for name, texts in sides["inputs"].items()},
                    "outputs": {name: values[kept] for name, values in outputs.items()},
                }
        return more
