"""Measures TF Serving or the embedded server under load: latencies, refusals, and the server's CPU time per request.

    python serving/load_test.py grpc://localhost:8500 packages '{"text": ["What a day"]}' --clients=1,8,32
    python serving/load_test.py http://localhost:8501 packages '{"text": ["What a day"]}' --rates=50,100 --plot=load.png

--clients is a closed loop: each client sends its next request when it has the answer to the one before. --rates is an
open loop: requests are due at random times (Poisson arrivals) at a mean rate, whether or not the server keeps up, and a
latency counts from the time at which the request was due. A server that stalls is thus charged for every request that
it delays, which a closed loop hides. The latencies of --clients show what clients see who wait for each other; those of
--rates show what independent users see.

The client is a process of its own and does little: it makes its requests once, and does not read the answers' values.
It needs client.py beside it and numpy, and for gRPC grpcio and protobuf, for --plot matplotlib.
"""

import argparse
import collections
import contextlib
import dataclasses
import http.client
import ipaddress
import itertools
import json
import os
import pathlib
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import client
import numpy as np

MAX_SECONDS = 600
REFUSED = {"RESOURCE_EXHAUSTED", "UNAVAILABLE", "429", "503"}
Send = Callable[[], str]  # Sends a request, waits for the answer, and returns "OK" or the code of the error.


@dataclasses.dataclass(frozen=True)
class Load:
    """How many clients send requests one after another, or how many requests per second arrive."""

    clients: int = 0
    rate: float = 0.0

    def __str__(self) -> str:
        return f"{self.rate:g} requests/s" if self.rate else f"{self.clients} client{'s' * (self.clients > 1)}"


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured under a load.

    Attributes:
      load: the load.
      seconds: from the first request to the last answer.
      latencies: seconds of the requests that were answered, sorted.
      codes: how many requests had each outcome.
      server_cpu: seconds of CPU time that the server used; None if it was not watched.
      client_cpu: the same of this process.
    """

    load: Load
    seconds: float
    latencies: np.ndarray
    codes: collections.Counter
    server_cpu: float | None
    client_cpu: float

    def percentile(self, percent: float) -> float:
        """Returns a percentile of the latencies in milliseconds."""
        return float(np.percentile(self.latencies, percent)) * 1000 if len(self.latencies) else float("nan")

    def cpu_per_request(self) -> float:
        """Returns the milliseconds of the server's CPU time per request that was answered."""
        if self.server_cpu is None or not self.codes["OK"]:
            return float("nan")
        return self.server_cpu * 1000 / self.codes["OK"]


class Target:
    """A signature of a model on a server, and a request for it.

    Args:
      address: such as grpc://localhost:8500 or http://localhost:8501.
      model: the name of the model.
      inputs: the values of each input, as nested lists.
      signature: the name of the signature.
      api_key: is sent with every request, if there is one.
      timeout: seconds within which a request must be answered.

    Raises:
      ValueError: the address is not one, or the server does not know the model or the signature.
    """

    def __init__(
        self,
        address: str,
        model: str,
        inputs: dict[str, Any],
        signature: str = "serving_default",
        api_key: str = "",
        timeout: float = 30.0,
    ):
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("grpc", "http") or not parts.hostname or not parts.port:
            raise ValueError(f"{address!r} is not an address; write it as grpc://HOST:PORT or http://HOST:PORT")
        self._host, self._port = parts.hostname, parts.port
        self._timeout, self._key = timeout, f"Bearer {api_key}" if api_key else ""
        self._path = f"/v1/models/{urllib.parse.quote(model, safe='')}:predict"
        if parts.scheme == "http":
            self._connect = self._http
            self._body = json.dumps({"signature_name": signature, "inputs": inputs}).encode()
        else:
            self._connect = self._grpc
            self._body = self._message(parts, model, inputs, signature, api_key)

    def _message(self, parts: Any, model: str, inputs: dict[str, Any], signature: str, api_key: str) -> bytes:
        """Returns a Predict request whose inputs have the types that the server's metadata give."""
        transport = client.Grpc(parts, False, api_key, None, None, None)
        try:
            signatures = transport.signatures(model, None, None, self._timeout)
            if signature not in signatures:
                raise ValueError(f"--signature={signature}: {model} has the signatures {', '.join(sorted(signatures))}")
            dtypes, _ = signatures[signature]
            for name in inputs.keys() - dtypes.keys():
                raise ValueError(f"{model} has no input {name}; its inputs are {', '.join(sorted(dtypes))}")
            arrays = {name: client.to_array(value, dtypes[name]) for name, value in inputs.items()}
            return transport.request(model, None, None, signature, arrays).SerializeToString()
        except client.ServingError as error:
            raise ValueError(f"{model}: {error}") from None
        finally:
            transport.close()

    def connect(self, connections: contextlib.ExitStack) -> Send:
        """Returns a function that sends a request over a connection of its own, which is closed with the stack."""
        return self._connect(connections)

    def _grpc(self, connections: contextlib.ExitStack) -> Send:
        import grpc

        # Each client has a connection of its own.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        channel = connections.enter_context(grpc.insecure_channel(f"{self._host}:{self._port}", options))
        method = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        metadata = [("authorization", self._key)] if self._key else []

        def send() -> str:
            try:
                method(self._body, timeout=self._timeout, metadata=metadata)
            except grpc.RpcError as error:
                return error.code().name
            return "OK"

        return send

    def _http(self, connections: contextlib.ExitStack) -> Send:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        connections.callback(connection.close)
        headers = {"Content-Type": "application/json"} | ({"Authorization": self._key} if self._key else {})

        def send() -> str:
            try:
                connection.request("POST", self._path, self._body, headers)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()  # The next request opens it again.
                return type(error).__name__
            return "OK" if answer.status == 200 else str(answer.status)

        return send


