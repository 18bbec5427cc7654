"""Lists the commands of tfzoo: python -m tfzoo."""

import ast
import importlib.util
import sys
from collections.abc import Sequence

from tfzoo import cli
from tfzoo.errors import UserError, suggest

COMMANDS = (
    *("train", "corpus", "tune", "launch", "evaluate", "predict", "generate", "score", "few_shot", "index", "query"),
    *("describe", "convert", "export", "publish", "serve"),
)


def main(arguments: Sequence[str] = ()) -> int:
    """Prints the list; an argument other than --help is an error that says how commands are called."""

    def show(_) -> None:
        if arguments and arguments[0] not in cli.HELP:
            called = arguments[0].removeprefix("tfzoo.")
            near = suggest(called, COMMANDS) or "; python -m tfzoo lists the commands"
            remedy = f": write python -m tfzoo.{called}" if called in COMMANDS else f": no such command{near}"
            raise UserError(arguments[0] + remedy)
        print("Commands of tfzoo, each with its own --help:\n")
        for name in COMMANDS:
            print(f"  python -m tfzoo.{name:<10}{_purpose(name)}")
        print("\nThe documentation begins with README.md and docs/index.md.")

    return cli.run(show, lambda flags: None, [])


def _purpose(command: str) -> str:
    """Returns the first sentence of a command's docstring, which is read without importing the command."""
    package = importlib.util.find_spec(f"tfzoo.{command}")
    is_package = package is not None and package.submodule_search_locations is not None
    spec = importlib.util.find_spec(f"tfzoo.{command}.__main__") if is_package else package
    source = spec.loader.get_source(spec.name) if spec and spec.loader else ""  # type: ignore[attr-defined]
    text = " ".join((ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].split())
    return f"{text.partition('. ')[0].removesuffix('.')}."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
