"""Sizes and choices: bounds, types, overrides, each error by the field's name. Needs no TensorFlow."""

import dataclasses
import json
import unittest

from tfzoo import config as config_lib
from tfzoo.config import TransformerConfig, from_mapping, parse_overrides
from tfzoo.errors import UserError

SIZES = dict(vocab_size=100, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=24)


class TransformerConfigTest(unittest.TestCase):
    def refused(self, message, **overrides):
        with self.assertRaisesRegex(UserError, message):
            TransformerConfig(**SIZES | overrides)

    def test_values_out_of_bounds_are_named(self):
        for name in (*SIZES, "max_positions"):
            self.refused(rf"^{name} \(0\) must be at least 1$", **{name: 0})
        self.refused(r"num_segments \(-1\) must be at least 0", num_segments=-1)
        for name in ("dropout", "attention_dropout"):
            for value in (-0.1, 1, 1.0, 2.5, float("nan")):
                self.refused(rf"{name} \({value}\) must be at least 0 and below 1", **{name: value})
        for name in ("norm_epsilon", "initializer_range"):
            for value in (0, -1e-3, float("inf"), float("nan")):
                self.refused(rf"{name} \(.*\) must be above 0", **{name: value})
        self.refused("activation .'swish'. must be one of gelu, gelu_tanh, relu, silu", activation="swish")
        self.refused("positions .'rotary'. must be one of learned, sinusoidal", positions="rotary")
        self.refused(r"hidden_size \(10\) must be a multiple of num_heads \(3\)", hidden_size=10)
        self.refused(r"hidden_size \(9\) must be even", hidden_size=9, positions="sinusoidal")

    def test_types_are_strict(self):
        self.refused(r"num_layers \(2.0\) must be of type int", num_layers=2.0)
        self.refused(r"num_layers \(True\) must be of type int", num_layers=True)
        self.refused(r"dropout \(False\) must be of type float", dropout=False)
        self.refused(r"dropout \('0.1'\) must be of type float", dropout="0.1")
        self.refused(r"norm_first \(1\) must be of type bool", norm_first=1)
        self.assertEqual(TransformerConfig(**SIZES, dropout=0).dropout, 0)

    def test_frozen_and_its_json_reads_back(self):
        config = TransformerConfig(**SIZES, dropout=0.25, norm_first=True)
        self.assertEqual(config.head_dim, 4)
        self.assertEqual(from_mapping(json.loads(config.to_json())), config)
        with self.assertRaises(dataclasses.FrozenInstanceError):
            config.dropout = 0.0  # type: ignore[misc]

    def test_from_mapping_names_unknown_and_missing_fields(self):
        with self.assertRaisesRegex(UserError, "unknown config field 'num_layer' .did you mean num_layers.."):
            from_mapping(SIZES | {"num_layer": 3})
        with self.assertRaisesRegex(UserError, "unknown config field 'zzzz'; the fields are vocab_size, "):
            from_mapping(SIZES | {"zzzz": 3})
        with self.assertRaisesRegex(UserError, "config lacks the field 'num_heads'"):
            from_mapping({name: value for name, value in SIZES.items() if name != "num_heads"})


class OverridesTest(unittest.TestCase):
    def test_read_by_declared_type(self):
        overrides = parse_overrides("num_layers=2,num_layers=4, dropout = 1e-1,norm_first=True,activation=relu")
        self.assertEqual(overrides, dict(num_layers=4, dropout=0.1, norm_first=True, activation="relu"))
        self.assertIs(parse_overrides("norm_first=0")["norm_first"], False)
        self.assertEqual(parse_overrides(""), {})

    def test_errors_name_the_flag_and_the_remedy(self):
        for assignment, message in (
            ("num_layers", "write FIELD=VALUE"),
            ("num_layer=4", "unknown config field 'num_layer' .did you mean num_layers"),
            ("num_layers=4.0", "num_layers takes a value of type int"),
            ("num_layers=", "num_layers takes a value of type int"),
            ("dropout=much", "dropout takes a value of type float"),
            ("norm_first=perhaps", "norm_first takes true or false"),
        ):
            with self.assertRaisesRegex(UserError, f"--overrides={assignment}: .*{message}"):
                parse_overrides(assignment)

    def test_every_choice_has_a_home(self):
        for name in config_lib.ACTIVATIONS:
            TransformerConfig(**SIZES, activation=name)
        for name in config_lib.POSITIONS:
            TransformerConfig(**SIZES, positions=name)


if __name__ == "__main__":
    unittest.main()
