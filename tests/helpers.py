"""What tests of several files need: folders, commands run here or in a fresh interpreter, tokenizers and models.

Imports no TensorFlow, for the sake of tests that need none.
"""

import contextlib
import io
import os
import pathlib
import pty
import re
import subprocess
import sys
import tempfile
import termios
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATIENCE = 1800  # Seconds that tests wait for what must end: only what hangs takes so long, on any machine.


def temporary_folder(test: unittest.TestCase | type[unittest.TestCase]) -> pathlib.Path:
    """A folder that goes when the test ends, or, where a class is given, when its last test has ended."""
    enter = test.enterContext if isinstance(test, unittest.TestCase) else test.enterClassContext
    return pathlib.Path(enter(tempfile.TemporaryDirectory())).resolve()


def captured(function, *argv, stdin: str = "") -> tuple[int, str, str]:
    """(what `function` returns for these arguments as a list of strings, what it prints on stdout, and on stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
    ):
        code = function([str(argument) for argument in argv])
    return code, out.getvalue(), err.getvalue()


def run(program, *argv, stdin: str = "") -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of an entry point, such as tfzoo.train, run in this process."""
    from tfzoo import cli

    return captured(lambda arguments: cli.run(program.main, program.define_flags, arguments), *argv, stdin=stdin)


def python(*arguments, cwd: pathlib.Path = ROOT, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter's run with these arguments; at the root it can import tfzoo and tests, elsewhere neither.

    Raises:
      AssertionError: with `check`, where its exit code is not 0; it shows the end of stderr.
    """
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert not check or done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-3000:]}"
    return done


class Command:
    """A program whose stderr is a terminal, or a pipe."""

    def __init__(self, *argv, terminal: bool, **environment):
        self.parent, child = pty.openpty() if terminal else os.pipe()
        if terminal:
            termios.tcsetwinsize(child, (24, 80))
        others = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
        self.process = subprocess.Popen(
            [sys.executable, *argv], cwd=ROOT, env=others | environment, stdout=subprocess.PIPE, stderr=child
        )
        os.close(child)

    def finish(self) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        written = b""
        try:
            while part := os.read(self.parent, 1 << 16):
                written += part
        except OSError:  # How a terminal ends.
            pass
        os.close(self.parent)
        out, _ = self.process.communicate()
        return self.process.returncode, out.decode(), written.decode()


def shown(err: str) -> list[str]:
    """What a terminal's line showed, one text after another."""
    return [text for text in re.split(r"[\r\n]+", err) if text.strip()]


def printed_in_every_process(script: str) -> str:
    """What a script prints, whatever the hashes of strings are, and `sys.argv[1]`, which it shuffles its texts by."""
    printed = {python("-c", script, seed, PYTHONHASHSEED=str(seed)).stdout for seed in range(3)}
    assert len(printed) == 1, printed
    return printed.pop()


def byte_tokenizer(special, **roles: str):
    """Special tokens and a token for each byte: every character beyond ASCII is cut apart."""
    from tfzoo.text.byte_level import ByteLevelBPE
    from tfzoo.text.byte_level_model import BYTES

    return ByteLevelBPE([*special, *BYTES], [], special_tokens=special, roles=roles)


def noisy_model(name: str, seed: int = 0, noise: float = 0.4, **overrides):
    """A model of these sizes whose every weight is random; what it draws itself stays."""
    import numpy as np

    import tfzoo
    from tfzoo.weights import table

    model = tfzoo.build(name, **overrides)
    random = np.random.default_rng(seed)
    for variable in model.variables:
        if not table.is_state(variable):
            variable.assign_add(random.normal(0, noise, variable.shape))
    if model.config.positions == "relative":  # T5's output is its embeddings: a strong one would be followed by itself.
        model.tokens.embeddings.assign(0.1 * model.tokens.embeddings)
    return model


@contextlib.contextmanager
def op_by_op():
    """Decoding without a graph, whose making takes longer than what tests have it do."""
    import importlib

    module = importlib.import_module("tfzoo.generation.decode")  # The package has a function of this name.
    with mock.patch.object(module, "_compiled", module._function):
        yield
