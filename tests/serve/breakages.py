"""Ways in which the folder of a SavedModel can be damaged."""

import os
import pathlib
import shutil


def empty_graph(path: pathlib.Path) -> None:
    (path / "saved_model.pb").write_bytes(b"")


def half_a_graph(path: pathlib.Path) -> None:
    file = path / "saved_model.pb"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def random_graph(path: pathlib.Path) -> None:
    (path / "saved_model.pb").write_bytes(os.urandom(1000))


def no_variables(path: pathlib.Path) -> None:
    shutil.rmtree(path / "variables")


def half_the_variables(path: pathlib.Path) -> None:
    os.truncate(path / "variables" / "variables.data-00000-of-00001", 4)


def half_an_index(path: pathlib.Path) -> None:
    file = path / "variables" / "variables.index"
    os.truncate(file, file.stat().st_size // 2)


def nothing(path: pathlib.Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


ALL = (
    empty_graph, half_a_graph, random_graph, no_variables, half_the_variables, half_an_index, nothing,
)  # fmt: skip
