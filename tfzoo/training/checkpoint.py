"""Checkpoints that are complete, written atomically, and verified when they are read.

    RUN/checkpoints/00001200/variables.safetensors  every variable of the models and the optimizer, including seeds
    RUN/checkpoints/00001200/checkpoint.json        step, the caller's state, names, dtypes, shapes, checksums, run's id
    RUN/best -> checkpoints/00000900

A checkpoint is written under a temporary name and then renamed, so that it is never incomplete. An interim checkpoint
is saved when a run is stopped between two regular checkpoints. The safetensors format has no checksum and would load a
flipped bit, so checkpoint.json contains the SHA-256 of variables.safetensors as well as its own.
"""

import collections
import concurrent.futures
import copy
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging

from tfzoo import files, json_files
from tfzoo.errors import UserError
from tfzoo.json_files import Field, Fields
from tfzoo.objectives.objective import MAIN
from tfzoo.weights import safetensors_files
from tfzoo.weights.tensors import NAMES

FORMAT = 1
VARIABLES, RECORD = "variables.safetensors", "checkpoint.json"
MAX_RECORD_BYTES = 64 << 20
_STEP = re.compile(r"\d{8,}")
_FIELDS: Fields = {
    "step": Field(int, low=0, required=True),
    "state": Field(dict, required=True),
    "interim": Field(bool),  # Not in files of earlier versions, like the next one.
    "run": Field(str),
    "bytes": Field(int, low=0, required=True),
    "sha256": Field(str, required=True),
    "variables": Field(dict, items=Field(str), required=True),
}

Contents = tuple[int, dict[str, Any], dict[str, np.ndarray]]  # step, state, variables


