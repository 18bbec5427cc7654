"""Tuning on preferences between two answers: direct preference optimization (DPO, Rafailov et al. 2023).

    {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}

becomes, with the template of chat.py's example and a token for each word,

                    chosen                        rejected
    token_ids       <user> Hi <end> <assistant> Hello    <user> Hi <end> <assistant> No
    targets         Hi <end> <assistant> Hello <end>     Hi <end> <assistant> No <end>
    target_weights  0 0 0 1 1                            0 0 0 1 1

With log pi, the sum of the log-probabilities of an answer's tokens, and log pi_ref, that of the frozen reference model,
the implicit reward is r = beta (log pi - log pi_ref), and the loss is (equation 7)

    -log sigmoid(r_chosen - r_rejected)

With --label_smoothing=e, the preference is wrong with the probability e: the loss is (1 - e) times that plus e times
the loss of the opposite preference (Mitchell 2023, conservative DPO).

The reference starts with the weights of the model, those of --init_from, is never trained, and is saved with each
checkpoint; exports contain only the model.
"""

import dataclasses
from typing import Any

import numpy as np

from tfzoo import lazy
from tfzoo.data.messages import PreferenceFile
from tfzoo.errors import UserError
from tfzoo.evaluation.intervals import Weighted
from tfzoo.objectives.objective import MAIN, LabelSmoothingOption
from tfzoo.options import option
from tfzoo.tasks import GROUP, decoder_rows
from tfzoo.tasks.task import chunked
from tfzoo.tasks.templated import ChatTemplateOption, TemplatedTask, Turn, shown

tf = lazy.module("tensorflow")

REFERENCE = "reference"
_ANSWERS = ("chosen", "rejected")
_WRITTEN = ("token_ids", "targets", "padding_mask", "target_weights")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ChatTemplateOption, LabelSmoothingOption):
    """The options of the task preferences."""

    beta: float = option(
        0.1,
        "Weight of the implicit reward: the lower, the further the model may move away from the reference.",
        group=GROUP,
        low=1e-6,
    )