def measure(target: Target, load: Load, seconds: float, *, workers: int = 256, pid: int = 0, seed: int = 0) -> Result:
    """Sends requests for some seconds and waits for their answers.

    Args:
      target: where they go.
      load: how many.
      seconds: how long requests are sent.
      workers: in an open loop, how many requests may wait for their answers at a time. Those that are due while all
        workers wait are sent late, and the delay counts.
      pid: the process of the server, whose CPU time is read; 0 means none.
      seed: of the times at which requests are due.
    """
    count = min(workers, max(1, round(load.rate * seconds))) if load.rate else load.clients
    with contextlib.ExitStack() as connections:
        return _measure([target.connect(connections) for _ in range(count)], load, seconds, pid, seed)


def _measure(sends: Sequence[Send], load: Load, seconds: float, pid: int, seed: int) -> Result:
    ended: list[list[tuple[float, float, str]]] = [[] for _ in sends]  # By worker: due, answered, code.
    server_before, client_before, begin = cpu_of(pid), time.process_time(), time.perf_counter()
    due = _due_times(load, begin, begin + seconds, seed)
    lock = threading.Lock()

    def work(send: Send, outcomes: list[tuple[float, float, str]]) -> None:
        while True:
            with lock:
                when = next(due, None)
            if when is None:
                return
            time.sleep(max(0.0, when - time.perf_counter()))
            code = send()
            outcomes.append((when, time.perf_counter(), code))

    threads = [threading.Thread(target=work, args=each) for each in zip(sends, ended)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server_after, client_after = cpu_of(pid), time.process_time()
    requests = list(itertools.chain.from_iterable(ended))
    return Result(
        load,
        max((answered for _, answered, _ in requests), default=begin) - begin,
        np.sort([answered - when for when, answered, code in requests if code == "OK"]),
        collections.Counter(code for _, _, code in requests),
        None if server_after is None or server_before is None else server_after - server_before,
        client_after - client_before,
    )


def _due_times(load: Load, begin: float, end: float, seed: int) -> Iterator[float]:
    """Yields the time.perf_counter() at which each request is due."""
    if not load.rate:
        while (now := time.perf_counter()) < end:
            yield now
        return
    random, due = np.random.default_rng(seed), begin
    while (due := due + random.exponential(1 / load.rate)) < end:
        yield due


def cpu_of(pid: int) -> float | None:
    """Returns the seconds of CPU time that a process has used; None for process 0.

    Raises:
      OSError: the process does not exist.
    """
    if not pid:
        return None
    # The name of the program, in parentheses, may contain spaces.
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(results: Sequence[Result]) -> str:
    """Returns the results as a Markdown table."""
    lines = [
        "| load | answered/s | p50 ms | p90 ms | p99 ms | refused | failed | server CPU ms | client CPU |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in results:
        refused = sum(count for code, count in each.codes.items() if code in REFUSED)
        failed = ", ".join(f"{count} {code}" for code, count in each.codes.items() if code not in {"OK", *REFUSED})
        cells = [
            str(each.load),
            f"{each.codes['OK'] / each.seconds:.1f}" if each.seconds else "0",
            *(f"{each.percentile(percent):.1f}" for percent in (50, 90, 99)),
            str(refused),
            failed or "0",
            f"{each.cpu_per_request():.2f}",
            f"{each.client_cpu / each.seconds:.0%}" if each.seconds else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace("nan", "")


def plot(results: Sequence[Result], path: pathlib.Path, title: str) -> None:
    """Writes a picture of the latencies over the load."""
    from matplotlib.figure import Figure

    figure = Figure((7, 4.5), layout="constrained")
    axes = figure.subplots()
    loads = [each.load.rate or each.load.clients for each in results]
    for percent in (50, 90, 99):
        axes.plot(loads, [each.percentile(percent) for each in results], marker="o", label=f"p{percent}")
    axes.set_xlabel("requests due per second" if results[0].load.rate else "clients")
    axes.set(ylabel="latency in ms", yscale="log", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)


def _numbers(kind: type) -> Callable[[str], list]:
    def parse(text: str) -> list:
        numbers = [kind(part) for part in text.split(",")]
        if min(numbers) <= 0:
            raise argparse.ArgumentTypeError(f"{text} must consist of positive numbers")
        return numbers

    return parse


def _is_loopback(address: str) -> bool:
    host = urllib.parse.urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="grpc://HOST:PORT or http://HOST:PORT")
    parser.add_argument("model", help="the name of the model")
    parser.add_argument("inputs", type=json.loads, help='the inputs of a request as JSON, such as {"text": ["one"]}')
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--clients", type=_numbers(int), metavar="N,N", help="closed loop: numbers of clients, in turn")
    parser.add_argument("--rates", type=_numbers(float), metavar="R,R", help="open loop: requests per second, in turn")
    parser.add_argument("--seconds", type=float, default=10.0, help=f"of each load, at most {MAX_SECONDS} (default 10)")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before it is measured (default 2)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds until a request has failed (default 30)")
    parser.add_argument("--workers", type=int, default=256, help="open loop: requests on their way (default 256)")
    parser.add_argument("--server_pid", type=int, default=0, help="the server's process, to read its CPU time (Linux)")
    parser.add_argument("--seed", type=int, default=0, help="of the times at which requests are due (default 0)")
    parser.add_argument("--api_key", default="", help="is sent with every request")
    parser.add_argument("--plot", type=pathlib.Path, help="a PNG file for a picture of the latencies over the load")
    parser.add_argument("--remote", action="store_true", help="load a server on another machine than this one")
    flags = parser.parse_args(argv)
    if bool(flags.clients) == bool(flags.rates):
        parser.error("specify either --clients or --rates")
    if not 0 < flags.seconds <= MAX_SECONDS or not 0 <= flags.warmup <= MAX_SECONDS:
        parser.error(f"--seconds={flags.seconds:g} and --warmup={flags.warmup:g} must be at most {MAX_SECONDS} seconds")
    if not (flags.remote or _is_loopback(flags.address)):
        parser.error(f"{flags.address} is another machine, whose users a load test hinders; add --remote if you may")
    loads = [Load(clients=n) for n in flags.clients or ()] + [Load(rate=rate) for rate in flags.rates or ()]
    try:
        cpu_of(flags.server_pid)
    except OSError:
        parser.error(
            f"--server_pid={flags.server_pid}: this process does not exist on this machine, or /proc is missing"
        )
    options = dict(workers=max(1, flags.workers), pid=flags.server_pid, seed=flags.seed)
    try:
        target = Target(flags.address, flags.model, flags.inputs, flags.signature, flags.api_key, flags.timeout)
        if flags.warmup:
            measure(target, loads[0], flags.warmup, **options)
        results = [measure(target, load, flags.seconds, **options) for load in loads]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(results))
    if flags.plot:
        plot(results, flags.plot, f"{flags.model}, {urllib.parse.urlsplit(flags.address).scheme}")
    return 0 if all(each.codes["OK"] for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