class _Damaged(Exception):
    """A checkpoint is damaged; the message names the file and the damage."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: RUN/checkpoints.
      keep: how many to keep, in addition to the one that RUN/best points to.
      read_only: for reading a run that another process may be writing: nothing is cleaned up, and `save` and
        `mark_best` raise an error. Otherwise, leftovers of killed writers are removed on construction.
      run_id: the id of the run, which every checkpoint must have; None for a run of an earlier version, without one.

    Raises:
      UserError: the folder is a symbolic link.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 2, read_only: bool = False, *, run_id: str | None = None):
        self._thread = concurrent.futures.ThreadPoolExecutor(1)  # The interpreter waits for it on exit.
        self._writing: concurrent.futures.Future[None] | None = None
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self._folder = pathlib.Path(folder)
        self._best = self._folder.parent / "best"
        self._keep = keep
        self._read_only, self._run_id = read_only, run_id
        files.check_not_a_link(self._folder)
        self._damaged: set[int] = set()
        if not read_only:
            for written in (self._folder, *map(self.path, self.steps())):
                files.remove_partials(written)
            for link in self._best.parent.glob(f"{self._best.name}.*{files.PARTIAL}"):
                link.unlink(missing_ok=True)

    def steps(self, interim: bool = True) -> list[int]:
        """Returns the steps of all checkpoints, including damaged and, with `interim`, interim ones, oldest first."""
        if not self._folder.is_dir():
            return []
        steps = sorted(int(entry.name) for entry in self._folder.iterdir() if _STEP.fullmatch(entry.name))
        return [step for step in steps if interim or not self._is_interim(step)]

    def path(self, step: int) -> pathlib.Path:
        """Returns the folder of a step's checkpoint, which need not exist."""
        return self._folder / f"{step:08d}"

    def save(
        self,
        step: int,
        variables: Mapping[str, Any],
        state: Mapping[str, Any],
        best: bool = False,
        wait: bool = True,
        interim: bool = False,
    ) -> pathlib.Path:
        """Writes a checkpoint, then removes the oldest ones beyond `keep`.

        An existing checkpoint is left unchanged, except that an interim checkpoint which is saved again as a regular
        one becomes regular, with the new `state`.

        Args:
          step: 0 or more.
          variables: name -> keras.Variable, tf.Variable or array. Must not be called inside a tf.function.
          state: a JSON-serializable mapping; tuples are restored as lists.
          best: whether RUN/best points to this checkpoint once it is written.
          wait: False copies the variables and writes them in a background thread; `wait` or the next save waits for
            that thread and raises its error.
          interim: the checkpoint lies between two regular ones because the run is stopped. It is kept until the next
            one is written, and rollback does not return to it.

        Raises:
          UserError: the file system rejects the write (a full disk); earlier checkpoints remain intact.
        """
        self._must_write()
        self.wait()
        arrays: dict[str, np.ndarray] = {}
        if step in self._damaged or not self.path(step).exists():
            arrays = {name: _to_numpy(variable, keep=not wait) for name, variable in variables.items()}
        record: dict[str, Any] = {"format": FORMAT, "step": int(step), "state": copy.deepcopy(dict(state))}
        record["interim"] = interim
        if self._run_id is not None:
            record["run"] = self._run_id
        if wait:
            self._write(step, arrays, record, best)
        else:
            self._writing = self._thread.submit(self._write, step, arrays, record, best)
        return self.path(step)

    def wait(self) -> None:
        """Waits until the last `save` is written.

        Raises:
          UserError: the error of that `save`.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step: int, arrays: dict[str, np.ndarray], record: dict[str, Any], best: bool) -> None:
        path = self.path(step)
        with files.writing(path):
            if step in self._damaged and path.exists():
                self._remove(step)  # It was read and found damaged; the new checkpoint replaces it.
            self._prune(*self._damaged)  # Removes what the last save could not remove because it was killed.
            if not path.exists():
                self._write_folder(path, arrays, record)
            elif self._is_interim(step) and not record["interim"]:
                files.atomic_write(path / RECORD, _encode(_read_record(path) | record))
            if best:
                self.mark_best(step)
            self._prune(step)

    @staticmethod
    def _write_folder(path: pathlib.Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
        with files.atomic_folder(path) as partial:
            sources = [
                (name, array.shape, NAMES[array.dtype], functools.partial(_itself, array))
                for name, array in arrays.items()
            ]
            safetensors_files.write_file(partial / VARIABLES, sources, {})
            record |= {
                "bytes": (partial / VARIABLES).stat().st_size,
                "sha256": files.sha256_of_written(partial / VARIABLES),
                "variables": {name: _signature(array) for name, array in arrays.items()},
            }
            (partial / RECORD).write_bytes(_encode(record))

    def restore(self, variables: Mapping[str, Any], interim: bool = True) -> tuple[int, dict[str, Any]] | None:
        """Assigns the newest intact checkpoint to `variables`: either all of them or, on an error, none.

        A damaged checkpoint causes a warning, and the previous one is used. If `interim` is False, an interim
        checkpoint is used only if no regular one is intact.

        Returns:
          (step, state), or None if there are no checkpoints.

        Raises:
          UserError: there are checkpoints but none is intact, or the names, shapes or dtypes of the newest intact one
            differ from those of `variables`.
        """
        if not self.steps():
            return None
        step, state, arrays = self._newest(interim)
        assign_all(self.path(step), variables, arrays)
        return step, state

    def read(self, path: str | os.PathLike | None = None) -> Contents:
        """Reads and verifies a checkpoint.

        Args:
          path: a checkpoint's folder, or RUN/best; None selects the newest intact one, like `restore`.

        Returns:
          (step, state, variables as arrays).

        Raises:
          UserError: there is no checkpoint, or the requested one is damaged.
        """
        if path is not None:
            try:
                return _read(pathlib.Path(path).resolve(), self._run_id)
            except _Damaged as damage:
                raise UserError(f"{damage}; choose another checkpoint") from None
        if not self.steps():
            raise UserError(f"{self._folder}: contains no checkpoint; specify the folder of a run that saved one")
        return self._newest()

    def remove_after(self, last: int) -> None:
        """Removes all checkpoints after step `last`, and RUN/best if it points to one of them: the run was rolled back,
        and its later steps will differ.

        Raises:
          UserError: the file system rejects it.
        """
        self._must_write()
        with files.writing(self._folder):
            if (self.best_step() or 0) > last:
                self._best.unlink()
            for step in self.steps():
                if step > last:
                    self._remove(step)

    def mark_best(self, step: int) -> None:
        """Atomically points RUN/best to a step's checkpoint. The old best one is removed by the next save."""
        self._must_write()
        if not self.path(step).is_dir():
            raise ValueError(f"{self.path(step)} does not exist, so it cannot be the best checkpoint")
        partial = self._best.with_name(f"{self._best.name}.{os.getpid()}{files.PARTIAL}")
        with files.writing(self._best):
            partial.unlink(missing_ok=True)
            partial.symlink_to(os.path.join(self._folder.name, self.path(step).name))
            os.replace(partial, self._best)

    def best_step(self) -> int | None:
        """Returns the step that RUN/best points to; None if there is no such link.

        Raises:
          UserError: RUN/best is something else.
        """
        try:
            folder, _, name = os.readlink(self._best).rpartition("/")
        except FileNotFoundError:
            return None
        except OSError:
            folder = name = ""
        if folder != self._folder.name or not _STEP.fullmatch(name):
            raise UserError(f"{self._best}: is not a link to one of this run's checkpoints; remove it")
        return int(name)

    def selected(self, path: str | os.PathLike | None) -> str | os.PathLike | None:
        """Returns `path`, or else the folder of the best checkpoint, if there is one; the argument of `read`."""
        best = self.best_step() if path is None else None
        return path if best is None or not self.path(best).exists() else self.path(best)

    def _must_write(self) -> None:
        if self._read_only:
            raise ValueError(f"{self._folder} was opened with read_only=True")

    def _is_interim(self, step: int) -> bool:
        try:
            return _read_record(self.path(step)).get("interim", False)
        except (_Damaged, UserError):
            return False

    def _newest(self, interim: bool = True) -> Contents:
        damages = []
        steps = self.steps()
        if not interim:
            steps = sorted(steps, key=lambda step: (not self._is_interim(step), step))
        for step in reversed(steps):
            try:
                contents = _read(self.path(step), self._run_id)
            except _Damaged as damage:
                logging.warning("%s; falling back to the previous checkpoint", damage)
                self._damaged.add(step)
                damages.append(str(damage))
            else:
                self._damaged.discard(step)
                return contents
        raise UserError(
            f"{self._folder}: none of its {len(damages)} checkpoints can be read ({damages[0]}); "
            "restore one from a copy, or start a new run in another folder"
        )

    def _prune(self, *also: int) -> None:
        """Removes all checkpoints except the newest ones, the best one and `also`. An interim checkpoint is kept only
        while it is the newest; at least one regular checkpoint is always kept."""
        intact = [step for step in self.steps() if step not in self._damaged]
        regular = [step for step in intact if not self._is_interim(step)]
        newest_interim = [step for step in intact[-1:] if step not in regular]
        num_regular = max(1, self._keep - len(newest_interim))
        kept = {*also, self.best_step(), *newest_interim, *regular[-num_regular:]}
        for step in self.steps():
            if step not in kept:
                self._remove(step)

    def _remove(self, step: int) -> None:
        files.remove_folder(self.path(step))
        self._damaged.discard(step)


