"""What the embedded server adds to the bare model: `make bench`, or

    python benchmarks/serve.py [--rounds=5] [--seconds=3] [--clients=1,8,32] [--formats=savedmodel,onnx]

A classifier of texts with two layers and random weights is exported as a SavedModel and in ONNX. Each is served with
and without batching, over gRPC and HTTP, by a process of its own; one client process (serving/load_test.py) loads one
server at a time with 1, 8 and 32 clients that wait for their answers, each with one text in a request. The bare model
runs without a server in further processes, on as many texts at a time as the server's batches had on average in the
same round. All take turns.

CPU time is that of all threads of the server per request; it is less sensitive to other load than latencies, which
include that of the client on the same processors.
"""

import argparse
import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import history
from side_by_side import ROOT, Clock, Worker, answer, environment, markdown, processor, ratio, ratios

sys.path[:0] = [str(ROOT), str(ROOT / "serving")]

WORDS = 24  # Of a text.
SEQUENCE_LENGTH = 64
LABELS = 4
MOST = 32  # Rows of a batch.
NAME = "texts"


def vocabulary(count: int = 1000) -> list[str]:
    """Returns made-up words."""
    draw, words = random.Random(0), dict[str, None]()
    while len(words) < count:
        words["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8)))] = None
    return list(words)


def text() -> str:
    return " ".join(random.Random(1).choices(vocabulary(), k=WORDS))


def export(folder: pathlib.Path, formats: str, layers: int = 2, width: int = 256) -> None:
    """Writes FORMAT/texts/1 into a folder: a classifier with so many layers of so many units."""
    script = (
        "import sys, tfzoo; from tfzoo.text.wordpiece import WordPiece; import serve;"
        "words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *serve.vocabulary()];"
        "model = tfzoo.build('bert_small', heads=('classify',), num_labels=serve.LABELS, vocab_size=len(words),"
        f" num_layers={layers}, hidden_size={width}, num_heads={width // 64}, intermediate_size={4 * width},"
        " max_positions=serve.SEQUENCE_LENGTH);"
        "tfzoo.save(model, sys.argv[1], WordPiece(words))"
    )
    path = f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"
    run = lambda *command: subprocess.run(  # noqa: E731
        [sys.executable, *command], env=environment() | {"PYTHONPATH": path}, check=True, stdout=subprocess.DEVNULL
    )
    run("-c", script, str(folder / "model"))
    run("-m", "tfzoo.export", f"--model_dir={folder / 'model'}", f"--output_dir={folder}", f"--name={NAME}",
        f"--formats={formats}", f"--sequence_length={SEQUENCE_LENGTH}")  # fmt: skip


class Server:
    """A server of one format, in a process of its own; `more` are further flags."""

    def __init__(self, folder: pathlib.Path, kind: str, has_batches: bool, *more: str):
        self.kind, self.has_batches = kind, has_batches
        self.name = f"{kind}{', batching' if has_batches else ''}"
        with socket.socket() as first, socket.socket() as second:
            for probe in (first, second):
                probe.bind(("127.0.0.1", 0))
            self.port, self.rest_port = first.getsockname()[1], second.getsockname()[1]
        monitoring, batching = folder / "monitoring.config", folder / "batching.config"
        monitoring.write_text("prometheus_config { enable: true }")
        # While one thread runs a batch on all processors, the next requests fill a larger batch.
        batching.write_text(f"max_batch_size {{ value: {MOST} }} num_batch_threads {{ value: 1 }}")
        flags = ["--enable_batching", f"--batching_parameters_file={batching}"] if has_batches else []
        if not any(flag.startswith("--model_config_file") for flag in more):
            flags += [f"--model_name={NAME}", f"--model_base_path={folder / kind / NAME}"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tfzoo.serve", f"--port={self.port}", f"--rest_api_port={self.rest_port}",
             f"--monitoring_config_file={monitoring}", *flags, *more],
            env=environment(), stderr=None if "BENCH_VERBOSE" in os.environ else subprocess.DEVNULL,
        )  # fmt: skip
        self.pid = self._process.pid
        while self._ask("/readyz")[0] != 200:
            if self._process.poll() is not None:
                sys.exit(f"{self.name} ended with exit code {self._process.returncode}; set BENCH_VERBOSE=1 to see why")
            time.sleep(0.2)

    def _ask(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port)
        with contextlib.closing(connection):
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()
            except OSError:
                return 0, ""

    def state(self, model: str, version: int) -> str:
        """Returns the state of a version of a model, such as AVAILABLE; "" if the server does not know it."""
        status, body = self._ask(f"/v1/models/{model}/versions/{version}")
        return json.loads(body)["model_version_status"][0]["state"] if status == 200 else ""

    def address(self, protocol: str) -> str:
        return f"grpc://127.0.0.1:{self.port}" if protocol == "gRPC" else f"http://127.0.0.1:{self.rest_port}"

    def histograms(self) -> dict[str, tuple[float, float]]:
        """Returns the sum and count of each histogram."""
        read: dict[str, dict[str, float]] = {}
        pattern = r"^:tensorflow:serving:(\S+?)_(sum|count)\{.*\} (\S+)$"
        for name, part, value in re.findall(pattern, self._ask("/monitoring/prometheus/metrics")[1], re.MULTILINE):
            both = read.setdefault(name, {"sum": 0.0, "count": 0.0})
            both[part] += float(value)
        return {name: (both["sum"], both["count"]) for name, both in read.items()}

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def means(before: dict, after: dict) -> dict[str, float]:
    """Returns the mean of what each histogram observed in between."""
    differences = {}
    for name, (total, count) in after.items():
        old_total, old_count = before.get(name, (0.0, 0.0))
        if count > old_count:
            differences[name] = (total - old_total) / (count - old_count)
    return differences


