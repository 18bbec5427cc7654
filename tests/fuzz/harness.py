"""Runs readers of users' files on damaged inputs, in child processes with limits of memory, time and file size.

A case of a kind is determined by the seed, the kind and the case's index, so that it can be repeated alone. This file
imports neither TensorFlow nor tfzoo: children are forked from a process that has imported the modules that kinds name,
and that never computes anything.
"""

import collections
import dataclasses
import faulthandler
import importlib
import json
import os
import pathlib
import random
import resource
import select
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence

REFUSED, ACCEPTED = "refused", "accepted"
BATCH = 100  # Cases of one child, which forgets what they leave in memory.
MEMORY = 3 << 30  # Bytes of address space in addition to what the process has after its imports.
CPU_SECONDS = 60  # Of one case; most take milliseconds.
SILENCE = 900  # Seconds without any news from a child that waits for something, instead of computing.
FILE_BYTES = 1 << 30
LONGEST_MESSAGE = 2000


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of input.

    make: writes a valid input into a new folder. It runs in a child, and must be a function of nothing but the code.
    mutate: damages a copy of that folder; returns in a few words what it did.
    read: reads the folder as a command would, and returns what it read, as a value that == compares. It raises
      tfzoo.errors.UserError or CheckFailed to refuse the input.
    reference: another reader, such as the format's own library; must return the same value for what `read` accepts.
      None: a second `read` must return the same value.
    modules: imported before the children are forked.
    slow: whether `make` takes more than a few seconds, or `read` more than one.
    """

    make: Callable[[pathlib.Path], None]
    mutate: Callable[[pathlib.Path, random.Random], str]
    read: Callable[[pathlib.Path], object]
    reference: Callable[[pathlib.Path], object] | None = None
    modules: Sequence[str] = ()
    slow: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case: REFUSED, ACCEPTED, or another `result` with a `detail` of several lines."""

    kind: str
    index: int
    result: str
    detail: str = ""


