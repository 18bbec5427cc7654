"""Architecture rules about imports and code structure, checked in the sources without importing them."""

import ast
import pathlib
import re
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Dotted name -> path and syntax tree of every module and package.
PATHS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.glob("tfzoo/**/*.py"))
}
TREES = {name: ast.parse(path.read_bytes()) for name, path in PATHS.items()}

# Programs may import everything except each other, and nothing imports them.
ENTRY_POINTS = {
    "tfzoo.__main__",
    "tfzoo.convert",
    "tfzoo.corpus",
    "tfzoo.describe",
    "tfzoo.evaluate",
    "tfzoo.export.__main__",
    "tfzoo.few_shot",
    "tfzoo.generate",
    "tfzoo.index",
    "tfzoo.launch",
    "tfzoo.predict",
    "tfzoo.publish",
    "tfzoo.query",
    "tfzoo.score",
    "tfzoo.serve.__main__",
    "tfzoo.train",
    "tfzoo.tune",
}
# What each other module and package may import from tfzoo, in addition to itself. A name includes everything below it.
BELOW = {"errors", "files", "json_files", "arrays", "progress"}
MODELS = BELOW | {"config", "nn", "models", "weights"}
MAY_IMPORT = {
    "errors": set(),
    "progress": set(),
    "lazy": set(),
    "standins": set(),
    "options": {"errors"},
    "files": {"errors"},
    "json_files": {"errors", "files"},
    "arrays": {"errors", "files"},
    "results": {"errors", "json_files"},
    "config": BELOW,
    "cli": BELOW | {"options"},
    "records": BELOW,
    "chat": BELOW | {"text"},
    "hub": {"errors"},
    "nn": BELOW | {"config"},
    "models": BELOW | {"config", "nn"},
    "weights": BELOW | {"config", "nn", "models", "text", "results"},
    "text": BELOW | {"lazy"},
    "data": BELOW | {"text", "lazy"},
    "objectives": BELOW | {"config", "nn", "text", "data", "evaluation", "lazy", "options"},
    "tasks": BELOW
    | {"config", "nn", "text", "data", "objectives", "models", "evaluation", "retrieval", "lazy", "options"}
    | {"chat", "generation"},
    "generation": MODELS | {"text"},
    "evaluation": MODELS | {"text", "data", "generation"},
    "training": MODELS
    | {"text", "data", "objectives", "tasks", "evaluation", "lazy", "options", "cli", "hub", "results"},
    "tuning": BELOW | {"config"},
    "model_dir": MODELS | {"options", "training", "hub"},
    "embeddings": MODELS | {"text"},
    "retrieval": MODELS | {"records", "text", "data", "hub", "embeddings", "evaluation", "training"},
    "preprocess": MODELS | {"text", "generation"},
    "export": MODELS | {"text", "generation", "embeddings"},
    "onnx_decoding": BELOW | {"lazy", "text", "chat", "generation", "evaluation"},
    "prediction": MODELS
    | {"text", "data", "embeddings", "evaluation", "export", "training", "hub", "onnx_decoding", "generation"},
    "engines": BELOW | {"model_dir", "prediction", "onnx_decoding", "generation"},
    # It serves artifacts of any origin.
    "serve": BELOW
    | {"cli", "lazy", "options", "records", "chat", "text", "prediction", "export", "onnx_decoding"}
    | {"generation"},
}
# Importing these does not import TensorFlow, so that help, error messages and servers start fast.
WITHOUT_TENSORFLOW = [
    "tfzoo",
    "tfzoo.config",
    "tfzoo.errors",
    "tfzoo.files",
    "tfzoo.json_files",
    "tfzoo.arrays",
    "tfzoo.cli",
    "tfzoo.progress",
    "tfzoo.records",
    "tfzoo.chat",
    "tfzoo.hub",
    "tfzoo.text",
    "tfzoo.text.spans",
    "tfzoo.text.untrusted",
    "tfzoo.data",
    "tfzoo.data.corpus",
    "tfzoo.data.labelled",
    "tfzoo.data.choices",
    "tfzoo.data.messages",
    "tfzoo.data.relations",
    "tfzoo.data.squad",
    "tfzoo.data.tagged",
    "tfzoo.data.text_mixture",
    "tfzoo.data.text_pairs",
    "tfzoo.objectives.masked_lm",
    "tfzoo.objectives.causal",
    "tfzoo.objectives.permutation",
    "tfzoo.objectives.replaced_token",
    "tfzoo.objectives.span_corruption",
    "tfzoo.objectives.denoise",
    "tfzoo.objectives.seq2seq",
    "tfzoo.objectives.prefix_lm",
    "tfzoo.objectives.fill_in_the_middle",
    "tfzoo.objectives.ul2",
    "tfzoo.data.labelled",
    "tfzoo.evaluation.answers",
    "tfzoo.evaluation.entities",
    "tfzoo.evaluation.intervals",
    "tfzoo.evaluation.linear",
    "tfzoo.evaluation.prompts",
    "tfzoo.evaluation.relations",
    "tfzoo.evaluation.retrieval",
    "tfzoo.evaluation.scores",
    "tfzoo.evaluation.extracts",
    "tfzoo.evaluation.written",
    "tfzoo.tasks.chat",
    "tfzoo.tasks.choice",
    "tfzoo.tasks.answer",
    "tfzoo.tasks.preferences",
    "tfzoo.tasks.classify",
    "tfzoo.tasks.similarity",
    "tfzoo.tasks.embed",
    "tfzoo.tasks.extract",
    "tfzoo.tasks.rerank",
    "tfzoo.tasks.respond",
    "tfzoo.tasks.text_to_text",
    "tfzoo.tasks.translate",
    "tfzoo.tasks.summarise",
    "tfzoo.tasks.mixture",
    "tfzoo.tasks.evaluation",
    "tfzoo.training.config",
    "tfzoo.training.history",
    "tfzoo.training.loop",
    "tfzoo.export.manifest",
    "tfzoo.engines",
    "tfzoo.evaluation.windows",
    "tfzoo.generation",
    "tfzoo.generation.defaults",
    "tfzoo.onnx_decoding.likelihood",
    "tfzoo.onnx_decoding.writer",
    "tfzoo.prediction.folders",
    "tfzoo.prediction.onnx_graphs",
    "tfzoo.prediction.pipelines",
    "tfzoo.prediction.triples",
    "tfzoo.training.page",
    "tfzoo.weights.model_card",
    "tfzoo.retrieval.bm25",
    "tfzoo.retrieval.store",
    "tfzoo.retrieval.build",
    "tfzoo.retrieval.search",
    "tfzoo.serve.core",
    "tfzoo.serve.loading",
    "tfzoo.serve.onnx",
    "tfzoo.serve.grpc_server",
    "tfzoo.serve.rest.server",
    *sorted(ENTRY_POINTS),
]
MAX_LINES = 100


