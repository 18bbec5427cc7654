"""The house's rules about who may import whom, read from the sources; nothing is imported."""

import ast
import pathlib
import re
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = {path.relative_to(ROOT): ast.parse(path.read_bytes()) for path in sorted(ROOT.glob("tfzoo/**/*.py"))}

# What each room may import of tfzoo besides itself; what is not named here stands above them all.
BELOW = {"errors", "files"}
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "config": BELOW,
    "nn": BELOW | {"config"},
    "weights": BELOW | {"config", "models", "nn", "text"},
    "models": BELOW | {"config", "nn", "weights"},  # A page's table uses the markers of weights.
    "text": BELOW,
    "data": BELOW | {"text"},
    "objectives": BELOW | {"config", "nn", "text", "data"},
    "tasks": BELOW | {"config", "nn", "text", "data", "objectives", "models"},
    "serve": set(),  # It serves artifacts, whoever made them.
}


def imports(path: pathlib.Path, tree: ast.Module) -> set[str]:
    """The dotted names of all modules that a file imports, also inside of functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(path.parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def room(path: pathlib.Path) -> str:
    return path.parts[1].removesuffix(".py")


class LayersTest(unittest.TestCase):
    def test_imports_of_tfzoo_point_one_way(self) -> None:
        for path, tree in SOURCES.items():
            for name in imports(path, tree):
                top, _, rest = name.partition(".")
                if top == "tfzoo" and room(path) in MAY_IMPORT:
                    self.assertIn(rest.split(".")[0], MAY_IMPORT[room(path)] | {room(path)}, f"{path} imports {name}")

    def test_the_top_level_folders_and_tfzoo_know_nothing_of_each_other(self) -> None:
        for path in [*ROOT.glob("export/**/*.py"), *ROOT.glob("serving/**/*.py")]:
            for name in imports(path.relative_to(ROOT), ast.parse(path.read_bytes())):
                self.assertNotIn(name.split(".")[0], {"tfzoo", "keras"}, f"{path} imports {name}")
        for path, tree in SOURCES.items():
            for name in imports(path, tree):
                self.assertNotIn(
                    name.split(".")[0],
                    {"export", "serving", "torch", "transformers"},
                    f"{path} imports {name}",
                )

    def test_config_needs_the_standard_library_alone(self) -> None:
        for path, tree in SOURCES.items():
            if room(path) in {"config", "errors", "files"}:
                for name in imports(path, tree):
                    known = name.split(".")[0] in sys.stdlib_module_names | {"tfzoo"}
                    self.assertTrue(known, f"{path} imports {name}")

    def test_nn_names_no_family(self) -> None:
        families = {path.stem for path in ROOT.glob("tfzoo/models/[a-z]*.py")}
        for path, tree in SOURCES.items():
            if room(path) == "nn" and families:
                code = ast.unparse(_without_docstrings(tree))  # Docstrings cite papers, and may.
                # Every family's config, and the name of a rotary scaling in config.json files.
                code = code.replace("TransformerConfig", "").replace("llama3", "")
                found = re.search("|".join(families), code, re.IGNORECASE)
                self.assertIsNone(found, f"{path} names a family: {found and found[0]}")

    def test_only_entry_points_define_flags(self) -> None:
        for path, tree in SOURCES.items():
            entry_point = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and node.attr.startswith("DEFINE_") and not entry_point:
                    self.fail(f"{path}:{node.lineno} defines a flag, and has no main()")


def _without_docstrings(tree: ast.Module) -> ast.Module:
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


if __name__ == "__main__":
    unittest.main()