def client():
    """Loads a server. Runs in a worker."""
    import load_test

    def measure(address: str, clients: int, seconds: float, pid: int) -> dict[str, float]:
        target = load_test.Target(address, NAME, {"text": [text()]})
        result = load_test.measure(target, load_test.Load(clients=clients), seconds, pid=pid)
        if set(result.codes) != {"OK"}:
            raise RuntimeError(f"{address}: {result.codes}")
        return {
            "rate": result.codes["OK"] / result.seconds, "p50": result.percentile(50), "p99": result.percentile(99),
            "mean": float(result.latencies.mean()) * 1000, "cpu": result.cpu_per_request(),
        }  # fmt: skip

    return measure


def bare(kind: str, folder: str):
    """Runs the model without a server, and translates requests and answers. Runs in a worker."""
    import numpy as np

    from tfzoo.serve import messages, tensors
    from tfzoo.serve.limits import Limits
    from tfzoo.serve.loading import Loader
    from tfzoo.serve.metrics import Metrics
    from tfzoo.serve.rest import json_text, predict_json

    (version,) = (pathlib.Path(folder) / kind / NAME).iterdir()
    model = Loader(Metrics())(NAME, 1, version)
    signature, limits = model.signatures["serving_default"], Limits()
    request = messages.PredictRequest(model_spec={"name": NAME})
    request.inputs["text"].CopyFrom(tensors.to_proto(np.array([text().encode()], object)))
    data, body = request.SerializeToString(), json.dumps({"inputs": {"text": [text()]}}).encode()
    outputs = model.run("serving_default", {"text": np.array([text().encode()], object)})

    def read_grpc() -> None:
        for name, proto in messages.PredictRequest.FromString(data).inputs.items():
            tensors.to_array(proto, name, limits.max_tensor_elements)

    def write_grpc() -> None:
        response = messages.PredictResponse()
        for name, value in outputs.items():
            response.outputs[name].CopyFrom(tensors.to_proto(value))
        response.SerializeToString()

    def milliseconds(function, seconds: float) -> float:
        """Returns the CPU time of a call."""
        function()
        count, clock = 0, Clock()
        while clock.read()["seconds"] < seconds:
            function()
            count += 1
        return clock.read()["cpu"] * 1000 / count

    def measure(rows: int, seconds: float) -> dict[str, float]:
        """Returns CPU milliseconds per row of the model, and per request of the translations."""
        inputs = {"text": np.array([text().encode()] * rows, object)}
        return {
            "model": milliseconds(lambda: model.run("serving_default", inputs), seconds) / rows,
            "read gRPC": milliseconds(read_grpc, seconds / 10),
            "write gRPC": milliseconds(write_grpc, seconds / 10),
            "read HTTP": milliseconds(
                lambda: predict_json.read(json_text.parse(body), signature, limits), seconds / 10
            ),
            "write HTTP": milliseconds(lambda: predict_json.write(outputs, rows=False), seconds / 10),
        }

    return measure


@dataclasses.dataclass
class Series:
    """What was measured of a server over a protocol with a number of clients: one dict per round."""

    load: list[dict[str, float]] = dataclasses.field(default_factory=list)
    observed: list[dict[str, float]] = dataclasses.field(default_factory=list)
    bare: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def median(self, values: str, key: str) -> float:
        return statistics.median(each.get(key, 0.0) for each in getattr(self, values))


Key = tuple[str, str, int]  # The name of a server, a protocol and the number of clients.


