"""Waits for the other workers of a run before TensorFlow does, which answers no signal while it waits.

The first worker (worker 0, or the chief) listens at its address in TF_CONFIG. Every other worker connects to it and
sends its name, its cluster and its flags as a line of JSON. When all are there, the first worker answers whether their
flags are the same, and TensorFlow takes over the ports. This module does not import TensorFlow.
"""

import contextlib
import errno
import json
import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfzoo import json_files
from tfzoo.errors import UserError, WorkerLost

Addresses = Mapping[str, Sequence[str]]  # Type of task -> HOST:PORT of each.
_POLL = 0.5  # Seconds between two looks at the others.
_PATIENCE = 5  # Seconds in which a connection must send its line.
_REMINDER = 30  # Seconds between two lines of the log that name the missing workers.
_MAX_BYTES = 1 << 20


def meet(addresses: Addresses, own: str, first: str, flags: Mapping[str, Any], seconds: float) -> None:
    """Returns when all workers have called this with the same flags.

    Args:
      addresses: those of TF_CONFIG.
      own: the name of this task, such as "worker 1".
      first: the name of the task that the others connect to.
      flags: name -> value of what must be the same in all workers.
      seconds: how long to wait for the others.

    Raises:
      UserError: the port of this task is in use, a task was started twice, or flags differ; the message names them.
      WorkerLost: not all workers came in time; the message names them.
    """
    cluster = repr({kind: list(listed) for kind, listed in addresses.items()})
    record = {"task": own, "cluster": cluster, "flags": {name: repr(value) for name, value in flags.items()}}
    hosts = tasks(addresses)
    waiting = _Waiting(hosts, seconds)
    with _port(own, hosts[own], listening=own == first) as server:
        if own == first:
            _lead(server, record, set(hosts) - {own}, waiting)
        else:
            _follow(hosts[first], record, first, waiting)


def wait_for_servers(addresses: Addresses, own: str, seconds: float) -> None:
    """Returns when every other task accepts connections.

    Raises:
      WorkerLost: not all do so in time; the message names them.
    """
    hosts = tasks(addresses)
    waiting, missing = _Waiting(hosts, seconds), set(hosts) - {own}
    while True:
        for name in sorted(missing):
            with contextlib.suppress(OSError):
                _connect(hosts[name]).close()
                missing.remove(name)
        if not missing:
            return
        waiting.check(missing)
        time.sleep(_POLL)


def tasks(addresses: Addresses) -> dict[str, str]:
    """Returns the name and address of each task."""
    return {f"{kind} {i}": address for kind, listed in addresses.items() for i, address in enumerate(listed)}


class _Waiting:
    """Prints which workers are missing, first after _POLL seconds, and stops waiting in time."""

    def __init__(self, hosts: Mapping[str, str], seconds: float):
        self._hosts, self._seconds = hosts, seconds
        self._until, self._next, self._shown = time.monotonic() + seconds, time.monotonic() + _POLL, ""

    def check(self, missing: set[str] | Sequence[str]) -> None:
        names = ", ".join(f"{name} ({self._hosts[name]})" for name in sorted(missing) if name in self._hosts)
        now = time.monotonic()
        if now > self._until:
            raise WorkerLost(
                f"{names}: did not start within {self._seconds:g} s; start all workers, or raise --worker_timeout"
            )
        if now > self._next and (names != self._shown or now > self._next + _REMINDER):
            print(f"waiting for {names}", flush=True)
            self._next, self._shown = now, names


