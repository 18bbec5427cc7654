"""Keras's compile, fit, evaluate and predict for models that return a dict of outputs.

Losses, metrics and predictions use the heads' outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from tfzoo.errors import UserError, suggest
from tfzoo.nn.basic import CANNOT_QUANTIZE
from tfzoo.nn.heads import ROW_HEADS, output_of


class Fit:
    """Mixin for a Keras model that has `head_names` and returns a dict of outputs.

    A model with one head takes a plain loss, plain labels and plain sample weights. A model with several heads takes
    dicts keyed by output name and trains the heads that have labels. `predict` returns the output of the only head, or
    a dict of outputs.
    """

    INPUTS: Sequence[str]
    REQUIRED_INPUTS: Sequence[str]
    head_names: tuple[str, ...]
    optimizer: Any
    # The outputs that `predict` returns, such as ("sequence",); None means the heads' outputs.
    predicted_outputs: Sequence[str] | None = None

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Computes the loss as keras.Model.compute_loss does, from the outputs that have labels.

        Raises:
          UserError: labels or a loss name something that is not the output of a head, or a loss expects probabilities.
        """
        self._check_losses()
        y, y_pred, sample_weight = self._answers(y, y_pred, sample_weight)
        return super().compute_loss(x, y, y_pred, sample_weight, training)  # type: ignore[misc]

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Computes metrics as keras.Model.compute_metrics does, from the outputs that have labels."""
        y, y_pred, sample_weight = self._answers(y, y_pred, sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)  # type: ignore[misc]

    def predict_step(self, data):
        """Returns the output of the only head, or a dict of several outputs; `predicted_outputs` selects others.

        Raises:
          UserError: `predicted_outputs` names something that is not an output.
        """
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        outputs = self(x, training=False)  # type: ignore[operator]
        names = self.predicted_outputs or self._answer_names() or list(outputs)
        for name in names:
            if name not in outputs:
                raise UserError(
                    f"predicted_outputs: {name!r} is not an output{suggest(name, outputs)}; the model's outputs are "
                    f"{', '.join(outputs)}"
                )
        return outputs[names[0]] if len(names) == 1 else {name: outputs[name] for name in names}

    def fit(self, *args, **kwargs):
        """Trains the model as keras.Model.fit does.

        Raises:
          UserError: the strategy has several replicas, or class_weight is passed for a head that does not have one
            label per row, which Keras would misinterpret.
        """
        self._check_one_replica("fit")
        per_token = [name for name in self.head_names if name not in ROW_HEADS]
        if kwargs.get("class_weight") is not None and per_token:
            raise UserError(
                f"class_weight: requires one label per row, but the head {per_token[0]!r} has other labels; pass "
                "sample_weight with one weight per label"
            )
        return super().fit(*args, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args, **kwargs):
        """Evaluates the model as keras.Model.evaluate does.

        Raises:
          UserError: the strategy has several replicas.
        """
        self._check_one_replica("evaluate")
        return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def quantize(self, mode=None, *args, **kwargs):
        """Raises an error; `tfzoo.store_weights` keeps a model's matrices as int8.

        Raises:
          UserError: always.
        """
        raise UserError(f"quantize({mode!r}): {CANNOT_QUANTIZE}")

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
        """Exports the model as keras.Model.export does, and logs a warning.

        Unlike the artifacts of python -m tfzoo.export, the result is not verified, takes token ids instead of texts,
        and has no manifest.

        Args:
          filepath, format, verbose: as for keras.Model.export.
          input_signature: None means `input_specs`, of any batch size and length.
          **kwargs: as for keras.Model.export.
        """
        logging.warning(
            "%s: written by Keras's export and not verified; python -m tfzoo.export writes verified artifacts", filepath
        )
        if input_signature is None:
            input_signature = [self.input_specs()]
        return super().export(filepath, format, verbose, input_signature, **kwargs)  # type: ignore[misc]

    def input_specs(self) -> dict[str, keras.layers.InputSpec]:
        """Returns the shapes and dtypes of the required inputs, the segments and the padding masks."""
        masks = [name for name in self.INPUTS if name.endswith("padding_mask")]
        specs = {name: keras.layers.InputSpec(shape=(None, None), dtype="int32") for name in self.REQUIRED_INPUTS}
        if self.reads_segments:  # type: ignore[attr-defined]
            specs["segment_ids"] = keras.layers.InputSpec(shape=(None, None), dtype="int32")
        if "relation" in self.head_names:
            specs["entity_positions"] = keras.layers.InputSpec(shape=(None, 2), dtype="int32")
        return specs | {name: keras.layers.InputSpec(shape=(None, None), dtype="bool") for name in masks}

    def _answer_names(self) -> list[str]:
        return [output_of(head) for head in self.head_names]

    def _user_losses(self) -> Any:
        """Returns the loss or losses that were passed to `compile`."""
        return None if self._compile_loss is None else self._compile_loss._user_loss  # type: ignore[attr-defined]

    def _answers(self, y, outputs, sample_weight):
        """Returns labels, their outputs and sample weights: each a plain value, or all dicts with the same keys."""
        names = self._answer_names() or list(outputs)
        losses = self._user_losses()
        for argument, value in (("loss", losses), ("labels", y), ("sample_weight", sample_weight)):
            for name in value if isinstance(value, Mapping) else ():
                if name not in names:
                    raise UserError(
                        f"{argument}: {name!r} is not the output of a head{suggest(name, names)}; the heads' outputs "
                        f"are {', '.join(names)}"
                    )
        if not isinstance(y, Mapping):
            if len(names) > 1:
                raise UserError(
                    f"labels: the model has several outputs; pass a dict keyed by output name ({', '.join(names)})"
                )
            if not isinstance(losses, Mapping):
                return y, outputs[names[0]], sample_weight
            y = {names[0]: y}
            sample_weight = None if sample_weight is None else {names[0]: sample_weight}
        if isinstance(losses, Mapping):
            y = {name: labels for name, labels in y.items() if losses.get(name) is not None}
        if isinstance(sample_weight, Mapping):
            sample_weight = {name: sample_weight.get(name) for name in y}
        return y, {name: outputs[name] for name in y}, sample_weight

    def _check_losses(self) -> None:
        """Refuses losses that expect probabilities, because the heads return logits.

        Raises:
          UserError: a loss expects probabilities.
        """
        for loss in tf.nest.flatten(self._user_losses()):
            name = loss if isinstance(loss, str) else getattr(loss, "name", "")
            if (isinstance(loss, str) and loss in _ON_PROBABILITIES) or _from_logits(loss) is False:
                raise UserError(
                    f"loss {name!r}: expects probabilities, but the model returns logits; pass "
                    f"keras.losses.{_ON_PROBABILITIES.get(name, type(loss).__name__)}(from_logits=True)"
                )

    def _check_one_replica(self, method: str) -> None:
        replicas = self.distribute_strategy.num_replicas_in_sync  # type: ignore[attr-defined]
        if replicas > 1:
            raise UserError(
                f"{method} with {replicas} replicas: Keras clips each replica's gradients separately and weights all "
                "replicas equally regardless of their number of rows, so the result would differ from that on one "
                "device; use python -m tfzoo.train or tfzoo.training.Trainer, which match one device exactly"
            )


_ON_PROBABILITIES = {
    "sparse_categorical_crossentropy": "SparseCategoricalCrossentropy",
    "categorical_crossentropy": "CategoricalCrossentropy",
    "binary_crossentropy": "BinaryCrossentropy",
    "categorical_focal_crossentropy": "CategoricalFocalCrossentropy",
    "binary_focal_crossentropy": "BinaryFocalCrossentropy",
    "kl_divergence": "KLDivergence",
}


def _from_logits(loss: Any) -> bool | None:
    """Returns whether a Keras loss takes logits; None if that is unknown."""
    options = getattr(loss, "_fn_kwargs", {})
    return options.get("from_logits") if isinstance(loss, keras.losses.Loss) else None
