"""Progress output on a terminal and on a pipe, and messages of libraries."""

import unittest

from tests import helpers
from tests.helpers import shown

CUINIT = (
    "E cuda_platform.cc:51] failed call to cuInit: INTERNAL: CUDA error: Failed call to cuInit: UNKNOWN ERROR (303)"
)


def run(code: str, terminal: bool, **environment) -> str:
    """Returns what a program writes to stderr."""
    status, _, err = helpers.Command("-c", code, terminal=terminal, **environment).finish()
    assert status == 0, err
    return err


class StageTest(unittest.TestCase):
    STAGES = """if True:
        import sys
        from tfzoo import progress
        with progress.stage("reading"):
            with progress.stage("looking up") as end:
                end()
                print("found", end="", file=sys.stderr)
                end()
        with progress.stage("closing") as end:
            end()
            print("done", end="", file=sys.stderr)
        try:
            with progress.stage("writing " + 100 * "x"):
                raise KeyError
        except KeyError:
            pass
        """

    def test_a_terminal_sees_stages_and_keeps_none(self):
        err = run(self.STAGES, terminal=True)
        # The last of 80 columns remains empty.
        long = ("writing " + 100 * "x")[:79]
        self.assertEqual(
            shown(err), ["reading ...", "looking up ...", "found", "reading ...", "closing ...", "done", long]
        )
        self.assertTrue(err.endswith("\r" + " " * 79 + "\r"))

    def test_a_pipe_does_not(self):
        self.assertEqual(run(self.STAGES, terminal=False), "founddone")

    def test_a_bar_is_for_terminals(self):
        code = """if True:
            from tfzoo import progress
            with progress.bar(2, "file", "reading") as bar:
                bar.update()
            with progress.bar(2, "file", "hidden", shown=False) as bar:
                bar.update()
            """
        err = run(code, terminal=True)
        self.assertIn("reading", err)
        self.assertIn("0/2", err)
        self.assertNotIn("hidden", err)
        self.assertEqual(run(code, terminal=False), "")

    def test_it_imports_the_standard_library_alone(self):
        code = """if True:
            import sys
            before = set(sys.modules)
            from tfzoo import progress
            new = {name.split(".")[0] for name in set(sys.modules) - before}
            assert new <= {*sys.stdlib_module_names, "tfzoo"}, new
            """
        self.assertEqual(run(code, terminal=False), "")


class QuietTest(unittest.TestCase):
    PRINTS = f"""if True:
        import os, sys, warnings
        from tfzoo import progress
        with progress.quiet():
            with progress.quiet():
                os.write(2, b"normalizer.cc(51) LOG(INFO) precompiled_charsmap is empty.\\n")
                os.write(2, b"{CUINIT}\\nF something.cc:1] Check failed\\n")
            print("of Python's own", file=sys.stderr)
        os.write(2, b"{CUINIT}\\n")
        try:
            with progress.quiet():
                raise ValueError("as it was")
        except ValueError as error:
            print(error, file=sys.stderr)
        """

    def test_what_is_harmless_is_left_out_and_all_else_follows(self):
        err = run(self.PRINTS, terminal=False)
        self.assertEqual(err, f"F something.cc:1] Check failed\nof Python's own\n{CUINIT}\nas it was\n")

    def test_whoever_asks_sees_everything(self):
        err = run(self.PRINTS, terminal=False, TF_CPP_MIN_LOG_LEVEL="0")
        self.assertEqual((err.count(CUINIT), err.count("LOG(INFO)")), (2, 1))

    def test_without_stderr(self):
        run("import os; os.close(2)\nfrom tfzoo import progress\nwith progress.quiet(): pass", terminal=False)