def imports(package: str, nodes) -> set[str]:
    """Returns the dotted names of all modules that the nodes import, and of the names imported from them."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif is_lazy(node):
            names.add(ast.literal_eval(node.args[0]))
    return names


def is_lazy(node) -> bool:
    """Returns whether a node defines a module that is imported at first use (tfzoo.lazy)."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy.module"


def package(module: str) -> str:
    return module if PATHS[module].name == "__init__.py" else module.rpartition(".")[0]


def imports_of(module: str) -> set[str]:
    """Returns what a module imports anywhere, including inside functions."""
    return imports(package(module), ast.walk(TREES[module]))


def imports_at_once(module: str) -> set[str]:
    """Returns what importing a module imports: not what is inside functions, behind `if TYPE_CHECKING`, or lazy."""

    def nodes(parent):
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if is_lazy(node) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
                continue
            yield node
            yield from nodes(node)

    return imports(package(module), nodes(TREES[module]))


def dictionary(module: str, name: str) -> dict[str, str]:
    """Returns the dict of strings that a module assigns to `name`."""
    for node in TREES[module].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{PATHS[module]} has no {name}")


def module_of(name: str) -> str | None:
    """Returns the tfzoo module that contains a dotted name; None if another package contains it."""
    while name and name not in PATHS:
        name = name.rpartition(".")[0]
    return name or None


def cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Returns the largest sets of modules that all reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    components = []

    def visit(module):
        order[module] = lowest[module] = len(order)
        path.append(module)
        for other in graph[module]:
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in path:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            components.append(set(path[path.index(module) :]))
            del path[path.index(module) :]

    for module in graph:
        if module not in order:
            visit(module)
    return [members for members in components if len(members) > 1]


class LayersTest(unittest.TestCase):
    def test_every_module_has_a_place(self) -> None:
        for name, tree in TREES.items():
            place = name.split(".")[1] if name != "tfzoo" else None
            if name not in ENTRY_POINTS and place:
                self.assertIn(place, MAY_IMPORT, f"{name} is neither an entry point nor in the table of who may import")
            has_main = any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
            # verify.py is a standalone program that every artifact contains.
            self.assertEqual(has_main, name in ENTRY_POINTS | {"tfzoo.export.verify"}, f"main() of {name}")
        self.assertLessEqual(ENTRY_POINTS, set(PATHS))

    def test_imports_of_tfzoo_point_one_way(self) -> None:
        for name in PATHS:
            if name in ENTRY_POINTS or name == "tfzoo":
                continue
            place = name.split(".")[1]
            for other in map(module_of, imports_of(name)):
                if other and other != "tfzoo":
                    self.assertIn(other.split(".")[1], MAY_IMPORT[place] | {place}, f"{name} imports {other}")

    def test_nothing_imports_an_entry_point(self) -> None:
        violations = {
            (name, other) for name in PATHS for other in map(module_of, imports_of(name)) if other in ENTRY_POINTS
        }
        self.assertEqual(violations, set())

    def test_no_files_import_each_other(self) -> None:
        graph = {name: set(filter(None, map(module_of, imports_of(name)))) - {name} for name in PATHS}
        self.assertEqual(cycles(graph), [])
        self.assertEqual(cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "c"}}), [{"b", "c"}])

    def test_the_top_level_folders_and_tfzoo_know_nothing_of_each_other(self) -> None:
        for path in [*ROOT.glob("export/**/*.py"), *ROOT.glob("serving/**/*.py")]:
            for name in imports("", ast.walk(ast.parse(path.read_bytes()))):
                self.assertNotIn(name.split(".")[0], {"tfzoo", "keras"}, f"{path} imports {name}")
        for module in PATHS:
            for name in imports_of(module):
                self.assertNotIn(
                    name.split(".")[0],
                    {"export", "serving", "tests", "torch", "transformers"},
                    f"{module} imports {name}",
                )

    def test_only_exporting_and_reading_exports_need_the_packages_of_that_extra(self) -> None:
        for module in PATHS:
            if not module.startswith(("tfzoo.export", "tfzoo.onnx_decoding")):
                for name in imports_of(module):
                    top = name.split(".")[0]
                    self.assertNotIn(top, {"onnx", "onnxruntime", "onnx_ir", "tensorflow_serving", "tf2onnx"}, module)

    def test_config_errors_and_files_need_the_standard_library_alone(self) -> None:
        for module in ("tfzoo.config", "tfzoo.errors", "tfzoo.files", "tfzoo.json_files"):
            for name in imports_of(module):
                allowed = name.split(".")[0] in sys.stdlib_module_names | {"tfzoo"}
                self.assertTrue(allowed, f"{module} imports {name}")

    def test_what_must_come_at_once_imports_no_tensorflow(self) -> None:
        for start in WITHOUT_TENSORFLOW:
            seen, chains = {start}, [[start]]
            while chains:
                chain = chains.pop()
                for name in imports_at_once(chain[-1]):
                    top = name.split(".")[0]
                    self.assertNotIn(top, {"tensorflow", "tensorflow_text", "keras"}, f"{' -> '.join([*chain, name])}")
                    other = module_of(name)
                    # Importing a.b.c imports a and a.b first.
                    parts = other.split(".") if other else []
                    for reached in {".".join(parts[:i]) for i in range(1, len(parts) + 1)} - seen:
                        seen.add(reached)
                        chains.append([*chain, reached])

    def test_no_test_imports_anothers(self) -> None:
        """Code that several tests need belongs in a separate file."""
        for path in ROOT.glob("tests/**/*.py"):
            for name in imports("", ast.walk(ast.parse(path.read_bytes()))):
                is_test = any(part.endswith("_test") for part in name.split(".")[:3])
                self.assertFalse(name.startswith("tests.") and is_test, f"{path} imports {name}")

    def test_what_serves_every_family_names_none(self) -> None:
        families = dictionary("tfzoo.models", "FAMILIES")
        # TransformerConfig, a rotary scaling in config.json files, kinds and classes of tokenizers, and a library.
        others = "TransformerConfig llama3 mbart mBART BertNormalizer BertPreTokenizer GPT2Tokenizer is_gpt2".split()
        others.append("sentence-transformers")
        for name, tree in TREES.items():
            if name.startswith(("tfzoo.nn", "tfzoo.export", "tfzoo.text.framing", "tfzoo.text.reader")):
                code = ast.unparse(_without_docstrings(tree))  # Docstrings may name families, for example in citations.
                for other in others:
                    code = code.replace(other, "")
                match = re.search("|".join(families), code, re.IGNORECASE)
                self.assertIsNone(match, f"{name} names a family: {match and match[0]}")

    def test_only_entry_points_define_flags(self) -> None:
        for name, tree in TREES.items():
            for node in ast.walk(tree):
                if not isinstance(node, ast.Attribute) or name in ENTRY_POINTS | {"tfzoo.options"}:
                    continue
                if node.attr.startswith("DEFINE_"):
                    self.fail(f"{PATHS[name]}:{node.lineno} defines a flag, and is not an entry point")