class Preferences(TemplatedTask):
    """See the module's docstring."""

    name = "preferences"
    Options = Options
    HEAD = "lm"
    KINDS = ("decoder",)
    ROLES = (MAIN, REFERENCE)
    TUNES_A_MODEL = True  # A reference with random weights is useless.
    FIGURES = (
        ("reward accuracy", "reward_accuracy", "{:.2%}"),
        ("reward margin", "reward_margin", "{:.4f}"),
        ("validation loss", "validation_loss", "{:.4f}"),
    )
    best_metric = ("reward_accuracy", "max")

    def __init__(self, tokenizer, sequence_length: int, **arguments: Any):
        super().__init__(tokenizer, sequence_length, **arguments)
        self._smoothing = self.options.label_smoothing or 0.0
        if self._smoothing >= 0.5:
            raise UserError(f"--label_smoothing={self._smoothing}: must be below 0.5, at which no answer is preferred")
        ids, mask, weights = (np.int32, (2, None)), (np.bool_, (2, None)), (np.float32, (2, None))
        self.SIGNATURE = {"token_ids": ids, "padding_mask": mask, "targets": ids, "target_weights": weights}
        self.SIGNATURE |= {"number": (np.int64, ()), "weight": (np.float32, ())}

    # ------------------------------------------------------------------ Files

    @classmethod
    def open_file(cls, options, path, flag, policy):
        return PreferenceFile(path, flag=flag, policy=policy)

    @classmethod
    def unit_of(cls, row):
        return tuple(str(message.get("content")) for message in row.prompt)

    def targets(self):
        return {}

    def chunks(self, file):
        for first, rows in chunked(file.rows()):
            numbers, turns = [], []
            for number, row in enumerate(rows, first):
                found = self._turns_or_refuse(row, file)
                if found:
                    numbers.append(number)
                    turns.append(found)
            columns: dict[str, Any] = {"number": np.array(numbers, np.int64)}
            for i, name in enumerate(_ANSWERS):
                columns[name] = [np.array([*both[i].prompt, *both[i].answer], np.int32) for both in turns]
                columns[f"{name}_begin"] = np.array([len(both[i].prompt) for both in turns], np.int64)
            columns["missing"] = np.array([both[0].cut or both[0].dropped for both in turns], np.bool_)
            yield columns

    def _turns_or_refuse(self, row, file) -> list[Turn]:
        """Returns the two answers; [] if the template does not support the row and bad rows are skipped."""
        return self.or_refuse(row, file, lambda: self.turns(row.prompt, [row.chosen, row.rejected], self._length + 1))

    def truncated(self, rows):
        return int(np.count_nonzero(rows.columns["missing"]))

    # ------------------------------------------------------------------ Batches

    def lengths(self, rows):
        return np.maximum(np.max([rows.lengths(name) for name in _ANSWERS], axis=0) - 1, 1)

    def batch(self, rows, indices, length):
        features = self.blank(self.SIGNATURE, len(indices), length)
        features["number"][:] = rows.columns["number"][indices]
        for row, index in enumerate(indices):
            for i, name in enumerate(_ANSWERS):
                tokens, begin = rows.values(name, int(index)), int(rows.columns[f"{name}_begin"][index])
                answer = {each: features[each][row, i] for each in _WRITTEN}
                decoder_rows.write(answer, tokens, [(begin, len(tokens))])
        return features

    # ------------------------------------------------------------------ Models and loss

    def build_models(self, page, config, dtype=None):
        models = super().build_models(page, config, dtype)
        models[REFERENCE] = page.Model(config, heads=self.heads, dtype=dtype)
        models[REFERENCE].trainable = False
        return models

    def initialized(self, models):
        for variable, value in zip(models[REFERENCE].weights, models[MAIN].weights, strict=True):
            variable.assign(value)

    def model_names(self, name):
        return {MAIN: name, REFERENCE: name}

    def _margins(self, models, batch, training: bool):
        """Returns the reward of the chosen answer minus that of the rejected one, and the loss, float32 [B] each."""
        reference = tf.stop_gradient(decoder_rows.log_probabilities(models[REFERENCE], batch, False))
        rewards = self.options.beta * (decoder_rows.log_probabilities(models[MAIN], batch, training) - reference)
        margin = rewards[:, 0] - rewards[:, 1]
        loss = tf.math.softplus(-margin) * (1 - self._smoothing) + tf.math.softplus(margin) * self._smoothing
        return margin, loss * batch["weight"]

    def loss(self, models, batch, training=True):
        _, losses = self._margins(models, batch, training)
        return tf.reduce_sum(losses), tf.reduce_sum(batch["weight"])

    # ------------------------------------------------------------------ Evaluation

    def predict(self, models, batch):
        margin, losses = self._margins(models, batch, False)
        return {"number": batch["number"], "margin": margin, "loss": losses, "loss_weight": batch["weight"]}

    def outcome(self, predictions):
        return {name: predictions[name] for name in ("number", "margin")}

    def score_rows(self, outcome):
        margin = outcome["margin"].astype(np.float64)
        # The model and the reference may be equal: such a margin of 0 is half right.
        values = np.stack([(np.sign(margin) + 1) / 2, margin], 1)

        def figures(values, weights):
            accuracy, mean = (weights @ values / weights.sum(1, keepdims=True)).T
            return {"reward_accuracy": accuracy, "reward_margin": mean}

        return Weighted(values, figures)

    def mistakes(self, outcome, count):
        margin = outcome["margin"]
        return [
            {
                "number": int(outcome["number"][i]),
                "gold_at": (int(outcome["number"][i]), -2),
                "predicted_at": (int(outcome["number"][i]), -1),
                "score": float(margin[i]),
            }
            for i in np.argsort(margin, kind="stable")[:count]
            if margin[i] < 0
        ]

    def described(self, mistake, row):
        others = {name: value for name, value in mistake.items() if name != "number"}
        return {"text": shown(row.prompt)} | others

    def file_baselines(self, train, held_out):
        """Returns the accuracy of preferring the longer answer."""
        lengths = [
            [len(str(answer.get("content", ""))) for answer in (row.chosen, row.rejected)] for row in held_out.rows()
        ]
        difference = np.diff(np.array(lengths), axis=1)[:, 0]
        return {"longer": {"reward_accuracy": float(np.mean((np.sign(-difference) + 1) / 2))}}
