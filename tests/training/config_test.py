"""TrainConfig: its options as attributes, as flags and in a flagfile."""

import dataclasses
import pathlib
import tempfile
import unittest
import unittest.mock

from absl import flags as absl_flags

from tests import helpers
from tfzoo import cli, options
from tfzoo.errors import UserError
from tfzoo.objectives import causal, masked_lm
from tfzoo.options import Checked, option
from tfzoo.training import inputs, registry, resume
from tfzoo.training.config import TrainConfig


def parsed(*arguments):
    flags = absl_flags.FlagValues()
    TrainConfig.define_flags(flags)
    cli.parse(flags, ["--run_dir=here", *arguments])
    return TrainConfig.from_flags(flags)


class TrainConfigTest(unittest.TestCase):
    def test_it_imports_without_tensorflow(self):
        code = "import sys; from tfzoo.training import TrainConfig; TrainConfig(run_dir='x'); "
        code += "sys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
        helpers.python("-c", code)

    def test_defaults_are_those_of_the_flags(self):
        self.assertEqual(parsed(), TrainConfig(run_dir="here"))
        self.assertEqual(TrainConfig(run_dir="here").objective_options, masked_lm.Options())

    def test_flags_of_the_objective_go_to_its_options(self):
        config = parsed("--objective=causal", "--nopack", "--mask_rate=0.3", "--overrides=a=1", "--overrides=b=2")
        self.assertEqual(config.objective_options, causal.Causal.Options(pack=False))
        self.assertEqual(config.overrides, ("a=1", "b=2"))
        self.assertNotIn("mask_rate", config.values())

    def test_what_is_wrong(self):
        for pattern, values in (
            ("steps=0: must be at least 1", dict(steps=0)),
            ("steps=1.5: must be a whole number", dict(steps=1.5)),
            ("steps=True: must be a whole number", dict(steps=True)),
            ("learning_rate=nan: must be a finite number", dict(learning_rate=float("nan"))),
            ("beta_1=1: must be from 0.0 to 0.9999", dict(beta_1=1)),
            (r"optimizer=adamv: must be one of adamw, .* \(did you mean adamw\?\)", dict(optimizer="adamv")),
            ("overrides=a=1: must be a tuple of strings", dict(overrides="a=1")),
            ("corpus=3: must be a string", dict(corpus=3)),
            ("pack=1: must be true or false", dict(pack=1)),
            ("mask_rate=0.95: must be from 0.01 to 0.9", dict(mask_rate=0.95)),
            ("mean_span: is not an option of the objective masked_lm", dict(mean_span=2.0)),
        ):
            with self.subTest(**values), self.assertRaisesRegex(UserError, f"^{pattern}$"):
                TrainConfig(run_dir="here").replace(**values)
        with self.assertRaisesRegex(UserError, "must be an instance of the Options of the objective causal"):
            TrainConfig(run_dir="here", objective="causal", objective_options=masked_lm.Options())
        with self.assertRaises(dataclasses.FrozenInstanceError):
            TrainConfig(run_dir="here").steps = 3

    def test_every_numeric_flag_at_its_extremes(self):
        flags = absl_flags.FlagValues()
        TrainConfig.define_flags(flags)
        numeric = [name for name in flags if isinstance(flags[name].parser, absl_flags.IntegerParser)]
        floats = [name for name in flags if isinstance(flags[name].parser, absl_flags.FloatParser)]
        self.assertGreater(min(len(numeric), len(floats)), 20)
        huge = ("9" * 400, "-" + "9" * 400, "1e308", "-1e308", "1e999", "-1e999", "nan", "inf", "-inf", "")
        for name in numeric + floats:
            for text in (*huge, *(("2147483648", "-2147483649", "1.5") if name in numeric else ())):
                with self.subTest(name, text=text), self.assertRaisesRegex(UserError, f"^--{name}={text}: must be"):
                    cli.parse(flags, ["--run_dir=here", f"--{name}={text}"])
        for text in ("2147483648", "1e39"):
            with self.assertRaisesRegex(UserError, "must be from 1 to 2147483647$|must be a whole number$"):
                cli.parse(flags, ["--run_dir=here", f"--steps={text}"])
        with self.assertRaisesRegex(UserError, r"learning_rate=1e\+39: must be from 0.0 to 3e\+38"):
            TrainConfig(run_dir="here", learning_rate=1e39)
        with self.assertRaisesRegex(UserError, "^--batch_size=1000000: times --sequence_length=1000000 is more than"):
            TrainConfig(run_dir="here", batch_size=1_000_000, sequence_length=1_000_000)
        with self.assertRaisesRegex(UserError, "vocab_size=2000000: must be from 100 to 1000000"):
            TrainConfig(run_dir="here", vocab_size=2_000_000)

    def test_replace_and_given(self):
        config = TrainConfig(run_dir="here").replace(steps=5, mask_unit="word")
        self.assertEqual((config.steps, config.objective_options), (5, masked_lm.Options(mask_unit="word")))
        self.assertEqual(config.given(), {"steps": 5, "mask_unit": "word"})
        other = config.replace(objective="causal", pack=False)
        self.assertEqual(other.given(), {"steps": 5, "objective": "causal", "pack": False})

    def test_a_task_has_a_learning_rate_of_its_own(self):
        for rate, arguments in (
            (1e-3, []),
            (1e-3, ["--task=classify"]),
            (1e-4, ["--task=classify", "--init_from=x"]),
            (2e-5, ["--task=similarity", "--init_from=x"]),
            (1e-4, ["--task=similarity", "--init_from=x", "--similarity_loss=mse"]),
            (3e-4, ["--task=similarity", "--init_from=x", "--learning_rate=3e-4"]),
        ):
            self.assertEqual(parsed(*arguments).learning_rate, rate, arguments)

    def test_a_flagfile_repeats_it(self):
        config = parsed("--objective=span_corruption", "--mean_span=2.5", "--overrides=x=1,y=2", "--learning_rate=0.1")
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "flags.cfg"
            config.write(path)
            self.assertEqual(TrainConfig.read(path, "here"), config)
            self.assertNotIn("run_dir", path.read_text())
            # On the command line, --objective contradicts --task.
            for arguments, has in (([], True), (["--task=classify", "--train_file=x"], False)):
                parsed(*arguments).write(path)
                self.assertEqual("\n--objective=" in path.read_text(), has)
                self.assertEqual(TrainConfig.read(path, "here"), parsed(*arguments))

    def test_a_run_of_another_objective_is_refused_by_the_flags_that_both_have(self):
        with tempfile.TemporaryDirectory() as folder:
            TrainConfig(run_dir=folder).write(pathlib.Path(folder) / "flags.cfg")
            with self.assertRaisesRegex(UserError, r"different flags: --objective \(masked_lm -> causal\); keep"):
                resume.check_run_dir(TrainConfig(run_dir=folder, objective="causal", steps=5000))

    def test_a_folder_that_is_not_a_model(self):
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(run_dir="here", init_from=folder)
            with self.assertRaisesRegex(UserError, f"--init_from={folder}: contains no config.json; specify a run"):
                inputs.read_model_config(config)

    def test_help_has_headings_and_the_common_flags_first(self):
        page = helpers.python("-m", "tfzoo.train", "--help").stdout
        headings = [line for line in page.splitlines() if line.endswith(":") and not line.startswith(" ")]
        self.assertEqual(len(headings), len(set(headings)))
        self.assertEqual(headings[:3], ["Common options:", "Objective:", "Fine-tuning (docs/finetuning.md):"])
        self.assertLess(page.index("--run_dir=VALUE"), page.index("--corpus=VALUE"))
        self.assertRegex(page, r"masked_lm,[\w,\s]* span_corruption: Fraction of the tokens to mask")


class RegistryTest(unittest.TestCase):
    def test_a_page_declares_all_that_the_protocol_asks_for(self):
        for name, cls in registry.every():
            with self.subTest(name):
                self.assertEqual(cls.name, name)
                self.assertIn(cls.best_metric[1], ("min", "max"))
                self.assertTrue(issubclass(cls.Options, Checked) and dataclasses.is_dataclass(cls.Options))
                self.assertEqual(len(cls.FIGURES[0]), 3)
                if cls.PACKED is not None:
                    self.assertLessEqual(set(cls.PACKED), set(options.names_with(cls.Options, "decides_rows")))

    def test_one_option_has_one_declaration(self):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Other(Checked):
            mask_rate: float = option(0.5, "Something else.")

        class Page(masked_lm.MaskedLM):
            Options = Other

        with unittest.mock.patch.object(registry, "every", lambda: [("a", masked_lm.MaskedLM), ("b", Page)]):
            with self.assertRaisesRegex(ValueError, "--mask_rate: .* declare it differently"):
                registry.define_flags(absl_flags.FlagValues())


if __name__ == "__main__":
    unittest.main()