class ShapeTest(unittest.TestCase):
    def test_no_function_is_longer_than_a_hundred_lines(self) -> None:
        too_long = {
            f"{name}.{node.name}"
            for name, tree in TREES.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_LINES
        }
        self.assertEqual(too_long, set())

    def test_every_file_says_what_it_is_for(self) -> None:
        for name, tree in TREES.items():
            self.assertTrue(ast.get_docstring(tree), f"{PATHS[name]} has no docstring")


def _without_docstrings(tree: ast.Module) -> ast.Module:
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


class FilesTest(unittest.TestCase):
    # Files that tfzoo has just written itself, that the package contains, or that verify.py, which must be one file,
    # reads; the servers have limits of their own.
    OWN = {
        *("tfzoo.files", "tfzoo.cli", "tfzoo.export", "tfzoo.serve", "tfzoo.publish"),
        *("tfzoo.training.page", "tfzoo.text.proof", "tfzoo.weights.config_fields"),
    }

    def test_files_are_read_through_one_opener(self):
        """It refuses pipes, on which a read waits forever, and devices."""
        for name, tree in TREES.items():
            if any(name == own or name.startswith(f"{own}.") for own in self.OWN):
                continue
            for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                called = ast.unparse(call.func)
                method = called.rpartition(".")[2]
                opens = called == "open" and not any(keyword.arg == "opener" for keyword in call.keywords)
                writes = opens and any(mode in ast.unparse(call) for mode in ("'wb'", "'xb'"))
                reads = (
                    method in ("read_text", "read_bytes")
                    and not called.startswith(("files.", "inputs.", "metadata."))
                    and called != method
                )
                self.assertFalse((opens and not writes) or reads, f"{name}: {ast.unparse(call)}: use tfzoo.files")


if __name__ == "__main__":
    unittest.main()
