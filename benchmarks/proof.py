"""The cost of exporting a model with its proof.

    .venv/bin/python benchmarks/proof.py [--against=FOLDER] [--rounds=3]  # BERT-base: export and replay
    .venv/bin/python benchmarks/proof.py --isolation                      # replays here and in a limited process
    .venv/bin/python benchmarks/proof.py --large=600                      # millions of parameters, external weights

The first exports a SavedModel and ONNX in a new process, in turns with the tfzoo in --against, a checkout of another
version. CPU time includes the replaying processes. Memory is stated in units of the model's weights: the peak of the
exporting process above importing TensorFlow; that of the largest process that replays an artifact; and the largest sum
over all processes at one moment. The latter two include what the processes import (pages that they share count once).
"""

import argparse
import contextlib
import json
import math
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from side_by_side import ROOT, environment, markdown, processor, ratio, ratios


def peak_bytes() -> int:
    """Returns the peak memory of this process."""
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def tokenizer(size: int) -> Any:
    """Returns a tokenizer of letters with as many tokens as a model has."""
    from tfzoo.text.wordpiece import WordPiece

    letters = [chr(i) for i in range(97, 123)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return WordPiece(vocab + [f"[unused{i}]" for i in range(size - len(vocab))])


def isolation(name: str, formats: list[str], rounds: int) -> None:
    """Exports a model; prints the time of a replay in this process, which has loaded the runtime, and in one of its own
    with limits, as verify.py does it."""
    import tfzoo
    from tfzoo.export import artifact, verify

    def work() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    def seconds(replay) -> tuple[float, float]:
        """Returns the wall-clock and the CPU seconds, those of child processes included."""
        begin, before = time.perf_counter(), work()
        replay()
        return time.perf_counter() - begin, work() - before

    def alone(folder: pathlib.Path) -> None:
        assert "ok" in verify.verify_alone(folder, {})

    model = tfzoo.build(name, heads=("lm",))
    (ROOT / "build").mkdir(exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        made = artifact.export(model, tokenizer(model.config.vocab_size), folder, formats=formats)
        for kind, path in made.items():
            verify.verify(path)
            times = [
                (seconds(lambda p=path: verify.verify(p)), seconds(lambda p=path: alone(p))) for _ in range(rounds)
            ]
            here, there = (list(map(statistics.median, zip(*each))) for each in zip(*times))
            rows.append([kind, *(f"{value:.1f}" for pair in zip(here, there) for value in pair)])
    print(f"\n{name}: seconds of a replay")
    print(markdown(["", "here", "in its own process", "CPU, here", "CPU, in its own process"], rows))


def prove(name: str, formats: list[str]) -> None:
    """Exports a model and replays it, and writes time and memory as JSON; runs in a process of its own."""
    with contextlib.suppress(ImportError):  # Earlier versions have no such module.
        from tfzoo.export import memory

        memory.return_freed()  # As python -m tfzoo.export does.
    import tfzoo
    from tfzoo.export import artifact

    def work() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    before = peak_bytes()
    model = tfzoo.build(name, heads=("lm",))
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        begin, cpu = time.perf_counter(), work()
        artifact.export(model, tokenizer(model.config.vocab_size), folder, formats=formats)
        result = {"seconds": time.perf_counter() - begin, "cpu": work() - cpu}
    print(json.dumps(result | {"weights": 4 * model.count_params(), "before": before, "peak": peak_bytes()}))


class Memory(threading.Thread):
    """Samples the memory of a process and of all that it starts.

    Attributes:
      peaks: command line -> the largest number of bytes that a process had, shared pages divided by their users.
      together: the largest sum over all processes at one moment.
    """

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.together, self.ended = pid, 0, threading.Event()
        self.peaks: dict[str, int] = {}
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.2):
            found = dict(self._sample())
            for command, size in found.items():
                self.peaks[command] = max(self.peaks.get(command, 0), size)
            self.together = max(self.together, sum(found.values()))

    def _sample(self) -> Iterator[tuple[str, int]]:
        pids = [str(self.pid)]
        for pid in pids:
            with contextlib.suppress(OSError, IndexError):  # It has ended in the meantime.
                for thread in pathlib.Path(f"/proc/{pid}/task").iterdir():
                    pids += (thread / "children").read_text().split()
                command = pathlib.Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
                text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
                (size,) = re.findall(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
                yield command, 1024 * int(size)


def proof(name: str, formats: list[str], against: pathlib.Path | None, rounds: int) -> None:
    """Runs `prove` with this version of tfzoo and with that in the folder `against`, in turns."""
    import history  # It imports tfzoo, of which `prove` may need another version.

    versions = {"this version": ROOT} | ({str(against.name): against.resolve()} if against else {})
    found: dict[str, list[dict[str, Any]]] = {version: [] for version in versions}
    for turn in range(rounds):
        for version in list(versions)[:: 1 if turn % 2 == 0 else -1]:
            command = [sys.executable, __file__, "--prove", f"--model={name}", f"--formats={','.join(formats)}"]
            variables = environment() | {"PYTHONPATH": str(versions[version])}
            process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)
            memory = Memory(process.pid)
            answer, _ = process.communicate()
            memory.ended.set()
            result = json.loads(answer.splitlines()[-1])
            children = [size for command, size in memory.peaks.items() if "verify.py" in command]
            result |= {"child": max(children, default=0), "together": memory.together}
            found[version].append(result)
    print(processor())
    rows = []
    for version, own in found.items():
        base, weights = found["this version"], own[0]["weights"]
        row = [f"{statistics.median(each[key] for each in own):.1f}" for key in ("seconds", "cpu")]
        row.append(", ".join(f"{ratio(*([e[key] for e in x] for x in (base, own))):.2f}" for key in ("seconds", "cpu")))
        row.append(f"{max(each['peak'] - each['before'] for each in own) / weights:.2f}")
        row += [f"{max(each[key] for each in own) / weights:.2f}" for key in ("child", "together")]
        rows.append([version, *row])
        if own is not base:
            speeds = ratios([each["seconds"] for each in own], [each["seconds"] for each in base])
            history.record("proof", f"{name}, {', '.join(formats)}", "tfzoo", version, speeds)
    print(f"{name}, {', '.join(formats)}, {found['this version'][0]['weights']:,} bytes of weights")
    heads = ["", "s", "CPU s", "this version relative to it: time, CPU", "exporting process", "largest replay", "sum"]
    print(markdown(heads, rows))


def large(millions: int) -> None:
    """Exports a decoder with so many parameters; prints the memory above importing."""
    import numpy as np

    from tfzoo import models, nn
    from tfzoo.export import artifact

    width, layers = 1024, 24
    intermediate = math.ceil(1e6 * millions / layers / width / 3 / 64) * 64
    before = peak_bytes()
    with nn.unset_weights():
        sizes: dict[str, Any] = dict(hidden_size=width, num_layers=layers, num_heads=16, num_kv_heads=4, head_dim=64)
        model = models.build("llama3_8b", **sizes, intermediate_size=intermediate, vocab_size=1000)
    block = np.random.default_rng(0).normal(scale=0.02, size=100_003).astype(np.float32)
    for weight in model.weights:
        weight.assign(np.resize(block, weight.shape))
    weights, loaded = 4 * model.count_params(), peak_bytes()
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        begin = time.perf_counter()
        made = artifact.export(model, None, folder, formats=["onnx"], sequence_length=64)["onnx"]
        seconds = time.perf_counter() - begin
        data = (made / "model.onnx.data").stat().st_size
    peak = peak_bytes()
    print(f"weights {weights:,} bytes; model.onnx.data {data:,}; exported and replayed in {seconds:.0f} s")
    print(f"peak above importing: {(loaded - before) / weights:.2f} x the weights built, "
          f"{(peak - before) / weights:.2f} x exported")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert_base")
    parser.add_argument("--formats", default="savedmodel,onnx")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=pathlib.Path, help="a checkout of another version")
    parser.add_argument("--isolation", action="store_true")
    parser.add_argument("--large", type=int, help="millions of parameters")
    parser.add_argument("--prove", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    formats = flags.formats.split(",")
    if flags.prove:  # PYTHONPATH has the version to measure.
        prove(flags.model, formats)
        return
    sys.path.insert(0, str(ROOT))
    if flags.large:
        large(flags.large)
    elif flags.isolation:
        isolation(flags.model, formats, flags.rounds)
    else:
        proof(flags.model, formats, flags.against, flags.rounds)


if __name__ == "__main__":
    main()
