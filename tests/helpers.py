"""Helpers for several test files: folders, commands run in this or a new process, tokenizers and models.

Importing this module does not import TensorFlow, so that tests without TensorFlow start fast.
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
PATIENCE = 1800  # Timeout in seconds for something that must end; only a hang takes this long, on any machine.


def temporary_folder(test: unittest.TestCase | type[unittest.TestCase]) -> pathlib.Path:
    """Returns a folder that is deleted when the test ends or, for a class, when its last test has ended."""
    enter = test.enterContext if isinstance(test, unittest.TestCase) else test.enterClassContext
    return pathlib.Path(enter(tempfile.TemporaryDirectory())).resolve()


def processor_flags() -> set[str]:
    """Returns Linux's names of the processor's features, such as avx512_vnni; none are known elsewhere."""
    path = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)", path.read_text(), re.MULTILINE) if path.exists() else None
    return set(found[1].split()) if found else set()


def captured(function, *argv, stdin: str = "") -> tuple[int, str, str]:
    """Returns (the return value of `function` for these arguments as a list of strings, its stdout, its stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
    ):
        code = function([str(argument) for argument in argv])
    return code, out.getvalue(), err.getvalue()


def run(program, *argv, stdin: str = "") -> tuple[int, str, str]:
    """Returns (exit code, stdout, stderr) of an entry point, such as tfzoo.train, run in this process."""
    from tfzoo import cli

    return captured(lambda arguments: cli.run(program.main, program.define_flags, arguments), *argv, stdin=stdin)


def python(*arguments, cwd: pathlib.Path = ROOT, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Runs a new interpreter with these arguments; in the root folder it can import tfzoo and tests, elsewhere neither.

    Raises:
      AssertionError: `check` is True and the exit code is not 0; the message shows the end of stderr.
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
    """A running program whose stderr is a terminal or a pipe."""

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
        """Waits for the program and returns (exit code, stdout, stderr)."""
        written = b""
        try:
            while part := os.read(self.parent, 1 << 16):
                written += part
        except OSError:  # Reading from a terminal fails this way at its end.
            pass
        os.close(self.parent)
        out, _ = self.process.communicate()
        return self.process.returncode, out.decode(), written.decode()


def shown(err: str) -> list[str]:
    """Returns the texts that a terminal line showed, one after another."""
    return [text for text in re.split(r"[\r\n]+", err) if text.strip()]


def printed_in_every_process(script: str) -> str:
    """Returns a script's output, which must depend neither on string hashes nor on the seed in `sys.argv[1]`."""
    printed = {python("-c", script, seed, PYTHONHASHSEED=str(seed)).stdout for seed in range(3)}
    assert len(printed) == 1, printed
    return printed.pop()


def byte_tokenizer(special, **roles: str):
    """Returns a tokenizer with special tokens and one token for each byte: every non-ASCII character is split."""
    from tfzoo.text.byte_level import ByteLevelBPE
    from tfzoo.text.byte_level_model import BYTES

    return ByteLevelBPE([*special, *BYTES], [], special_tokens=special, roles=roles)


def noisy_model(name: str, seed: int = 0, noise: float = 0.4, **overrides):
    """Returns a model with random noise added to every weight; the state of random generators is kept."""
    import numpy as np

    import tfzoo
    from tfzoo.weights import table

    model = tfzoo.build(name, **overrides)
    random = np.random.default_rng(seed)
    for variable in model.variables:
        if not table.is_state(variable):
            variable.assign_add(random.normal(0, noise, variable.shape))
    # T5's output matrix is its embedding table: with large embeddings each token would be followed by itself.
    if model.config.positions == "relative":
        model.tokens.embeddings.assign(0.1 * model.tokens.embeddings)
    return model


@contextlib.contextmanager
def op_by_op():
    """Makes decoding run eagerly: building a graph takes longer than the short decoding of tests."""
    import importlib

    module = importlib.import_module("tfzoo.generation.decode")
    with mock.patch.object(module, "_compiled", module._function):
        yield