def measure(
    servers: list[Server], models: dict[str, Worker], loader: Worker, clients: list[int], rounds: int, seconds: float
) -> dict[Key, Series]:
    """Measures every server over both protocols with every number of clients."""
    all_series: dict[Key, Series] = {}
    by_name: dict[Any, Server] = {server.name: server for server in servers}
    for protocol in ("gRPC", "HTTP"):
        for count in clients:
            for server in servers:  # Warms up.
                loader.ask(server.address(protocol), count, min(1.0, seconds), server.pid)
            for turn in range(rounds):
                names = list(by_name) if turn % 2 == 0 else list(by_name)[::-1]
                for name in names:
                    server = by_name[name]
                    series = all_series.setdefault((name, protocol, count), Series())
                    before = server.histograms()
                    series.load.append(loader.ask(server.address(protocol), count, seconds, server.pid))
                    series.observed.append(means(before, server.histograms()))
                    rows = series.observed[-1].get("batching_session:processed_batch_size", 1.0)
                    series.bare.append(models[server.kind].ask(max(1, round(rows)), seconds / 3))
            print(f"{protocol}, {count} clients: done", file=sys.stderr)
    return all_series


def latencies(all_series: dict[Key, Series]) -> str:
    rows = []
    for (name, protocol, count), series in all_series.items():
        batch = series.median("observed", "batching_session:processed_batch_size")
        rows.append([
            f"{name}, {protocol}", str(count), f"{series.median('load', 'rate'):.0f}",
            f"{series.median('load', 'p50'):.1f}", f"{series.median('load', 'p99'):.1f}",
            f"{batch:.1f}" if batch else "1", f"{series.median('load', 'cpu'):.2f}",
            f"{series.median('bare', 'model'):.2f}",
        ])  # fmt: skip
    heads = ["server", "clients", "answers/s", "p50 ms", "p99 ms", "rows of a batch", "CPU ms", "bare model, CPU ms"]
    return markdown(heads, rows)


def parts(all_series: dict[Key, Series], clients: int) -> str:
    """Returns where the time of a request goes, in milliseconds: first time that passes, then CPU time."""
    rows = []
    for (name, protocol, count), series in all_series.items():
        if count != clients:
            continue
        total = series.median("load", "mean")
        inside, runtime = (series.median("observed", key) / 1000 for key in ("request_latency", "runtime_latency"))
        batch = series.median("observed", "batching_session:queuing_latency") / 1000
        cpu = series.median("load", "cpu")
        known = [series.median("bare", key) for key in (f"read {protocol}", "model", f"write {protocol}")]
        rows.append([
            f"{name}, {protocol}", f"{total:.1f}", f"{inside - runtime + batch:.1f}", f"{runtime - batch:.1f}",
            f"{total - inside:.1f}", f"{cpu:.2f}", *(f"{part:.2f}" for part in known), f"{cpu - sum(known):.2f}",
        ])  # fmt: skip
    heads = ["server", "latency", "queue", "model", "transport", "CPU", "translation", "model", "reply", "transport"]
    return markdown(heads, rows)


def goals(all_series: dict[Key, Series], clients: int) -> str:
    rows = []
    for kind in dict.fromkeys(name.partition(",")[0] for name, _, _ in all_series):
        for protocol in ("gRPC", "HTTP"):
            batched = all_series.get((f"{kind}, batching", protocol, clients))
            single = all_series.get((kind, protocol, clients))
            if batched and single:
                cpu = [each["cpu"] for each in batched.load]
                model, alone = [each["model"] for each in batched.bare], [each["cpu"] for each in single.load]
                cost, saved = ratio(cpu, model), ratio(alone, cpu)
                row = f"CPU time, {kind}, {protocol}, {clients} clients"
                history.record("serve", row, "batching", "bare model", ratios(model, cpu))
                history.record("serve", row, "batching", "no batching", ratios(alone, cpu))
                rows.append([f"{kind}, {protocol}", f"{cost:.2f}", f"{saved:.2f}"])
    return markdown(["server", "batching: CPU relative to the bare model", "CPU saved by batching"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--clients", default="1,8,32", help="numbers of clients")
    parser.add_argument("--formats", default="savedmodel,onnx")
    parser.add_argument("--worker", choices=["client", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker == "client":
        return answer(client)
    if args.worker == "bare":
        return answer(lambda: bare(args.kind, args.folder))
    formats = args.formats.split(",")
    clients = [int(count) for count in args.clients.split(",")]
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        export(folder, args.formats)
        servers = []
        for kind in formats:
            for has_batches in (False, True):
                servers.append(Server(folder, kind, has_batches))
                stack.callback(servers[-1].close)
        flags = {kind: ("--worker=bare", f"--kind={kind}", f"--folder={folder}") for kind in formats}
        models = {kind: Worker(kind, __file__, *flags[kind]) for kind in formats}
        loader = Worker("client", __file__, "--worker=client")
        for worker in (loader, *models.values()):
            stack.callback(worker.close)
        all_series = measure(servers, models, loader, clients, args.rounds, args.seconds)
    print(f"\n{processor()}\n\n{latencies(all_series)}")
    print(f"\nWhere the milliseconds of a request go with {clients[-1]} clients:\n\n{parts(all_series, clients[-1])}")
    print(f"\nGoals with {clients[-1]} clients: at most 2, at least 2\n\n{goals(all_series, clients[-1])}")


if __name__ == "__main__":
    main()