def assign_all(path: str | os.PathLike, variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Assigns the arrays read from the checkpoint at `path` to `variables`.

    Raises:
      UserError: names, dtypes or shapes differ; in that case nothing is assigned.
    """
    _compare(pathlib.Path(path), variables, arrays)
    for name, variable in variables.items():
        if isinstance(variable, np.ndarray):
            variable[...] = arrays[name]
        else:
            variable.assign(arrays[name])


def model_variables(models, optimizer=None) -> dict[str, Any]:
    """Returns every variable of built models and of their built optimizer, under names that are equal in all processes.

    Keras numbers unnamed layers with a counter of the whole process ("dense_7", "adamw_1"). Here, such numbers count
    within one parent, in the order of `model.variables`, so that the second model that a process builds has the same
    names as the first. The seed states of dropout are included.

    Args:
      models: a model, or role -> model. A variable that several models share appears under a name for each of them, so
        that each model can be read alone.
      optimizer: the optimizer of these models' variables, or None.

    Returns:
      "model/..." and "optimizer/..." -> keras.Variable. The name of an optimizer slot is "optimizer/" + the name of its
      model variable + "/momentum" or another name that Keras uses. For roles other than MAIN the prefixes are
      "model.ROLE/" and "optimizer.ROLE/": see `prefixes`.

    Raises:
      ValueError: a model or the optimizer is not built yet, so that variables would be missing.
    """
    by_role = models if isinstance(models, Mapping) else {MAIN: models}
    if not all(model.built for model in by_role.values()) or (optimizer is not None and not optimizer.built):
        raise ValueError("build the model and the optimizer before requesting their variables")
    variables: dict[str, Any] = {}
    trained: dict[str, list[_Trained]] = {}  # The start of a slot's name, "bert_layer_0_kernel" -> its variables.
    for role, model in by_role.items():
        automatic = {
            layer.name
            for layer in model._flatten_layers()
            if re.sub(r"_\d+$", "", layer.name) == _snake_case(type(layer).__name__)
        }
        numbered = _Renumbered(automatic)
        prefix, slots = prefixes(role)
        for variable in model.variables:
            name = numbered(variable.path)
            alike = trained.setdefault(variable.path.replace("/", "_"), [])
            same = next((one for one in alike if one.variable is variable), None)
            if same is None:
                alike.append(same := _Trained(variable, []))
            same.owners.append((slots, name))
            _add(variables, f"{prefix}{name}", variable)
    if optimizer is not None:
        _add_slots(variables, trained, optimizer)
    expected = [variable for model in by_role.values() for variable in model.variables]
    expected += optimizer.variables if optimizer is not None else []
    assert {id(variable) for variable in variables.values()} == set(map(id, expected))
    return variables


def prefixes(role: str) -> tuple[str, str]:
    """Returns the prefixes of the names of a role's variables and of their optimizer slots."""
    suffix = "" if role == MAIN else f".{role}"
    return f"model{suffix}/", f"optimizer{suffix}/"


@dataclasses.dataclass(frozen=True)
class _Trained:
    """A variable, and its (prefix of slots, name) in each of the models that contain it."""

    variable: Any
    owners: list[tuple[str, str]]


def _add_slots(variables: dict[str, Any], trained: Mapping[str, list[_Trained]], optimizer) -> None:
    """Adds an optimizer's variables; the name of a slot contains the name of its model variable."""
    inner = getattr(optimizer, "inner_optimizer", None)  # Of a LossScaleOptimizer.
    # Models of one family have variables with equal paths; Keras creates slots in the order of the trained variables.
    order = {id(variable): i for i, variable in enumerate((inner or optimizer)._trainable_variables)}
    for alike in trained.values():
        alike.sort(key=lambda one: order.get(id(one.variable), len(order)))
    seen: collections.Counter[str] = collections.Counter()
    for variable in optimizer.variables:
        owner, _, name = variable.path.rpartition("/")  # Adafactor's variables have no owner in their paths.
        within = "inner/" if inner and owner == inner.name else ""
        starts = [start for start in trained if name.startswith(f"{start}_")]
        if not starts:
            _add(variables, f"optimizer/{within}{name}", variable)
            continue
        start = max(starts, key=len)
        alike = trained[start]
        for slots, variable_name in alike[min(seen[name], len(alike) - 1)].owners:
            _add(variables, f"{slots}{within}{variable_name}/{name[len(start) + 1 :]}", variable)
        seen[name] += 1


class _Renumbered:
    """Rewrites variable paths so that automatic names are numbered within their parent."""

    def __init__(self, automatic: set[str]):
        self._automatic = automatic
        self._names: dict[tuple[str, str], str] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def __call__(self, path: str) -> str:
        parent = ""
        for part in path.split("/"):
            if (parent, part) not in self._names:
                name = part
                if part in self._automatic or re.fullmatch(r"seed_generator(_\d+)?", part):
                    base = re.sub(r"_\d+$", "", part)
                    count = self._counts.setdefault((parent, base), 0)
                    self._counts[parent, base] += 1
                    name = f"{base}_{count}" if count else base
                self._names[parent, part] = name
            parent = f"{parent}/{self._names[parent, part]}".lstrip("/")
        return parent


def _add(variables: dict[str, Any], name: str, variable: Any) -> None:
    """Adds a variable; a duplicate name, which Keras allows, gets a number appended."""
    unique, count = name, 1
    while unique in variables:
        unique, count = f"{name}#{count}", count + 1
    variables[unique] = variable


def _snake_case(name: str) -> str:
    """Converts a class name to a layer name as Keras does."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _itself(array: np.ndarray) -> np.ndarray:
    return array


def _to_numpy(variable: Any, keep: bool) -> np.ndarray:
    """Returns a variable's values; `keep` makes a copy that stays unchanged when the variable changes."""
    # A keras.Variable created under a tf.distribute strategy wraps a variable that only .numpy() can read.
    variable = getattr(variable, "value", variable) if hasattr(variable, "path") else variable
    if hasattr(variable, "numpy"):
        variable, keep = variable.numpy(), False  # Already a copy.
    # Not np.ascontiguousarray, which converts a scalar to an array with one element.
    return np.array(variable, order="C") if keep else np.asarray(variable, order="C")


def _signature(variable: Any) -> str:
    """Returns the dtype and shape of a variable or an array: "float32 [2, 3]"."""
    return f"{getattr(variable.dtype, 'name', variable.dtype)} {[int(size) for size in variable.shape]}"


def _encode(record: dict[str, Any]) -> bytes:
    """Returns the unique encoding of a record with its checksum: any other byte sequence is damage."""
    record = json.loads(json.dumps(record))  # Converts numeric keys to strings before they are sorted.
    record["checksum"] = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return (json.dumps(record, sort_keys=True, indent=1) + "\n").encode()


def _read_record(folder: pathlib.Path) -> dict[str, Any]:
    """Reads and verifies checkpoint.json, and returns it without its checksum.

    Raises:
      _Damaged: the file differs from what was written.
    """
    record_path = folder / RECORD
    if folder.is_symlink():
        raise _Damaged(f"{folder}: is a symbolic link, which is not followed here")
    try:
        data = files.read_bytes(record_path, max_bytes=MAX_RECORD_BYTES, follow=False)
    except UserError as error:
        raise _Damaged(str(error).partition(";")[0]) from None
    try:
        record = json.loads(data)
        claimed = record.pop("checksum")
        intact = _encode(record) == data and bool(claimed)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        intact = False
    if not intact:
        raise _Damaged(f"{record_path}: is corrupted: its content does not match its checksum")
    if record.get("format") != FORMAT:
        shown = json_files.show(record.get("format"))
        raise UserError(f"{record_path}: has format {shown}, but this tfzoo reads {FORMAT}; update tfzoo")
    json_files.check(record, _FIELDS, record_path)
    if str(record["step"]) != folder.name.lstrip("0").rjust(1, "0"):
        raise _Damaged(f"{record_path}: belongs to step {record['step']}, not {folder.name}")
    return record


def _read(folder: pathlib.Path, run_id: str | None) -> Contents:
    """Reads and verifies one checkpoint.

    Raises:
      _Damaged: the checkpoint differs from what was written.
      UserError: it was saved by another run.
    """
    record, variables_path = _read_record(folder), folder / VARIABLES
    if run_id is not None and record.get("run") != run_id:
        raise UserError(
            f"{folder}: was saved by another run (id {record.get('run')}, not {run_id}); to start from its weights, "
            "specify the folder of its run with --init_from, or remove it"
        )
    try:
        size = variables_path.stat(follow_symlinks=False).st_size
    except OSError as error:
        raise _Damaged(f"{variables_path}: {(error.strerror or str(error)).lower()}") from None
    if variables_path.is_symlink():
        raise _Damaged(f"{variables_path}: is a symbolic link, which is not followed here")
    if size != record["bytes"]:
        raise _Damaged(f"{variables_path}: has {size} bytes, but {record['bytes']} were written")
    try:
        if files.sha256(variables_path) != record["sha256"]:
            raise _Damaged(f"{variables_path}: its SHA-256 does not match the one in {RECORD}")
        with safetensors_files.open_file(
            variables_path
        ) as tensors:  # Non-finite values were non-finite when they were saved.
            arrays = {name: tensors.read(name, finite=False) for name in tensors.names}
    except OSError as error:
        raise _Damaged(f"{variables_path}: {error}") from None
    except UserError as error:
        raise _Damaged(str(error)) from None
    if {name: _signature(array) for name, array in arrays.items()} != record["variables"]:
        raise _Damaged(f"{variables_path}: its variables differ from those listed in {RECORD}")
    return record["step"], record["state"], arrays


def _compare(path: pathlib.Path, variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises UserError unless both sides have the same names, dtypes and shapes."""
    complaints = []
    missing, extra = variables.keys() - arrays.keys(), arrays.keys() - variables.keys()
    if missing:
        complaints.append(f"missing from the checkpoint: {_listed(missing)}")
    if extra:
        complaints.append(f"only in the checkpoint: {_listed(extra)}")
    different = [
        f"{name} (model {_signature(variables[name])}, checkpoint {_signature(arrays[name])})"
        for name in variables.keys() & arrays.keys()
        if _signature(variables[name]) != _signature(arrays[name])
    ]
    if different:
        complaints.append(f"different dtype or shape: {_listed(different)}")
    if complaints:
        raise UserError(
            f"{path}: does not match this model and optimizer; {'; '.join(complaints)}; "
            "use the flags that it was created with, or another folder"
        )


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
