import contextlib
import errno
import functools
import importlib
import importlib.util
import io
import os
import pathlib
import pickle
import re
import subprocess
import sys
import unittest
from unittest import mock

from absl import flags as absl_flags

from tests import helpers
from tfzoo import __main__ as commands
from tfzoo import cli, convert, corpus, generate, index, query, score, train
from tfzoo.errors import CheckFailed, UserError, WorkerLost
from tfzoo.export import __main__ as export


def define_flags(flags):
    absl_flags.DEFINE_integer("batch_size", 8, "How many.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_integer("steps", 100, "How long.", flag_values=flags)
    absl_flags.DEFINE_float("learning_rate", 1e-3, "How fast.", flag_values=flags)
    absl_flags.DEFINE_float("dropout", 0.1, "", lower_bound=0.0, upper_bound=1.0, flag_values=flags)
    absl_flags.DEFINE_float("warmup", None, "", lower_bound=0, upper_bound=0.5, flag_values=flags)
    absl_flags.DEFINE_enum("precision", "float32", ["float32", "bfloat16"], "", flag_values=flags)
    absl_flags.DEFINE_bool("resume", True, "Go on.", flag_values=flags)
    absl_flags.DEFINE_list("formats", ["onnx", "savedmodel"], "", flag_values=flags)
    absl_flags.DEFINE_multi_string("prompt", None, "", flag_values=flags)
    absl_flags.DEFINE_string("overrides", "", "", flag_values=flags)
    absl_flags.DEFINE_string("run_dir", None, "", flag_values=flags)
    cli.positive(flags, "learning_rate", "steps")


def expanded(arguments):
    return [argument for argument, _ in cli.expand_flagfiles(arguments)]


class Shell(unittest.TestCase):
    def setUp(self):
        self.folder = helpers.temporary_folder(self)
        self.enterContext(contextlib.chdir(self.folder))

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def run_main(self, *argv, main=lambda flags: None):
        """(exit code, stdout, stderr)."""
        return helpers.captured(lambda arguments: cli.run(main, define_flags, arguments), *argv)

    def parsed(self, *argv):
        flags = absl_flags.FlagValues()
        define_flags(flags)
        cli.parse(flags, argv)
        return flags

    def assert_error(self, line, *argv):
        code, out, err = self.run_main(*argv, main=lambda flags: self.fail("main was called"))
        self.assertEqual((code, out, err), (2, "", f"error: {line}\n"))


class ExitCodesTest(Shell):
    def raising(self, error):
        def main(flags):
            raise error

        return self.run_main(main=main)

    def test_what_main_returns_is_the_exit_code(self):
        self.assertEqual(self.run_main(), (0, "", ""))
        self.assertEqual(self.run_main(main=lambda flags: 3), (3, "", ""))

    def test_errors_of_use_and_failed_checks_are_one_line(self):
        self.assertEqual(self.raising(UserError("no\nvocab")), (2, "", "error: no\\nvocab\n"))
        self.assertEqual(self.raising(CheckFailed("NaN at step 3")), (4, "", "error: NaN at step 3\n"))
        self.assertEqual(self.raising(KeyboardInterrupt()), (130, "", "interrupted\n"))

    def test_control_characters_of_a_users_strings_are_shown_and_not_sent_to_the_terminal(self):
        def main(flags):
            cli.show("label \x1b[2J\u202e\r\tx\nnext \udcff \x9b é 語")
            raise error("a\nb \x1b]0;title\a")

        for error, code in ((UserError, 2), (CheckFailed, 4), (WorkerLost, 5)):
            found = self.run_main(main=main)
            table = r"label \x1b[2J\u202e\r\tx" + "\n" + r"next \udcff \x9b é 語" + "\n"
            self.assertEqual(found, (code, table, "error: " + r"a\nb \x1b]0;title\x07" + "\n"))
            again = pickle.loads(pickle.dumps(error("a\nb")))
            self.assertEqual((type(again), str(again)), (error, r"a\nb"))
            self.assertRegex(str(error("a" * 5000 + "; shorten it")), r"^a{750} \.\.\. a+; shorten it$")

    def test_what_the_file_system_refuses_is_not_a_bug_of_ours(self):
        missing = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
        for error, line in (
            (
                PermissionError(errno.EACCES, "Permission denied", "/a\n"),
                r"/a\n: permission denied; grant permission",
            ),
            (
                OSError(errno.ENOSPC, "No space left on device", "/b"),
                "/b: no space left on device; free some disk space",
            ),
            (missing, "no temporary folder can be written; set TMPDIR to a folder that can"),
        ):
            code, _, err = self.run_main(main=mock.Mock(side_effect=error, __doc__=""))
            self.assertEqual(code, 2)
            self.assertRegex(err, f"^error: {line}\n$")
        for error in (FileNotFoundError(errno.ENOENT, "No such file", "/c"), OSError("x")):
            code, _, err = self.run_main(main=mock.Mock(side_effect=error, __doc__=""))
            self.assertEqual((code, err.count("Traceback")), (1, 1))

    def test_a_bug_of_ours_shows_its_traceback(self):
        for error in (ValueError("oops"), BrokenPipeError("a socket's, not our output's")):
            code, _, err = self.raising(error)
            self.assertEqual(code, 1)
            self.assertIn("Traceback", err)
            self.assertIn(str(error), err)

    def test_main_gets_the_flags(self):
        def main(flags):
            print(flags.batch_size, flags.resume, flags.prompt)

        argv = ("--batch_size", "4", "--noresume", "-prompt=a", "--prompt=-b", "--batch_size=5")
        self.assertEqual(self.run_main(*argv, main=main), (0, "5 False ['a', '-b']\n", ""))
        self.assertNotIn("batch_size", absl_flags.FLAGS)

    def test_help_lists_this_programs_flags_only(self):
        for argv in (["--help"], ["--flagfile=missing", "--helpfull"], ["-h"]):
            code, page, err = self.run_main(*argv, main=lambda flags: self.fail("main was called"))
            self.assertEqual((code, err), (0, ""))
            self.assertIn("--batch_size=VALUE\n      How many. (at least 1; default 8)\n", page)
            self.assertIn("--[no]resume", page)
            self.assertIn("one of float32, bfloat16", page)
            self.assertNotIn("verbosity", page)


class HelpTest(unittest.TestCase):
    def pages(self):
        """The --help of every command and subcommand."""
        for name in commands.COMMANDS:
            package = importlib.util.find_spec(f"tfzoo.{name}")
            module = importlib.import_module(f"tfzoo.{name}" + ".__main__" * bool(package.submodule_search_locations))
            subcommands = module.COMMANDS if name == "corpus" else {"": (module.main, module.define_flags)}
            for main, define in subcommands.values():
                yield name, helpers.captured(functools.partial(cli.run, main, define), "--help")

    def test_pages_have_one_form(self):
        """Each heading occurs once, texts are sentences without absl's additions, and defaults are not escaped."""
        pages = {}
        for name, (code, page, err) in self.pages():
            pages[name] = page
            with self.subTest(command=name):
                self.assertEqual((code, err), (0, ""))
                headings = re.findall(r"^(\S.*):$", page, re.MULTILINE)
                self.assertEqual((headings.count("Flags"), headings[-1]), (1, "Flags"))
                self.assertEqual(len(headings), len({*headings}), headings)
                self.assertLessEqual(max(map(len, page.splitlines())), 120)
                self.assertNotIn("repeat this option", page)
                for text in re.findall(r"^  --.*\n((?:      .*\n)*)", page, re.MULTILINE):
                    self.assertRegex(" ".join(text.split()), r"^[^<].*\.( \((.*; )?(at |one of |from |default ).*\))?$")
        self.assertIn("The text between examples. (default \\n\\n)", pages["few_shot"])
        self.assertIn("(default savedmodel,onnx)", pages["export"])

    def test_the_list_of_commands(self):
        code, page, err = helpers.captured(commands.main)
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(page, r"python -m tfzoo\.serve +Serves SavedModels and ONNX artifacts")
        table = (helpers.ROOT / "docs" / "cli.md").read_text()
        for name in commands.COMMANDS:
            self.assertRegex(page, rf"python -m tfzoo\.{name} +[A-Z].*\.\n")
            self.assertIn(f"tfzoo.{name}`", table)
        for argument, line in (
            ("train", "train: write python -m tfzoo.train"),
            ("tfzoo.serve", "tfzoo.serve: write python -m tfzoo.serve"),
            ("trian", "trian: no such command (did you mean train?)"),
            ("zzz", "zzz: no such command; python -m tfzoo lists the commands"),
        ):
            self.assertEqual(helpers.captured(commands.main, argument), (2, "", f"error: {line}\n"))


class WrongFlagsTest(Shell):
    def test_unknown(self):
        self.assert_error("--batchsize=4: no such flag (did you mean --batch_size?)", "--batchsize=4")
        self.assert_error("--noresum: no such flag (did you mean --noresume?)", "--noresum")
        self.assert_error("--zzz: no such flag; --help lists all flags", "--zzz")
        self.assert_error("--undefok=zzz: no such flag; --help lists all flags", "--undefok=zzz", "--zzz")

    def test_out_of_bounds(self):
        self.assert_error("--batch_size=-3: must be at least 1", "--batch_size=-3")
        self.assert_error("--batch_size=0: must be at least 1", "--batch_size", "0")
        self.assert_error("--dropout=1.5: must be from 0.0 to 1.0", "--dropout=1.5")
        self.assert_error("--steps=0: must be at least 1", "--steps=0")
        self.assert_error("--learning_rate=-0.1: must be greater than 0", "--learning_rate=-0.1")
        self.assert_error("--warmup=0.75: must be from 0 to 0.5", "--warmup=0.75")
        self.assert_error("--dropout=nan: must be a finite number", "--dropout=nan")
        self.assert_error("--learning_rate=1e999: must be a finite number", "--learning_rate=1e999")

    def test_every_numeric_flag_of_every_program_at_its_extremes(self):
        huge = ("9" * 400, "-" + "9" * 400, "1e308", "-1e308", "1e999", "nan", "inf", "")
        checked = set()
        for path in sorted(helpers.ROOT.glob("tfzoo/**/*.py")):
            if "absl_flags.FlagValues" not in path.read_text() or path.stem == "options":
                continue
            program = ".".join(path.relative_to(helpers.ROOT).with_suffix("").parts)
            module = importlib.import_module(program)
            for define in (value for name, value in vars(module).items() if re.fullmatch(r"define_(\w+_)?flags", name)):
                flags = absl_flags.FlagValues()
                define(flags)
                for name in flags:
                    if not isinstance(flags[name].parser, absl_flags.IntegerParser | absl_flags.FloatParser):
                        continue
                    checked.add((program, name))
                    is_integer = isinstance(flags[name].parser, absl_flags.IntegerParser)
                    for text in (*huge, *(("2147483648", "-2147483648", "1.5") if is_integer else ())):
                        with self.assertRaisesRegex(UserError, f"^--{name}={text}: must be"):
                            cli.parse(flags, [f"--{name}={text}"])
        self.assertGreater(len({program for program, _ in checked}), 10)
        self.assertGreater(len(checked), 200)

    def test_of_another_type(self):
        self.assert_error("--batch_size=many: must be a whole number", "--batch_size=many")
        self.assert_error("--batch_size=2.5: must be a whole number", "--batch_size=2.5")
        self.assert_error("--dropout=: must be a number", "--dropout=")
        self.assert_error("--resume=maybe: must be true or false", "--resume=maybe")
        self.assert_error("--noresume=true: write --noresume, or --resume=true", "--noresume=true")
        self.assert_error(
            "--precision=float: must be one of float32, bfloat16 (did you mean float32?)", "--precision=float"
        )

    def test_without_value(self):
        self.assert_error("--batch_size: needs a value; write --batch_size=VALUE", "--batch_size")
        self.assert_error("--run_dir: needs a value; write --run_dir=VALUE", "--run_dir", "--steps=3")

    def test_an_empty_path_is_not_the_working_directory(self):
        self.assert_error("--run_dir=: is empty; specify a path", "--run_dir=")
        self.assert_error("--run_dir=: is empty; specify a path", "--run_dir", "")
        self.write("a.cfg", "--steps=3\n--run_dir=\n")
        self.assert_error("a.cfg:2: --run_dir=: is empty; specify a path", "--flagfile=a.cfg")
        for define, names in (
            (train.define_flags, ["run_dir"]),
            (convert.define_flags, ["from", "to"]),
            (export.define_flags, ["model_dir", "output_dir"]),
            (corpus.define_pack_flags, ["output_dir"]),
            (corpus.define_vocabulary_flags, ["output_dir"]),
            (generate.define_flags, ["model_dir", "output"]),
            (score.define_flags, ["model_dir", "output"]),
            (index.define_flags, ["model_dir", "output_dir"]),
            (query.define_flags, ["index_dir", "model_dir", "output"]),
        ):
            for name in names:
                flags = absl_flags.FlagValues()
                define(flags)
                with self.assertRaisesRegex(UserError, f"^--{name}=: is empty; specify a path$"):
                    cli.parse(flags, [f"--{name}="])

    def test_positional(self):
        hint = "unexpected argument; write flags as --name=value"
        self.assert_error(f"'runs/a': {hint}", "--steps=3", "runs/a")
        self.assert_error(f"'true': {hint}", "--resume", "true")
        self.assert_error(f"'--': {hint}", "--", "--steps=3")
        self.assert_error(f"'': {hint}", "")

    def test_required(self):
        def define(flags):
            define_flags(flags)
            absl_flags.mark_flag_as_required("run_dir", flag_values=flags)

        with contextlib.redirect_stderr(io.StringIO()) as err:
            self.assertEqual(cli.run(lambda flags: None, define, []), 2)
        self.assertEqual(err.getvalue(), "error: --run_dir is required: add --run_dir=VALUE\n")

    def test_a_value_that_holds_line_breaks_still_gives_one_line(self):
        self.assert_error(r"--steps=a\nb\x1b: must be a whole number", "--steps=a\nb\x1b")


class FlagfileTest(Shell):
    def test_flags_comments_and_blank_lines(self):
        self.write(
            "a.cfg",
            "\ufeff# Reaches nothing.\r\n\r\n--batch_size=256  # fits 80 GB in bfloat16\r\n"
            "  --noresume\t# why\n"
            '--prompt=a #b\n--prompt="c  # d"  # quoted\n--prompt="e",f\n--prompt=  # empty\n--run_dir=x=y',
        )
        prompts = ["--prompt=a #b", "--prompt=c  # d", '--prompt="e",f', "--prompt="]
        flags = ["--batch_size=256", "--noresume", *prompts, "--run_dir=x=y"]
        self.assertEqual(expanded(["--flagfile=a.cfg"]), flags)
        self.assertEqual(expanded(["-flagfile", "a.cfg", "x"]), [*flags, "x"])

    def test_later_flags_win(self):
        self.write("base.cfg", "--steps=1\n--batch_size=1\n--dropout=0.5")
        self.write("a.cfg", "--flagfile=base.cfg\n--steps=2\n--batch_size=2")
        flags = self.parsed("--dropout=0.25", "--flagfile=a.cfg", "--steps=3")
        self.assertEqual((flags.steps, flags.batch_size, flags.dropout), (3, 2, 0.5))

    def test_a_nested_flagfile_is_found_beside_the_one_that_names_it(self):
        self.write("configs/base.cfg", "--steps=7")
        self.write("configs/deep/a.cfg", "--flagfile=../base.cfg")
        self.write("base.cfg", "--steps=8")
        self.assertEqual(self.parsed("--flagfile=configs/deep/a.cfg").steps, 7)
        self.assertEqual(self.parsed("--flagfile=base.cfg").steps, 8)

    def test_twice_is_not_circular(self):
        self.write("base.cfg", "--steps=7")
        self.write("a.cfg", "--flagfile=base.cfg\n--flagfile=base.cfg")
        self.assertEqual(expanded(["--flagfile=a.cfg"]), ["--steps=7", "--steps=7"])

    def test_wrong_flags_name_the_file_and_the_line(self):
        self.write("a.cfg", "\n--batchsize=4\n")
        self.assert_error("a.cfg:2: --batchsize=4: no such flag (did you mean --batch_size?)", "--flagfile=a.cfg")
        self.write("a.cfg", "# first\n\n--steps=-4")
        self.assert_error("a.cfg:3: --steps=-4: must be at least 1", "--flagfile=a.cfg")
        self.write("a.cfg", "--batch_size=0")
        self.assert_error("a.cfg:1: --batch_size=0: must be at least 1", "--flagfile=a.cfg")
        self.write("a.cfg", "--run_dir\n--steps=3")
        self.assert_error("a.cfg:1: --run_dir: needs a value; write --run_dir=VALUE", "--flagfile=a.cfg", "x")

    def test_lines_that_are_no_flags(self):
        for line in ("steps=3", "--steps 3", "--", "-- steps=3", "--=3", "// why"):
            self.write("a.cfg", f"--steps=2\n{line}\n")
            self.assert_error(f"a.cfg:2: {line}: is not a flag; write one --name=value per line", "--flagfile=a.cfg")

    def test_circular(self):
        self.write("a.cfg", "--flagfile=a.cfg")
        self.assert_error(
            "a.cfg:1: --flagfile=a.cfg: circular: a.cfg -> a.cfg; remove one of these lines",
            "--flagfile=a.cfg",
        )
        self.write("start.cfg", "--flagfile=x/b.cfg")
        self.write("x/b.cfg", "--steps=3\n--flagfile=c.cfg")
        self.write("x/c.cfg", "--flagfile=b.cfg")
        self.assert_error(
            "x/c.cfg:1: --flagfile=b.cfg: circular: x/b.cfg -> x/c.cfg -> x/b.cfg; remove one of these lines",
            "--flagfile=start.cfg",
        )

    def test_too_deep(self):
        for depth in range(17):
            self.write(f"{depth}.cfg", f"--flagfile={depth + 1}.cfg")
        self.write("15.cfg", "--steps=7")
        self.assertEqual(self.parsed("--flagfile=0.cfg").steps, 7)
        self.write("15.cfg", "--flagfile=16.cfg")
        self.assert_error(
            "15.cfg:1: --flagfile=16.cfg: flagfiles are nested more than 16 levels deep; flatten them",
            "--flagfile=0.cfg",
        )

    def test_unreadable(self):
        beside = "the path is relative to the folder of x/a.cfg"
        self.write("x/a.cfg", "\n--flagfile=b.cfg")
        self.assert_error(f"x/a.cfg:2: --flagfile=b.cfg: no such file or directory; {beside}", "--flagfile=x/a.cfg")
        self.assert_error("--flagfile=b.cfg: no such file or directory; check the path", "--flagfile", "b.cfg")
        self.assert_error("--flagfile=x: is a directory; check the path", "--flagfile=x")
        self.assert_error("--flagfile=: is a directory; check the path", "--flagfile=")
        self.assert_error("--flagfile needs a path: write --flagfile=PATH", "--flagfile")
        self.write("b.cfg", b"--steps=3\n\xff")
        self.assert_error("--flagfile=b.cfg: not UTF-8 at byte 10; save it as UTF-8 text", "--flagfile=b.cfg")


class WriteFlagsTest(Shell):
    def test_running_with_the_written_file_repeats_every_value(self):
        values = [
            "a b",
            " a ",
            "a  # b",
            "a #b",
            "#a",
            "a,b",
            '"',
            '"a"',
            '"a" b',
            "a\tb",
            "",
            "=",
            "ä\\n",
            "a\r",
        ]
        first = self.parsed(
            *(f"--prompt={value}" for value in values),
            *('--formats="x,y", z,"q"', "--learning_rate=0.1234567890123", "--noresume", "--warmup=0"),
            *("--overrides=num_layers=4,  #x", "--run_dir=here"),
        )
        self.assertEqual(first.prompt, values)
        cli.write_flags(first, "flags.cfg")
        second = self.parsed("--flagfile=flags.cfg")
        for name in set(first) - {"run_dir"}:
            self.assertEqual(first[name].value, second[name].value, name)
        self.assertIsNone(second.run_dir)
        cli.write_flags(second, "again.cfg")
        self.assertEqual(pathlib.Path("again.cfg").read_bytes(), pathlib.Path("flags.cfg").read_bytes())

    def test_defaults_are_written_sorted_and_none_is_not(self):
        cli.write_flags(self.parsed("--run_dir=here", "--formats="), "flags.cfg", leave_out=["run_dir", "steps"])
        lines = pathlib.Path("flags.cfg").read_text().splitlines()
        expected = ["--batch_size=8", "--dropout=0.1", "--formats=", "--learning_rate=0.001", "--overrides="]
        self.assertEqual(lines[1:], [*expected, "--precision=float32", "--resume"])

    def test_line_breaks_are_refused(self):
        for flag in ("--overrides=a\nb", "--prompt=a\nb", '--formats=x,"a\nb"', "--overrides=\udcff"):
            with self.assertRaisesRegex(UserError, "(?s)--(overrides|prompt|formats)=.*cannot contain"):
                cli.write_flags(self.parsed(flag), "flags.cfg")
        self.assertFalse(os.path.exists("flags.cfg"))

    def test_explicit_flags(self):
        self.write("a.cfg", "--batch_size=8")
        flags = self.parsed("--flagfile=a.cfg", "--noresume")
        self.assertEqual(cli.explicit_flags(flags), {"batch_size": 8, "resume": False})


class SuggestTest(unittest.TestCase):
    def test_suggest(self):
        self.assertEqual(cli.suggest("bert_smal", ["bert_tiny", "bert_small"]), " (did you mean bert_small?)")
        self.assertEqual(cli.suggest("gpt", ["bert_tiny"]), "")


PROGRAM = """
import sys
from tfzoo import cli

def main(flags):
    assert not {"tensorflow", "keras", "numpy"} & set(sys.modules)
    for line in range(100000):
        print(line)

if __name__ == "__main__":
    sys.exit(cli.run(main, lambda flags: None))
"""


class ProcessTest(Shell):
    def test_exit_codes_reach_the_shell(self):
        program = self.write("program.py", PROGRAM)
        root = pathlib.Path(cli.__file__).parents[1]
        command = f"'{sys.executable}' '{program}'"
        script = f"{command} --stepps=3; echo $?; set -o pipefail; {command} | head -n 1; echo $?"
        done = subprocess.run(
            ["bash", "-c", script],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        self.assertEqual(done.stdout, "2\n0\n141\n")
        self.assertEqual(done.stderr, "error: --stepps=3: no such flag; --help lists all flags\n")


if __name__ == "__main__":
    unittest.main()
