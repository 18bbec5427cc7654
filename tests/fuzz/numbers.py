"""A kind of input for the tests of the fuzzer: a number. Its reader fails in a different way for each small one."""

import os
import pathlib
import random
import signal
import time

from tests.fuzz.harness import Kind
from tfzoo.errors import UserError

FAULTS = {
    1: "refused, but not in one line",
    2: "internal error",
    3: "ended by SIGSEGV",
    4: "ended by SIGXCPU",
    5: "internal error",
    6: "accepted with another result",
    7: "accepted what the reference refuses",
    8: "ended with exit code 1",
}
REFUSED, HANGS, LARGEST = 9, 10, 19


def _make(folder: pathlib.Path) -> None:
    (folder / "number").write_text("0")


def _draw(folder: pathlib.Path, draw: random.Random) -> str:
    number = draw.choice([0, *FAULTS, REFUSED, *range(HANGS + 1, LARGEST + 1)])
    (folder / "number").write_text(str(number))
    return f"number: {number}"


def _read(folder: pathlib.Path) -> int:
    number = int((folder / "number").read_text())
    match number:
        case 1:
            raise UserError()
        case 2:
            raise KeyError(number)
        case 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 4:
            while True:
                pass
        case 5:
            bytearray(1 << 34)
        case 8:
            os._exit(1)
        case 9:
            raise UserError("number: is 9; write another number")
        case 10:
            time.sleep(3600)
    return number


def _read_differently(folder: pathlib.Path) -> int:
    number = _read(folder)
    if number == 7:
        raise ValueError(number)
    return number + (number == 6)


def _hang(folder: pathlib.Path, draw: random.Random) -> str:
    (folder / "number").write_text(str(HANGS))
    return f"number: {HANGS}"


def _harmless(folder: pathlib.Path, draw: random.Random) -> str:
    (folder / "number").write_text(str(draw.randint(HANGS + 1, LARGEST)))
    return "another number"


KINDS = {
    "numbers": Kind(_make, _draw, _read, _read_differently),
    "harmless": Kind(_make, _harmless, _read),
    "hanging": Kind(_make, _hang, _read),
}