class Fuzzer:
    """Runs cases and records each as a line of a file, from which a killed run continues."""

    def __init__(self, kinds: Mapping[str, Kind], seed: int, folder: pathlib.Path):
        """Reads the outcomes of an earlier run with the same seed in this folder.

        Args:
          kinds: name -> kind.
          seed: the same cases follow from the same seed.
          folder: receives the record, SEED.jsonl, and the inputs of failed cases, failed/KIND-SEED-INDEX.
        """
        self._kinds, self._seed, self._folder = kinds, seed, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._record = folder / f"{seed}.jsonl"
        lines = self._record.read_bytes().split(b"\n")[:-1] if self._record.exists() else []
        self.outcomes = {(each["kind"], each["index"]): Outcome(**each) for each in map(json.loads, lines)}
        # A line that a kill has cut off is overwritten.
        self._record.write_bytes(b"".join(line + b"\n" for line in lines))

    def run(self, cases: int) -> None:
        """Runs those of `cases` cases, evenly distributed over the kinds, that are not recorded yet."""
        for module in sorted({name for kind in self._kinds.values() for name in kind.modules}):
            importlib.import_module(module)
        for place, name in enumerate(self._kinds):
            mine = len(range(place, cases, len(self._kinds)))
            waiting = [i for i in range(mine) if (name, i) not in self.outcomes]
            with tempfile.TemporaryDirectory() as folder:
                valid = pathlib.Path(folder, "valid")
                if waiting:
                    self._make(name, valid)
                while waiting:
                    done = self._batch(name, valid, pathlib.Path(folder), waiting[:BATCH])
                    waiting = waiting[done:]

    def _make(self, name: str, valid: pathlib.Path) -> None:
        """Writes the valid input in a child, and checks that it is accepted.

        Raises:
          AssertionError: it is not.
        """

        def make() -> Iterator[Outcome]:
            resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            valid.mkdir()
            self._kinds[name].make(valid)
            yield self._outcome(name, -1, valid)

        outcomes = list(_forked(make, lambda: Outcome(name, -1, "ended without a word")))
        assert [outcome.result for outcome in outcomes] == [ACCEPTED], f"the undamaged input of {name}: {outcomes}"

    def _batch(self, name: str, valid: pathlib.Path, folder: pathlib.Path, indices: Sequence[int]) -> int:
        """Runs cases in one child, up to the first that ends the child; returns the number of recorded cases."""

        def work() -> Iterator[Outcome]:
            for index in indices:
                _give_time()
                yield self._outcome(name, index, self._damaged(name, valid, folder / "case", index)[0])

        waiting = list(indices)
        for outcome in _forked(work, lambda: Outcome(name, waiting[0], "")):
            if outcome.result not in (REFUSED, ACCEPTED):
                kept = self._folder / "failed" / f"{name}-{self._seed}-{outcome.index}"
                shutil.rmtree(kept, ignore_errors=True)
                _, damage = self._damaged(name, valid, kept, outcome.index)
                outcome = dataclasses.replace(outcome, detail=f"{damage}\n{outcome.detail}\ninput: {kept}")
            with open(self._record, "a") as file:
                file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
            self.outcomes[name, outcome.index] = outcome
            waiting.pop(0)
        return len(indices) - len(waiting)

    def _damaged(self, name: str, valid: pathlib.Path, copy: pathlib.Path, index: int) -> tuple[pathlib.Path, str]:
        """Writes the input of a case; returns its folder and what was done to it."""
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(valid, copy, symlinks=True)
        return copy, self._kinds[name].mutate(copy, random.Random(f"{self._seed}/{name}/{index}"))

    def _outcome(self, name: str, index: int, folder: pathlib.Path) -> Outcome:
        from tfzoo.errors import CheckFailed, UserError

        kind = self._kinds[name]
        try:
            value = kind.read(folder)
        except (UserError, CheckFailed) as error:
            message = str(error)
            if not message or "\n" in message or len(message) > LONGEST_MESSAGE:
                return Outcome(name, index, "refused, but not in one line", message[-LONGEST_MESSAGE:])
            return Outcome(name, index, REFUSED, message)
        except BaseException:
            return Outcome(name, index, "internal error", traceback.format_exc()[-3000:])
        try:
            expected = (kind.reference or kind.read)(folder)
        except Exception:
            return Outcome(name, index, "accepted what the reference refuses", traceback.format_exc()[-3000:])
        if value != expected:
            return Outcome(name, index, "accepted with another result", f"{value!r:.1000}\n{expected!r:.1000}")
        return Outcome(name, index, ACCEPTED)

    def table(self) -> str:
        """Returns the counts by kind, and the failed cases."""
        lines = [f"{'kind':<24}{'tried':>8}{'refused in one line':>22}{'accepted with equal results':>30}{'else':>8}"]
        for name in [*self._kinds, "all"]:
            mine = [each for each in self.outcomes.values() if name in (each.kind, "all")]
            counts = collections.Counter(each.result for each in mine)
            refused, accepted = counts[REFUSED], counts[ACCEPTED]
            lines.append(f"{name:<24}{len(mine):>8}{refused:>22}{accepted:>30}{len(mine) - refused - accepted:>8}")
        for each in self.failures():
            lines.append(f"\n{each.kind}, case {each.index}, seed {self._seed}: {each.result}\n{each.detail}")
        return "\n".join(lines)

    def failures(self) -> list[Outcome]:
        return [each for each in self.outcomes.values() if each.result not in (REFUSED, ACCEPTED)]


def _give_time() -> None:
    """Lets this process compute for CPU_SECONDS more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _limit() -> None:
    """Sets the limits of this process, which programs that it starts may raise for themselves."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _give_time()


def _forked(work: Callable[[], Iterator[Outcome]], current: Callable[[], Outcome]) -> Iterator[Outcome]:
    """Runs `work` in a child with limits and yields its outcomes.

    If the child dies, or is silent for SILENCE seconds and is killed, its last outcome is that of the `current` case,
    with its end as the result.
    """
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            os.close(reading)
            code = 1
            try:
                # What libraries print belongs to the failed case, or to nobody.
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                faulthandler.enable(output)
                _limit()
                for outcome in work():
                    os.write(writing, json.dumps(dataclasses.asdict(outcome)).encode() + b"\n")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)
        try:
            rest, silent = b"", False
            until = time.monotonic() + SILENCE
            while True:
                readable, _, _ = select.select([reading], [], [], max(0.0, until - time.monotonic()))
                if not readable:
                    silent = True
                    os.kill(child, signal.SIGKILL)
                part = os.read(reading, 1 << 16)
                if not part:
                    break
                until = time.monotonic() + SILENCE
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    yield Outcome(**json.loads(line))
        finally:
            os.close(reading)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            output.seek(0)
            # After a fatal signal, Python also lists every extension module.
            printed = output.read().decode(errors="replace").partition("\nExtension modules:")[0][-3000:]
            end = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            result = f"silent for {SILENCE} s" if silent else end
            yield dataclasses.replace(current(), result=result, detail=printed)
