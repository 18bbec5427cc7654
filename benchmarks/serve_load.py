"""Latencies of the embedded server under overload, and while versions of another model are swapped:

    python benchmarks/serve_load.py [--seconds=10] [--swaps=20] [--sizes=6x512,2x256]

A classifier of the given layers and width, as in serve.py, is served as two models, `texts` and `other`. The client
(serving/load_test.py) sends requests at random times (an open loop), so that a server that stalls is charged for every
request that it delays.

    alone      a tenth of the capacity, which two clients that wait for their answers find out
    onset      twice the capacity, from its beginning: the server takes it for a burst, and lets many requests wait
    overload   twice the capacity, after the onset: the server refuses what it could only answer late
    swaps      a third of the capacity, first without swaps, then while new versions of `other` appear; every fourth is
               broken and must not replace the one before

Latencies are those of the requests that were answered. The goals: the 99th percentile under overload is at most twice
that alone, and with swaps at most twice that without; no request fails during swaps. A request to 2x256 costs the
server less time in the model than elsewhere, and the client as much as the server; in one to 6x512, the model takes
nearly all.
"""

import argparse
import collections
import contextlib
import pathlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence

import history
import numpy as np
from serve import NAME, Server, export, text
from side_by_side import ROOT, markdown, processor

sys.path.insert(0, str(ROOT / "serving"))
import load_test

OTHER = "other"
ONSET = 4.0  # Seconds.
HEADS = ["load", "requests/s", "answered", "refused", "failed", "p50 ms", "p99 ms", "p99 relative"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--swaps", type=int, default=20, help="of versions; 0 skips them")
    parser.add_argument("--sizes", default="6x512,2x256", help="layers and width of the models")
    parser.add_argument("--rounds", type=int, default=3, help="of overload; 0 skips it")
    args = parser.parse_args()
    print(processor())
    for size in args.sizes.split(","):
        layers, width = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name).resolve()
            export(folder, "savedmodel", layers, width)
            shutil.copytree(folder / "savedmodel" / NAME, folder / "savedmodel" / OTHER)
            if args.rounds:
                print(f"\n{size}\n\n{overload(folder, size, args.seconds, args.rounds)}", flush=True)
            if args.swaps:
                print(f"\n{size}, {args.swaps} swaps\n\n{swaps(folder, args.swaps, args.seconds)}", flush=True)


def overload(folder: pathlib.Path, size: str, seconds: float, rounds: int) -> str:
    """Returns the table of `rounds` turns of a small load and an overload."""
    rows, ratios = [], []
    with serving(folder) as (server, target):
        rate = capacity(target, server)
        for _ in range(rounds):
            alone = load_test.measure(target, load_test.Load(rate=rate / 10), 2 * seconds, pid=server.pid)
            onset = load_test.measure(target, load_test.Load(rate=2 * rate), ONSET, pid=server.pid)
            over = load_test.measure(target, load_test.Load(rate=2 * rate), seconds, pid=server.pid)
            ratios.append(over.percentile(99) / alone.percentile(99))
            rows += [row("alone", alone), row("onset", onset), row("overload", over, ratios[-1])]
    history.record("serve_load", f"99th percentile, {size}", "overload", "alone", [1 / r for r in ratios])
    return markdown(HEADS, rows)


def swaps(folder: pathlib.Path, count: int, seconds: float) -> str:
    """Returns the table of a load without and with swaps of the other model."""
    config = folder / "models.config"
    models = "".join(
        f'config {{ name: "{name}" base_path: "{folder / "savedmodel" / name}" model_platform: "tensorflow" }} '
        for name in (NAME, OTHER)
    )
    config.write_text(f"model_config_list {{ {models} }}")
    with serving(folder, f"--model_config_file={config}", "--max_num_load_retries=0") as (server, target):
        load = load_test.Load(rate=capacity(target, server) / 3)
        before = load_test.measure(target, load, 2 * seconds, pid=server.pid)
        swapping = threading.Thread(target=swap, args=(folder / "savedmodel" / OTHER, server, count))
        swapping.start()
        parts: list[load_test.Result] = []
        while swapping.is_alive():
            parts.append(load_test.measure(target, load, seconds / 2, pid=server.pid, seed=len(parts)))
        swapping.join()
    during = together(parts)
    return markdown(
        HEADS, [row("no swaps", before), row("swaps", during, during.percentile(99) / before.percentile(99))]
    )


def together(parts: Sequence[load_test.Result]) -> load_test.Result:
    """Returns one result for a load that was measured in parts."""
    return load_test.Result(
        parts[0].load,
        sum(part.seconds for part in parts),
        np.sort(np.concatenate([part.latencies for part in parts])),
        sum((part.codes for part in parts), collections.Counter()),
        sum(part.server_cpu or 0.0 for part in parts),
        sum(part.client_cpu for part in parts),
    )


def swap(base: pathlib.Path, server: Server, count: int) -> None:
    """Adds versions to a model, every fourth of which is broken, and waits until the server has tried each."""
    for version in range(2, 2 + count):
        is_broken = version % 4 == 0
        with tempfile.TemporaryDirectory(dir=base.parent) as partial:
            shutil.copytree(base / "1", pathlib.Path(partial) / "1")
            if is_broken:
                (pathlib.Path(partial) / "1" / "saved_model.pb").write_bytes(b"broken")
            (pathlib.Path(partial) / "1").rename(base / str(version))
        end = time.monotonic() + 60
        wanted = "END" if is_broken else "AVAILABLE"
        while wanted not in server.state(OTHER, version):
            if time.monotonic() > end:
                raise RuntimeError(f"version {version} of {OTHER} does not become {wanted}")
            time.sleep(0.2)


@contextlib.contextmanager
def serving(folder: pathlib.Path, *flags: str) -> Iterator[tuple[Server, load_test.Target]]:
    server = Server(folder, "savedmodel", False, *flags)
    try:
        yield server, load_test.Target(server.address("gRPC"), NAME, {"text": [text()]})
    finally:
        server.close()


def capacity(target: load_test.Target, server: Server) -> float:
    """Returns how many requests per second the server answers to clients that wait for their answers."""
    load_test.measure(target, load_test.Load(clients=2), 2.0)  # Warms up.
    result = load_test.measure(target, load_test.Load(clients=2), 5.0, pid=server.pid)
    return result.codes["OK"] / result.seconds


def row(name: str, result: load_test.Result, relative: float | None = None) -> list[str]:
    refused = sum(count for code, count in result.codes.items() if code in load_test.REFUSED)
    answered = result.codes["OK"]
    failed = sum(result.codes.values()) - refused - answered
    return [
        name, f"{result.load.rate:.0f}", str(answered), str(refused), str(failed), f"{result.percentile(50):.1f}",
        f"{result.percentile(99):.1f}", "" if relative is None else f"{relative:.2f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