def _lead(server: socket.socket, record: dict, missing: set[str], waiting: _Waiting) -> None:
    """Waits for the missing workers, and answers each."""
    present: dict[str, tuple[socket.socket, dict]] = {}
    with contextlib.ExitStack() as closing:
        while missing:
            waiting.check(missing)
            ready, _, _ = select.select([server, *(connection for connection, _ in present.values())], [], [], _POLL)
            for name, (connection, _) in list(present.items()):
                if connection in ready:  # It sends nothing more, so it has ended.
                    del present[name]
                    missing.add(name)
            if server in ready:
                connection = closing.enter_context(server.accept()[0])
                if (other := _introduced(connection)) is None:
                    connection.close()
                elif (name := other["task"]) in missing:
                    present[name] = connection, other
                    missing.remove(name)
                else:
                    error = (
                        f"TF_CONFIG: {name} is not in the cluster of {record['task']}, or was started twice; start "
                        "each task once, with the same cluster"
                    )
                    _send(connection, {"error": error})
            for connection, _ in present.values():
                _send(connection, {"missing": sorted(missing)})
        error = _difference([record, *(other for _, other in present.values())])
        for connection, _ in present.values():
            _send(connection, {"error": error})
    if error:
        raise UserError(error)


def _follow(address: str, record: dict, first: str, waiting: _Waiting) -> None:
    """Introduces this worker to the first, and waits for the answer."""
    while True:
        waiting.check({first})
        try:
            with _connect(address) as connection:
                _send(connection, record)
                for answer in _answers(connection, waiting, first):
                    if "error" not in answer:
                        waiting.check([*map(str, answer.get("missing", []))] or [first])
                    elif answer["error"]:
                        raise UserError(str(answer["error"]))
                    else:
                        return
        except OSError:  # It does not listen yet, or was restarted.
            pass
        time.sleep(_POLL)


def _answers(connection: socket.socket, waiting: _Waiting, first: str) -> Iterator[dict]:
    """Yields the lines that the first worker sends, until it closes the connection."""
    rest, missing = b"", [first]
    while True:
        readable, _, _ = select.select([connection], [], [], _POLL)
        if not readable:
            waiting.check(missing)
            continue
        part = connection.recv(1 << 16)
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            try:
                answer = json_files.parse(line)
            except json_files.BadJSON:
                return
            missing = answer.get("missing") or missing
            yield answer
        if not part or len(rest) > _MAX_BYTES:
            return


def _introduced(connection: socket.socket) -> dict | None:
    """Returns what a worker sends about itself; None if it is something else that connects to this port."""
    data = b""
    try:
        connection.settimeout(_PATIENCE)
        while not data.endswith(b"\n") and len(data) < _MAX_BYTES:
            part = connection.recv(1 << 16)
            if not part:
                return None
            data += part
        record = json_files.parse(data)
        strings = (record["task"], record["cluster"], *record["flags"], *record["flags"].values())
        return record if all(isinstance(each, str) for each in strings) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _difference(records: Sequence[dict]) -> str:
    """Returns a message that names what differs between the workers' records; "" if nothing does."""
    first = records[0]
    for other in records[1:]:
        who = f"in {first['task']} and"
        if other["cluster"] != first["cluster"]:
            return (
                f"TF_CONFIG: the cluster is {first['cluster']} {who} {other['cluster']} in {other['task']}; give all "
                "tasks the same"
            )
        mine, its = first["flags"], other["flags"]
        names = sorted(name for name in {*mine, *its} if mine.get(name) != its.get(name))
        if names:
            shown = ", ".join(f"--{n}={mine.get(n)} {who} {its.get(n)} in {other['task']}" for n in names[:5])
            more = f", and {len(names) - 5} more" if len(names) > 5 else ""
            return f"the workers' flags differ: {shown}{more}; start all of them with the same flags"
    return ""


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # The other is gone, which is noticed elsewhere.
        connection.sendall(json.dumps(message).encode() + b"\n")


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE)


@contextlib.contextmanager
def _port(name: str, address: str, listening: bool) -> Iterator[socket.socket]:
    """Holds the port of this task until TensorFlow needs it."""
    port = int(address.rpartition(":")[2])
    dual = socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if dual else socket.AF_INET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if dual:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            server.bind(("", port))
            if listening:
                server.listen()
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise UserError(
                f"TF_CONFIG: {name} cannot listen on {address} ({(error.strerror or '').lower()}); stop the process "
                "that uses this port, or choose another port"
            ) from None
        yield server
