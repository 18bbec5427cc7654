"""Versions are loaded before those that they replace are unloaded, and a broken version replaces nothing."""

import pathlib
import threading
import unittest
from collections.abc import Mapping
from typing import Any

from tests.helpers import temporary_folder
from tfzoo.serve import messages
from tfzoo.serve.errors import StatusError
from tfzoo.serve.manager import Manager, State
from tfzoo.serve.servable import ModelSpec, Signature

A, E, L = State.AVAILABLE, State.END, State.LOADING


class Loaded:
    """A Servable that does nothing."""

    runtime, folder = "test", pathlib.Path()
    signatures: Mapping[str, Signature] = {}
    sessions: Mapping[str, Any] = {}

    def __init__(self, name: str, version: int):
        self.name, self.version, self.is_closed = name, version, threading.Event()

    def signature_def_map(self) -> bytes:
        return b""

    def run(self, signature_name, inputs, outputs=None, deadline=None):
        raise NotImplementedError

    def close(self) -> None:
        self.is_closed.set()


class ManagerTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)
        self.loads: list[tuple[str, int]] = []
        self.loaded: dict[tuple[str, int], Loaded] = {}
        self.may_load = threading.Event()
        self.may_load.set()

    def load(self, name: str, version: int, folder: pathlib.Path) -> Loaded:
        self.may_load.wait()
        self.loads.append((name, version))
        if (folder / "broken").exists():
            raise StatusError("DATA_LOSS", "it is broken")
        self.loaded[name, version] = Loaded(name, version)
        return self.loaded[name, version]

    def manager(self, **options) -> Manager:
        manager = Manager(self.load, **({"poll_seconds": 0, "max_retries": 0} | options))
        self.addCleanup(manager.stop)
        return manager

    def version(self, name: str, number: int | str, broken: bool = False) -> None:
        partial = self.folder / name / "partial"  # The manager may look at any time.
        partial.mkdir(parents=True)
        if broken:
            (partial / "broken").touch()
        partial.rename(self.folder / name / str(number))

    def config(self, *models: str):
        """Returns a configuration of models; "m, POLICY" has a policy and labels in text form."""
        text = ""
        for model in models:
            name, _, more = model.partition(",")
            path = self.folder / name
            text += f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" {more} }}'
        return messages.parse_text(f"model_config_list {{ {text} }}", messages.ModelServerConfig, "config")

    def states(self, manager: Manager, name: str) -> dict[int, State]:
        return {number: state for number, state, _ in manager.status(ModelSpec(name))}

    def reaches(self, manager: Manager, name: str, states: dict[int, State]) -> None:
        """Waits until the versions of a model have these states."""
        with manager._changed:
            reached = manager._changed.wait_for(lambda: self.states(manager, name) == states, 60)
        self.assertTrue(reached, f"{self.states(manager, name)} instead of {states}")

    def served(self, manager: Manager, **spec) -> int:
        with manager.get(ModelSpec("m", **spec)) as servable:
            return servable.version

    def test_a_model_without_versions_is_warned_of_once(self) -> None:
        for name in ("empty", "other", "flat", "nested/3"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "flat/model.onnx").touch()
        (self.folder / "nested/3/saved_model.pb").touch()
        specific = "other, model_version_policy { specific { versions: 7 versions: 8 } }"
        manager = self.manager()
        with self.assertLogs("tfzoo.serve", "WARNING") as logs:
            manager.reload(self.config("missing", "empty", specific, "flat", "nested/3"), wait=False)
            manager.poll()
        found = [record.getMessage().replace(str(self.folder), "") for record in logs.records]
        start = "No versions of servable {0} found under base path /{0}: "
        self.assertCountEqual(found, [
            "Could not find base path /missing for servable missing (no such file or directory)",
            start.format("empty") + "a version is a folder whose name is a number, with a SavedModel or an "
            "ONNX artifact",
            start.format("other") + "of the specified versions 7, 8, it contains none",
            start.format("flat") + "it is a version itself; move it to /flat/1",
            start.format("nested/3") + "it is a version itself; specify its parent /nested",
        ])  # fmt: skip

    def test_policies(self) -> None:
        for number in (1, 2, "0010", "x", "-3"):
            self.version("m", number)
        for policy, expected in (
            ("", [10]),
            ("latest {}", [10]),
            ("latest { num_versions: 2 }", [10, 2]),
            ("all {}", [10, 2, 1]),
            ("specific { versions: 1 versions: 7 }", [1]),
        ):
            manager = self.manager()
            manager.reload(self.config(f"m, model_version_policy {{ {policy} }}" if policy else "m"))
            if len(expected) > 1:
                self.reaches(manager, "m", dict.fromkeys(expected, A))
            self.assertEqual(list(self.states(manager, "m")), expected)
            self.assertEqual(self.served(manager), expected[0])

    def test_a_version_is_available_before_the_one_that_it_replaces_goes(self) -> None:
        self.version("m", 1)
        manager = self.manager()
        manager.reload(self.config("m"))
        self.may_load.clear()
        self.version("m", 2)
        manager.poll()
        self.reaches(manager, "m", {1: A, 2: L})
        self.assertEqual(self.served(manager), 1)
        with manager.get(ModelSpec("m")) as old:
            self.may_load.set()
            self.reaches(manager, "m", {1: State.UNLOADING, 2: A})
            self.assertEqual(self.served(manager), 2)
            self.assertFalse(self.loaded["m", 1].is_closed.is_set())  # A request still uses it.
            self.assertEqual(old.version, 1)
        self.reaches(manager, "m", {1: E, 2: A})
        self.assertTrue(self.loaded["m", 1].is_closed.wait(60))
        with self.assertRaisesRegex(StatusError, r"^Servable not found for request: Specific\(m, 1\)$"):
            self.served(manager, version=1)

    def test_a_broken_version_replaces_nothing_and_is_tried_again_when_it_is_repaired(self) -> None:
        self.version("m", 1)
        manager = self.manager()
        manager.reload(self.config("m"))
        self.version("m", 2, broken=True)
        manager.poll()
        self.reaches(manager, "m", {1: A, 2: E})
        _, _, error = manager.status(ModelSpec("m", 2))[0]
        assert error is not None
        self.assertEqual((error.code, error.message), ("DATA_LOSS", "it is broken"))
        self.assertEqual(self.served(manager), 1)
        manager.poll()
        self.assertEqual(self.loads.count(("m", 2)), 1)
        (self.folder / "m" / "2" / "broken").unlink()
        manager.poll()
        self.reaches(manager, "m", {1: E, 2: A})

    def test_retries(self) -> None:
        self.version("m", 1, broken=True)
        manager = self.manager(max_retries=2, retry_seconds=0)
        with self.assertRaisesRegex(StatusError, r"^1 model\(s\) did not become available: .*it is broken"):
            manager.reload(self.config("m"))
        self.reaches(manager, "m", {1: E})
        self.assertEqual(self.loads, [("m", 1)] * 3)
        manager = self.manager(max_retries=1, retry_seconds=3600)
        manager.reload(self.config("m"), wait=False)
        self.reaches(manager, "m", {1: L})  # Until the next attempt.

    def test_the_file_system_is_polled(self) -> None:
        self.version("m", 1)
        manager = self.manager(poll_seconds=0.01)
        manager.reload(self.config("m"))
        self.version("m", 2)
        self.reaches(manager, "m", {1: E, 2: A})

    def test_a_base_path_that_vanishes_leaves_what_is_loaded(self) -> None:
        self.version("m", 1)
        manager = self.manager()
        manager.reload(self.config("m"))
        (self.folder / "m").rename(self.folder / "elsewhere")
        manager.poll()
        self.assertEqual(self.served(manager), 1)
        (self.folder / "m").mkdir()  # An empty folder asks for no version.
        manager.poll()
        self.reaches(manager, "m", {1: E})

    def test_a_configuration_replaces_all_models(self) -> None:
        for name in ("m", "n", "o"):
            self.version(name, 1)
        manager = self.manager()
        manager.reload(self.config("m", "n"))
        manager.reload(self.config("n", "o"))
        self.assertEqual(manager.names(), ["n", "o"])
        self.reaches(manager, "m", {1: E})
        self.assertEqual(self.loads.count(("n", 1)), 1)
        self.assertTrue(manager.is_ready())
        changed = self.config("n")
        changed.model_config_list.config[0].model_platform = "onnx"
        with self.assertRaisesRegex(StatusError, "^Illegal to change a model's platform. For model n platform was "):
            manager.reload(changed)
        with self.assertRaisesRegex(StatusError, r"^1 model\(s\) did not become available: \{\{name: p\} has no vers"):
            manager.reload(self.config("n", "p"))
        self.assertFalse(manager.is_ready())

    def test_labels(self) -> None:
        for number in (1, 2, 3):
            self.version("m", number)
        both = "m, model_version_policy { specific { versions: 1 versions: 2 } } version_labels { key: 'a' value: %d }"
        manager = self.manager()
        self.assertFalse(manager.is_ready())  # It does not know yet of what.
        manager.reload(self.config(both % 1))
        self.assertEqual(self.served(manager, label="a"), 1)
        self.assertEqual(manager.status(ModelSpec("m", label="a"))[0][:2], (1, A))
        with self.assertRaisesRegex(StatusError, "^Unrecognized servable version label: b$"):
            self.served(manager, label="b")
        with self.assertRaisesRegex(
            StatusError, "^Request to assign label to version 9 of model m, which is not currently available for inf"
        ) as raised:
            manager.reload(self.config(both % 9))
        self.assertEqual(raised.exception.code, "FAILED_PRECONDITION")
        self.assertEqual(self.served(manager, label="a"), 1)
        # A label moves to a version that comes in the same configuration, once that is available.
        self.may_load.clear()
        moved = "m, model_version_policy { specific { versions: 3 } } version_labels { key: 'a' value: 3 }"
        manager.reload(self.config(moved), wait=False)
        self.assertEqual(self.served(manager, label="a"), 1)
        self.may_load.set()
        self.reaches(manager, "m", {1: E, 2: E, 3: A})
        self.assertEqual(self.served(manager, label="a"), 3)

    def test_a_label_may_wait_for_a_version_if_a_flag_says_so(self) -> None:
        self.version("m", 1)
        manager = self.manager(any_label=True)
        manager.reload(self.config("m, version_labels { key: 'next' value: 2 }"), wait=False)
        with self.assertRaisesRegex(StatusError, r"^Servable not found for request: Specific\(m, 2\)$"):
            self.served(manager, label="next")
        self.version("m", 2)
        manager.poll()
        self.reaches(manager, "m", {1: E, 2: A})
        self.assertEqual(self.served(manager, label="next"), 2)

    def test_whatever_a_library_raises_is_a_failed_load(self) -> None:
        self.version("m", 1)
        manager = Manager(lambda *_: 1 / 0, poll_seconds=0, max_retries=0)  # type: ignore[arg-type,return-value]
        self.addCleanup(manager.stop)
        with self.assertLogs("tfzoo.serve", "ERROR"), self.assertRaisesRegex(StatusError, "division by zero"):
            manager.reload(self.config("m"))


if __name__ == "__main__":
    unittest.main()
