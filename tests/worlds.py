"""Runs a test's functions in other distributed settings ("worlds"): two mirrored devices, or several worker processes.

The number of devices and a worker's address cannot change after TensorFlow has started, and importing it is slow. This
file, run as a program, therefore imports TensorFlow without computing anything and forks the processes of each world.
All tests of a process share one such program.

    worlds = Worlds("tests.training.distribution_test")
    results = worlds.run("workers2", [["losses", {"optimizer": "sgd"}]])   # results[rank][call]

calls `losses(world, optimizer="sgd")` of that module in both workers; the return values must be JSON-serializable.
"""

import atexit
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # When run as a program, this file could otherwise import only its own folder.

from tfzoo import files, launch  # noqa: E402

# name -> number of processes by kind
WORLDS = {
    "one": {"worker": 1},
    "mirrored2": {"worker": 1},
    "workers2": {"worker": 2},
    "workers3": {"worker": 3},
    "servers": {"chief": 1, "worker": 2, "ps": 1},
}


@dataclasses.dataclass
class World:
    """The setting in which a function runs."""

    name: str
    rank: int
    strategy: Any  # None if `begun` is False.
    folder: pathlib.Path  # Contains KIND + RANK + ".pid" for each process.


@functools.cache
def _program() -> subprocess.Popen:
    """Starts the process that forks."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    environment.pop("TF_CONFIG", None)
    program = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    atexit.register(program.communicate)
    return program


class Worlds:
    """The worlds of the functions in a module, whose function `import_all` imports what they need."""

    def __init__(self, module: str):
        self._module = module

    def run(
        self, name: str, calls: Sequence, seconds: float = 1800, begun: bool = True, codes: Sequence[int] = ()
    ) -> list[list]:
        """Returns the return values of each process's calls.

        Args:
          name: a key of WORLDS.
          calls: pairs (function name, arguments).
          seconds: the timeout.
          begun: whether the strategy is created for the functions; otherwise they create it.
          codes: the expected exit codes, sorted, if they are not all 0; a killed process returns nothing.

        Raises:
          AssertionError: a process failed; the message shows its output. None replaces a server's results.
        """
        with tempfile.TemporaryDirectory() as folder:
            order = dict(module=self._module, name=name, calls=calls, folder=folder, seconds=seconds, begun=begun)
            orders, answers = _program().stdin, _program().stdout
            assert orders and answers
            orders.write(json.dumps(order) + "\n")
            orders.flush()
            exit_codes = json.loads(answers.readline() or "[null]")
            printed = "\n".join(path.read_text()[-4000:] for path in sorted(pathlib.Path(folder).glob("*.out")))
            assert sorted(exit_codes) == [*codes] if codes else not any(exit_codes), (
                f"exit codes {exit_codes} of {name}\n{printed}"
            )
            return [json.loads(path.read_text()) for path in sorted(pathlib.Path(folder).glob("*.json"))]


@functools.cache
def _imported(name: str) -> types.ModuleType:
    module = importlib.import_module(name)
    module.import_all()
    return module


def serve() -> None:
    """Forks the processes that are requested on stdin."""
    import tensorflow as tf

    from tfzoo.training import distribution

    def child(module, order, kind, rank, addresses):
        os.environ["TF_CONFIG"] = json.dumps({"cluster": addresses, "task": {"type": kind, "index": rank}})
        if order["name"] == "one" or order["name"].startswith("mirrored"):
            del os.environ["TF_CONFIG"]
        strategy = None
        if order["name"] == "servers" and kind != "chief":
            distribution.serve(distribution.read_cluster("parameter_server"))
        elif order["begun"]:
            kind = order["name"].rstrip("0123456789")
            count = int(order["name"].removeprefix(kind) or 0)
            strategy = {
                "one": tf.distribute.get_strategy,
                "mirrored": lambda: distribution.make_strategy("mirrored", num_devices=count),
                "workers": lambda: distribution.make_strategy("multi_worker"),
                "servers": lambda: distribution.make_strategy("parameter_server"),
            }[kind]()
        world = World(order["name"], rank, strategy, pathlib.Path(order["folder"]))
        results = [getattr(module, name)(world, **arguments) for name, arguments in order["calls"]]
        folder = pathlib.Path(order["folder"])
        files.atomic_write(folder / f"{rank}.json", json.dumps(results))
        # A process that ends at once can break off another's last sum; TensorFlow's own exit, which is skipped here,
        # would wait for it. The wait is short, because the other may be waiting for this one's end.
        until = time.monotonic() + 3
        for other in folder.glob("worker*.pid") if kind == "worker" else ():
            while not (folder / other.name[6:]).with_suffix(".json").exists() and time.monotonic() < until:
                time.sleep(0.02)

    for line in sys.stdin:
        order = json.loads(line)
        module, kinds = _imported(order["module"]), WORLDS[order["name"]]
        ports = iter(launch.free_ports(sum(kinds.values())))
        addresses = {kind: [f"127.0.0.1:{next(ports)}" for _ in range(count)] for kind, count in kinds.items()}
        sys.stdout.flush()
        children = {}
        for kind, count in kinds.items():
            for rank in range(count):
                pid = os.fork()
                if not pid:
                    code = 1
                    try:
                        output = os.open(f"{order['folder']}/{kind}{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                        os.dup2(output, 1)
                        os.dup2(output, 2)
                        pathlib.Path(order["folder"], f"{kind}{rank}.pid").write_text(str(os.getpid()))
                        child(module, order, kind, rank, addresses)
                        code = 0
                    except BaseException:
                        import traceback

                        traceback.print_exc()
                    finally:
                        sys.stdout.flush()
                        sys.stderr.flush()
                        os._exit(code)
                children[pid] = kind
        print(json.dumps(_wait(children, order["seconds"], "chief" in kinds)), flush=True)


def _wait(children: dict[int, str], seconds: float, serving: bool) -> list[int]:
    """Returns exit codes; when a process fails, or the chief of servers has finished, the others are killed."""
    codes, until = [], time.monotonic() + seconds
    left = dict(children)
    while left:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            kind, code = left.pop(pid), os.waitstatus_to_exitcode(status)
            if serving and kind != "chief":
                continue
            codes.append(code)
            if code or serving:
                until = min(until, time.monotonic() + (0 if serving else 20))  # The others may notice by themselves.
        elif time.monotonic() > until:
            for other in left:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            return codes if serving and codes else [*codes, *[-9] * len(left)]
        else:
            time.sleep(0.02)
    return codes


if __name__ == "__main__":
    serve()
