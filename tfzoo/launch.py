"""Starts all processes of one distributed run on this machine, to try out what will later run on several hosts.

    python -m tfzoo.launch --workers=2 -- python -m tfzoo.train --strategy=multi_worker --flagfile=... --run_dir=...
    python -m tfzoo.launch --workers=2 --parameter_servers=1 -- python -m tfzoo.train --strategy=parameter_server ...

Each process gets its own TF_CONFIG with free ports of 127.0.0.1. Its output is prefixed with the name of the process.
Signals are forwarded. When one process fails, the others are terminated and this command fails too: with the exit code
of the failed process if the table of exit codes contains it, otherwise with 5. A parameter-server run survives the loss
of workers, but not the loss of a parameter server.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from absl import flags as absl_flags

from tfzoo import cli
from tfzoo.errors import UserError

GRACE = 5.0  # Seconds between asking a process to terminate and killing it.
_MOST = 256  # Processes of a kind.
STOP_GRACE = 60.0  # The same after another process has saved and stopped.
_KNOWN_CODES = (cli.DONE, cli.BUG, cli.WRONG_USE, cli.STOPPED, cli.FAILED_CHECK, cli.LOST_WORKER)


class Task:
    """One process and the threads that read its output."""

    def __init__(self, kind: str, index: int, addresses: dict[str, list[str]], command: list[str]):
        self.kind, self.name = kind, f"{kind} {index}"
        config = json.dumps({"cluster": addresses, "task": {"type": kind, "index": index}})
        self.process = subprocess.Popen(
            command,
            env=os.environ | {"TF_CONFIG": config},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Otherwise Ctrl-C in a terminal would reach each process twice, and a second signal stops it immediately.
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._copy, args=pair, daemon=True)
            for pair in ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _copy(self, source, target) -> None:
        for line in source:
            try:
                target.write(f"[{self.name}] {line.decode(errors='replace').rstrip()}\n")
                target.flush()
            except OSError:  # The reader of the output is gone; the process continues.
                continue

    def send(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def finish(self) -> None:
        """Waits until all output of the process is forwarded."""
        for reader in self._readers:
            reader.join(timeout=5)  # A grandchild may keep the pipe open.


def define_flags(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_integer(
        "workers",
        None,
        "Number of workers to start.",
        lower_bound=1,
        upper_bound=_MOST,
        flag_values=flags,
        required=True,
    )
    absl_flags.DEFINE_integer(
        "parameter_servers",
        0,
        "Number of parameter servers to start; if above 0, a chief is started as well.",
        lower_bound=0,
        upper_bound=_MOST,
        flag_values=flags,
    )


def main(flags: absl_flags.FlagValues, command: list[str]) -> int:
    kinds = {"worker": flags.workers}
    if flags.parameter_servers:
        kinds = {"chief": 1, "worker": flags.workers, "ps": flags.parameter_servers}
    ports = iter(free_ports(sum(kinds.values())))
    addresses = {kind: [f"127.0.0.1:{next(ports)}" for _ in range(count)] for kind, count in kinds.items()}

    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: received.append(number))
    tasks: list[Task] = []
    try:
        for kind, kind_addresses in addresses.items():
            for index in range(len(kind_addresses)):
                try:
                    tasks.append(Task(kind, index, addresses, command))
                except OSError as error:
                    reason = (error.strerror or str(error)).lower()
                    raise UserError(
                        f"{command[0]}: cannot be started ({reason}); specify an executable program"
                    ) from None
        return watch(tasks, received)
    finally:
        for task in tasks:
            task.send(signal.SIGKILL)
        for task in tasks:
            task.process.wait()
            task.finish()


def watch(tasks: list[Task], received: list[int]) -> int:
    """Forwards signals until the run has ended, and returns the exit code.

    Args:
      tasks: all processes of the run.
      received: the numbers of the received signals; a signal handler appends to it.
    """
    serving = any(task.kind == "ps" for task in tasks)
    num_forwarded = 0
    ended: set[Task] = set()
    codes: list[int] = []
    deadline = float("inf")  # When the remaining processes are killed.
    while len(ended) < len(tasks):
        for number in received[num_forwarded:]:
            num_forwarded += 1
            for task in tasks:
                if not serving or task.kind == "chief":
                    task.send(number)
        for task in tasks:
            status = task.process.poll()
            if status is None or task in ended:
                continue
            ended.add(task)
            if serving and task.kind == "chief":
                return _exit_code(status)
            if serving and task.kind == "worker":
                _say(f"{task.name} {_how(status)}; the others continue")
                if all(other in ended for other in tasks if other.kind == "worker"):
                    _say("no workers are left")
                    return cli.LOST_WORKER
                continue
            codes.append(_exit_code(status))
            if status == cli.STOPPED:
                deadline = min(deadline, time.monotonic() + STOP_GRACE)
            elif status or serving:
                _say(f"{task.name} {_how(status)}; terminating the others")
                deadline = min(deadline, time.monotonic() + GRACE)
                for other in tasks:
                    other.send(signal.SIGTERM)
        if time.monotonic() > deadline:
            codes.append(cli.LOST_WORKER)
            break
        time.sleep(0.05)
    # The code of the first failure; if nothing failed, STOPPED takes precedence over DONE.
    return next((code for code in codes if code not in (cli.DONE, cli.STOPPED)), max(codes))


def _exit_code(status: int) -> int:
    return status if status in _KNOWN_CODES else cli.LOST_WORKER


def _how(status: int) -> str:
    if status < 0:
        return f"was terminated by {signal.Signals(-status).name}"
    return f"ended with exit code {status}"


def _say(text: str) -> None:
    print(f"[launch] {text}", file=sys.stderr, flush=True)


def free_ports(count: int) -> list[int]:
    """Returns ports of 127.0.0.1 that are currently unused."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def run(argv: list[str]) -> int:
    """Runs a command line of the form FLAGS -- COMMAND and returns its exit code."""
    flag_arguments = list(itertools.takewhile(lambda argument: argument != "--", argv))
    command = argv[len(flag_arguments) + 1 :]

    def start(flags):
        """Starts the workers of one run on this machine."""
        if not command:
            raise UserError("the command is missing; write it after --, as in --workers=2 -- python -m tfzoo.train ...")
        return main(flags, command)

    start.__doc__ = __doc__
    return cli.run(start, define_flags, flag_arguments, usage=f"{cli.USAGE} -- COMMAND")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
