"""Model configs: bounds, types and overrides; each error names the field. Does not need TensorFlow."""

import dataclasses
import json
import unittest

from tfzoo.config import TransformerConfig, from_mapping, parse_overrides
from tfzoo.errors import UserError

SIZES = dict(vocab_size=100, hidden_size=12, num_layers=2, num_heads=3, intermediate_size=24)
BOUNDS = {
    "vocab_size": (1, 10_000_000),
    "hidden_size": (1, 1_000_000),
    "embedding_size": (0, 1_000_000),
    "num_layers": (1, 2_000),
    "num_decoder_layers": (0, 2_000),
    "num_heads": (1, 100_000),
    "num_kv_heads": (0, 100_000),
    "head_dim": (0, 100_000),
    "intermediate_size": (1, 10_000_000),
    "max_positions": (1, 100_000_000),
    "position_offset": (0, 1_000),
    "num_segments": (0, 10_000),
    "num_features": (1, 1_000_000),
    "relative_buckets": (2, 100_000),
    "relative_distance": (2, 1_000_000),
    "window": (0, 100_000_000),
}


class TransformerConfigTest(unittest.TestCase):
    def refused(self, message, **overrides):
        with self.assertRaisesRegex(UserError, message):
            TransformerConfig(**SIZES | overrides)

    def test_values_out_of_bounds_are_named(self):
        for name, (low, high) in BOUNDS.items():
            for value in (low - 1, high + 1, -(10**30), 10**30):
                self.refused(rf"^{name} \({value}\) must be from {low:,} to {high:,}$", **{name: value})
        self.assertEqual(TransformerConfig(**SIZES | dict(num_segments=10_000)).num_segments, 10_000)
        for name in ("dropout", "attention_dropout"):
            for value in (-0.1, 1, 1.0, 2.5, float("nan")):
                self.refused(rf"{name} \({value}\) must be at least 0 and below 1", **{name: value})
        for name in ("norm_epsilon", "initializer_range", "rotary_theta"):
            for value in (0, -1e-3, float("inf"), float("nan")):
                self.refused(rf"{name} \(.*\) must be above 0", **{name: value})
        self.refused("activation .'swish'. must be one of gelu, gelu_tanh, relu, silu", activation="swish")
        self.refused("positions .'rotatory'. must be one of learned, sinusoidal", positions="rotatory")
        self.refused("attention .'flash'. must be one of full, lean, favor", attention="flash")
        self.refused("biases .'some'. must be one of all, qkv, none", biases="some")
        self.refused("norm .'batch'. must be one of layer, rms", norm="batch")
        self.refused("position_initializer .'zeros'. must be one of normal, ", position_initializer="zeros")
        self.refused("initializer .'xavier'. must be one of normal, scaled_residual, fan_in", initializer="xavier")
        self.refused(r"hidden_size \(10\) must be a multiple of num_heads \(3\)", hidden_size=10)
        for choice in (dict(positions="sinusoidal"), dict(positions="sinusoidal_concat")):
            self.refused(r"hidden_size \(9\) must be even", hidden_size=9, **choice)
            self.refused(r"embedding_size \(5\) must be even", embedding_size=5, **choice)
            TransformerConfig(**SIZES | dict(hidden_size=9, embedding_size=4) | choice)
        self.refused(r"hidden_size \(9\) must be even", hidden_size=9, position_initializer="sinusoidal")
        self.refused("positions .'learned'. must be relative for position_init", position_initializer="near")

    def test_heads(self):
        TransformerConfig(**SIZES | dict(hidden_size=10, head_dim=8))  # An explicit head_dim allows any size.
        self.refused(r"num_heads \(3\) must be a multiple of num_kv_heads \(2\)", num_kv_heads=2)
        self.assertEqual(TransformerConfig(**SIZES, num_kv_heads=1).num_kv_heads, 1)
        self.refused(r"head_dim \(5\) must be even for rotary positions", head_dim=5, positions="rotary")
        self.refused(r"head_dim \(3\) must be even for rotary positions", hidden_size=9, positions="rotary")

    def test_parallel_blocks_normalise_first(self):
        self.refused(r"norm_first \(False\) must be true with parallel_blocks", parallel_blocks=True)
        self.assertTrue(TransformerConfig(**SIZES, parallel_blocks=True, norm_first=True).parallel_blocks)

    def test_types_are_strict(self):
        self.refused(r"num_layers \(2.0\) must be of type int", num_layers=2.0)
        self.refused(r"num_layers \(True\) must be of type int", num_layers=True)
        self.refused(r"dropout \(False\) must be of type float", dropout=False)
        self.refused(r"dropout \('0.1'\) must be of type float", dropout="0.1")
        self.refused(r"norm_first \(1\) must be of type bool", norm_first=1)
        self.refused(r"rotary_scaling \('linear'\) must be of type dict", rotary_scaling="linear")
        self.assertEqual(TransformerConfig(**SIZES, dropout=0).dropout, 0)

    def test_frozen_and_its_json_reads_back(self):
        config = TransformerConfig(**SIZES, dropout=0.25, norm_first=True)
        self.assertEqual(config.head_dim, 0)
        self.assertEqual(from_mapping(json.loads(json.dumps(dataclasses.asdict(config)))), config)
        with self.assertRaises(dataclasses.FrozenInstanceError):
            config.dropout = 0.0  # type: ignore[misc]

    def test_scalings_are_not_shared(self):
        one, two = TransformerConfig(**SIZES), TransformerConfig(**SIZES)
        self.assertEqual(one.rotary_scaling, {})
        self.assertIsNot(one.rotary_scaling, two.rotary_scaling)
        scaled = TransformerConfig(**SIZES, rotary_scaling={"rope_type": "linear", "factor": 2.0})
        self.assertEqual(from_mapping(json.loads(json.dumps(dataclasses.asdict(scaled)))), scaled)

    def test_from_mapping_names_unknown_and_missing_fields(self):
        with self.assertRaisesRegex(UserError, "unknown config field 'num_layer' .did you mean num_layers.."):
            from_mapping(SIZES | {"num_layer": 3})
        with self.assertRaisesRegex(UserError, "unknown config field 'zzzz'; the available fields are vocab_size, "):
            from_mapping(SIZES | {"zzzz": 3})
        with self.assertRaisesRegex(UserError, "config field 'num_heads' is missing"):
            from_mapping({name: value for name, value in SIZES.items() if name != "num_heads"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lists(TransformerConfig):
    axial_shape: list = dataclasses.field(default_factory=list)
    attention_layers: list = dataclasses.field(default_factory=list)
    num_buckets: list = dataclasses.field(default_factory=list)


class OverridesTest(unittest.TestCase):
    def test_read_by_declared_type(self):
        overrides = parse_overrides("num_layers=2,num_layers=4, dropout = 1e-1,norm_first=True,activation=relu")
        self.assertEqual(overrides, dict(num_layers=4, dropout=0.1, norm_first=True, activation="relu"))
        self.assertIs(parse_overrides("norm_first=0")["norm_first"], False)
        lists = parse_overrides("axial_shape=8:16,attention_layers=local:lsh,num_buckets=", Lists)
        self.assertEqual(lists, dict(axial_shape=[8, 16], attention_layers=["local", "lsh"], num_buckets=[]))
        self.assertEqual(parse_overrides(""), {})

    def test_errors_name_the_flag_and_the_remedy(self):
        for assignment, message in (
            ("num_layers", "write FIELD=VALUE"),
            ("num_layer=4", "unknown config field 'num_layer' .did you mean num_layers"),
            ("num_layers=4.0", "num_layers must be a value of type int"),
            ("num_layers=", "num_layers must be a value of type int"),
            ("dropout=much", "dropout must be a value of type float"),
            ("norm_first=perhaps", "norm_first must be true or false"),
        ):
            with self.assertRaisesRegex(UserError, f"--overrides={assignment}: .*{message}"):
                parse_overrides(assignment)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other(TransformerConfig):
    positions: str = "none"
    num_rounds: int = 2


class SubclassTest(unittest.TestCase):
    def test_has_its_own_fields_and_defaults(self):
        config = from_mapping(SIZES | {"num_rounds": 4}, Other)
        self.assertIsInstance(config, Other)
        self.assertEqual((config.positions, config.num_rounds, config.hidden_size), ("none", 4, 12))
        self.assertEqual(from_mapping(json.loads(json.dumps(dataclasses.asdict(config))), Other), config)
        self.assertEqual(parse_overrides("num_rounds=3,num_layers=1", Other), dict(num_rounds=3, num_layers=1))

    def test_is_as_strict(self):
        with self.assertRaisesRegex(UserError, r"num_rounds \('2'\) must be of type int"):
            Other(**SIZES, num_rounds="2")
        with self.assertRaisesRegex(UserError, r"dropout \(2\) must be at least 0 and below 1"):
            Other(**SIZES, dropout=2)
        with self.assertRaisesRegex(UserError, "unknown config field 'num_round' .did you mean num_rounds"):
            from_mapping(SIZES | {"num_round": 4}, Other)
        with self.assertRaisesRegex(UserError, "unknown config field 'num_rounds'"):
            from_mapping(SIZES | {"num_rounds": 4})


if __name__ == "__main__":
    unittest.main()
