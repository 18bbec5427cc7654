"""Loads and unloads versions of models: a version is loaded and warmed up before the one that it replaces is unloaded,
and a version that cannot be loaded replaces nothing."""

import contextlib
import dataclasses
import enum
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tfzoo.errors import one_line
from tfzoo.serve import policies
from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.servable import ModelSpec, Servable

_log = logging.getLogger("tfzoo.serve")


class State(enum.IntEnum):
    """The states of GetModelStatus."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass
class Version:
    """A version of a model.

    Attributes:
      number: the version number.
      folder: where it is.
      identity: differs if the folder is replaced.
      state: its state.
      error: why it could not be loaded; None if it could.
      failures: how many times loading it failed.
      retry_at: the time.monotonic() of the next attempt; None if none is planned.
      servable: what is loaded; None before and after.
      users: how many requests use it.
    """

    number: int
    folder: pathlib.Path
    identity: tuple[int, int]
    state: State = State.START
    error: StatusError | None = None
    failures: int = 0
    retry_at: float | None = None
    servable: Servable | None = None
    users: int = 0


@dataclasses.dataclass
class Model:
    """A model: its configuration, None once it is no longer configured, and its versions by number."""

    config: Any
    versions: dict[int, Version] = dataclasses.field(default_factory=dict)
    wanted: dict[int, pathlib.Path] = dataclasses.field(default_factory=dict)

    def available(self) -> list[int]:
        return [number for number, version in self.versions.items() if version.state == State.AVAILABLE]


class Manager:
    """The models of a server. Threads may call every method at the same time.

    Args:
      load: (name, version number, folder) -> a Servable that is warmed up; it raises StatusErrors.
      poll_seconds: how often the file system is read; 0 reads it once for each configuration.
      max_retries: how many more times a version is tried that cannot be loaded.
      retry_seconds: how long to wait before each of them.
      load_threads: how many versions are loaded at a time.
      any_label: whether a new label may stand for a version that is not available yet.
    """

    def __init__(
        self,
        load: Callable[[str, int, pathlib.Path], Servable],
        poll_seconds: float = 1.0,
        max_retries: int = 5,
        retry_seconds: float = 60.0,
        load_threads: int = 1,
        any_label: bool = False,
    ):
        self._load = load
        self._poll_seconds, self._max_retries, self._retry_seconds = poll_seconds, max_retries, retry_seconds
        self._any_label = any_label
        self._models: dict[str, Model] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._warned: set[str] = set()  # Models whose base paths cannot be read or have no version to serve.
        self._changed = threading.Condition()  # Protects all of the above; notified of every change of a state.
        self._reloading = threading.Lock()
        self._wake = threading.Event()
        self._is_configured = self._stopped = False
        self._loaders = ThreadPoolExecutor(load_threads, "load")
        self._thread = threading.Thread(target=self._watch, name="poll", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def get(self, spec: ModelSpec) -> Iterator[Servable]:
        """Yields the version that a spec names; it stays loaded until the block ends.

        Raises:
          StatusError: there is no such version, or it is not available.
        """
        with self._changed:
            version = self._version(spec)
            version.users += 1
        try:
            assert version.servable is not None
            yield version.servable
        finally:
            with self._changed:
                version.users -= 1
                if version.state == State.UNLOADING and not version.users:
                    self._close(version)

    def _version(self, spec: ModelSpec) -> Version:
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        number = spec.version
        if spec.label is not None:
            number = self._labels.get(spec.name, {}).get(spec.label)
            if number is None:
                raise invalid(f"Unrecognized servable version label: {spec.label}")
        model = self._models.get(spec.name, Model(None))
        available = model.available()
        if number is None and available:
            number = max(available)
        if number not in available:
            request = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
            raise StatusError("NOT_FOUND", f"Servable not found for request: {request}")
        return model.versions[number]

    def status(self, spec: ModelSpec) -> list[tuple[int, State, StatusError | None]]:
        """Returns (number, state, error) of a version, or of all versions of a model, the newest first.

        Raises:
          StatusError: there is none.
        """
        with self._changed:
            model = self._models.get(spec.name, Model(None))
            numbers = sorted(model.versions, reverse=True)
            version = spec.version
            if spec.label is not None:
                version = self._labels.get(spec.name, {}).get(spec.label)
                if version is None:
                    raise invalid(f"Unrecognized servable version label: {spec.label}")
            if version is not None:
                if version not in numbers:
                    raise StatusError("NOT_FOUND", f"Could not find version {version} of model {spec.name}")
                numbers = [version]
            if not numbers:
                raise StatusError("NOT_FOUND", f"Could not find any versions of model {spec.name}")
            versions = [model.versions[number] for number in numbers]
            return [(version.number, version.state, version.error) for version in versions]

    def names(self) -> list[str]:
        """Returns the names of the configured models."""
        with self._changed:
            return sorted(name for name, model in self._models.items() if model.config is not None)

    def signatures(self, name: str) -> Collection[str] | None:
        """Returns the names of the signatures of a model's newest available version. The result is empty if no version
        is available, and None if the model is unknown."""
        with self._changed:
            model = self._models.get(name, Model(None))
            available = model.available()
            if not available:
                return None if model.config is None else ()
            servable = model.versions[max(available)].servable
            assert servable is not None
            return servable.signatures.keys()

    def is_ready(self) -> bool:
        """Returns whether there is a configuration, and every model in it has an available version."""
        with self._changed:
            return self._is_configured and all(
                model.available() for model in self._models.values() if model.config is not None
            )

    def reload(self, config: Any, wait: bool = True) -> None:
        """Serves the models of a ModelServerConfig instead of the present ones.

        Args:
          config: the configuration; one that is not valid changes nothing.
          wait: whether to wait until each new model has an available version.

        Raises:
          StatusError: the configuration is not valid, or a new model did not become available.
        """
        models = policies.models(config)
        with self._reloading:
            with self._changed:
                old = {name: model.config for name, model in self._models.items() if model.config is not None}
                policies.check_platforms(old, models)
                self._set_labels(models)
                for name in old.keys() - models.keys():
                    self._models[name].config = None
                for name, each in models.items():
                    self._models.setdefault(name, Model(None)).config = each
                self._is_configured = True
            self.poll()
            if wait:
                self._wait_for(models.keys() - old.keys())

    def _set_labels(self, models: dict[str, Any]) -> None:
        """Sets the labels of available versions, and removes labels that are no longer configured. The label of a
        version that is still to be loaded is set once that is available; until then it stands for the present one."""
        labels: dict[str, dict[str, int]] = {}
        for name, config in models.items():
            present, labels[name] = self._labels.get(name, {}), {}
            available = self._models[name].available() if name in self._models else []
            for label, number in config.version_labels.items():
                if number in available or (self._any_label and present.get(label, number) == number):
                    labels[name][label] = number
                elif number not in (self._versions(config) or {}):
                    raise policies.unavailable_label(name, number)
                elif label in present:
                    labels[name][label] = present[label]
        self._labels = labels

    def _wait_for(self, new: set[str]) -> None:
        """Waits until new models have an available version, and labels their versions.

        Raises:
          StatusError: a version could not be loaded.
        """

        def is_settled(name: str, model: Model) -> bool:
            labelled = [] if model.config is None else model.config.version_labels.values()
            versions = [model.versions[number] for number in model.wanted if name in new or number in labelled]
            if name in new and model.available() and not labelled:
                return True
            return all(version.failures or version.state == State.AVAILABLE for version in versions)

        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or all(is_settled(name, model) for name, model in self._models.items())
            )
            failed = []
            for name in sorted(new):
                model = self._models[name]
                if not model.available():
                    errors = [
                        f"{{name: {name} version: {version.number}}} due to error: {version.error}"
                        for version in model.versions.values()
                    ]
                    failed.append(", ".join(errors) or f"{{name: {name}}} has no version in {model.config.base_path}")
            if failed:
                raise StatusError(
                    "UNKNOWN", f"{len(failed)} model(s) did not become available: {{{', '.join(failed)}}}"
                )
            for name, model in self._models.items():
                if model.config is not None:
                    for label, number in model.config.version_labels.items():
                        if self._labels[name].get(label) != number:
                            raise policies.unavailable_label(name, number)

    def poll(self) -> None:
        """Reads the file system, and starts to load and unload what has changed."""
        with self._changed:
            configs = {name: model.config for name, model in self._models.items()}
        for name, config in configs.items():
            wanted: dict[int, pathlib.Path] | None = {} if config is None else self._versions(config)
            with self._changed:
                model = self._models[name]
                if wanted is not None and model.config is config:
                    model.wanted = wanted
                self._reconcile(name, model)

    def _versions(self, config: Any) -> dict[int, pathlib.Path] | None:
        """Returns the versions that a ModelConfig asks for; None if its base path cannot be read, which leaves the
        loaded versions as they are."""
        try:
            versions = policies.versions(config)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            self._warn(
                config.name, f"Could not find base path {config.base_path} for servable {config.name} ({reason})"
            )
            return None
        if versions:
            self._warned.discard(config.name)
        else:
            self._warn(config.name, policies.no_versions(config))
        return versions

    def _warn(self, name: str, message: str) -> None:
        """Logs a warning about a model once, and not at every poll."""
        if name not in self._warned:
            _log.warning("%s", message)
            self._warned.add(name)

    def _reconcile(self, name: str, model: Model) -> None:
        """Starts to load the versions that are wanted, and to unload those that are not."""
        if self._stopped:
            return
        for number, folder in model.wanted.items():
            version = model.versions.get(number)
            identity = _identity(folder)
            ended = version is not None and version.state == State.END
            # A version that failed is tried again if its folder is replaced; one that was unloaded is wanted again.
            if version is None or (ended and (version.identity != identity or version.error is None)):
                version = model.versions[number] = Version(number, folder, identity)
                self._submit(name, model, version)
            elif version.retry_at is not None and time.monotonic() >= version.retry_at:
                version.retry_at = None
                self._submit(name, model, version)
        labels = self._labels.setdefault(name, {})
        if model.config is not None:
            available = model.available()
            labels |= {label: number for label, number in model.config.version_labels.items() if number in available}
        replaced = not model.wanted or any(number in model.wanted for number in model.available())
        for number, version in model.versions.items():
            if number in model.wanted or number in labels.values():
                continue
            if version.retry_at is not None:
                version.retry_at, version.state = None, State.END
            elif version.state == State.AVAILABLE and replaced:
                version.state = State.UNLOADING
                if not version.users:
                    self._close(version)
        self._changed.notify_all()

    def _submit(self, name: str, model: Model, version: Version) -> None:
        version.state = State.LOADING
        self._loaders.submit(self._load_version, name, model, version)

    def _load_version(self, name: str, model: Model, version: Version) -> None:
        servable, error = None, None
        _log.info("loading version %d of %s from %s", version.number, name, version.folder)
        try:
            servable = self._load(name, version.number, version.folder)
        except StatusError as failure:
            error = failure
        except Exception as failure:  # Whatever a folder makes a library raise must not stop the server.
            _log.exception("version %d of %s", version.number, name)
            error = StatusError("INTERNAL", one_line(failure))
        with self._changed:
            version.servable, version.error = servable, error
            if error is None:
                version.state = State.AVAILABLE
                _log.info("version %d of %s is available", version.number, name)
            else:
                version.failures += 1
                may_retry = version.failures <= self._max_retries
                version.state = State.LOADING if may_retry else State.END
                version.retry_at = time.monotonic() + self._retry_seconds if may_retry else None
                _log.error("version %d of %s cannot be loaded: %s", version.number, name, error)
            self._reconcile(name, model)
        self._wake.set()  # The time of the next attempt may be near.

    def _close(self, version: Version) -> None:
        """Releases a version that nothing uses."""
        assert version.servable is not None
        servable, version.servable = version.servable, None
        version.state = State.END
        self._changed.notify_all()
        threading.Thread(target=servable.close, name="unload").start()  # It may take long.
        _log.info("version %d of %s is unloaded", version.number, servable.name)

    def _watch(self) -> None:
        while not self._stopped:
            with self._changed:
                retries = [
                    version.retry_at
                    for model in self._models.values()
                    for version in model.versions.values()
                    if version.retry_at is not None
                ]
            waits = [max(0.0, retry - time.monotonic()) for retry in retries]
            waits += [self._poll_seconds] if self._poll_seconds > 0 else []
            self._wake.wait(min(waits, default=None))
            self._wake.clear()
            if not self._stopped:
                try:
                    self.poll()
                except Exception:  # The server goes on with the versions that it has.
                    _log.exception("the file system could not be read")

    def stop(self) -> None:
        """Unloads everything that no request uses."""
        with self._changed:
            self._stopped = True
            for model in self._models.values():
                model.config, model.wanted = None, {}
                for version in model.versions.values():
                    if version.state == State.AVAILABLE:
                        version.state = State.UNLOADING
                        if not version.users:
                            self._close(version)
            self._changed.notify_all()
        self._wake.set()
        self._loaders.shutdown(wait=False, cancel_futures=True)


def _identity(folder: pathlib.Path) -> tuple[int, int]:
    """Returns what differs if a folder is replaced or gets new files; zeros if it has vanished."""
    try:
        stated = folder.stat()
    except OSError:
        return 0, 0
    return stated.st_ino, stated.st_ctime_ns  # A copy may have the time of modification of its original.
