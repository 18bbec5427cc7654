"""Runs and packed text, which tfzoo itself has written; and the records that its commands read.

Half of the damaged manifests and records get a correct checksum, as that of somebody who wants them to be read.
"""

import dataclasses
import json
import pathlib
import random
from typing import Any

import numpy as np

from tests import made_run
from tests.fuzz.folders import described, one_of
from tests.fuzz.harness import Kind
from tests.fuzz.mutations import damage_bytes, damage_file, damage_json, damage_one

_SIZES = dict(vocab_size=60, hidden_size=8, num_heads=2, num_layers=1, intermediate_size=12, max_positions=16)


def _tokenizer():
    from tfzoo.text import SPECIAL_TOKENS
    from tfzoo.text.wordpiece import WordPiece

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    return WordPiece([*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), "the", ".", ","])


def _make_runs(folder: pathlib.Path) -> None:
    import tfzoo
    from tfzoo.training import checkpoint, runs, state
    from tfzoo.training.config import TrainConfig

    tokenizer, progress = _tokenizer(), dataclasses.asdict(state.Progress(losses=[1.5], places=[[3, 4]], best=0.5))
    sentence = {"query": "query: ", "document": ""}
    kinds: tuple[tuple[str, str, tuple[str, ...], dict[str, Any]], ...] = (
        ("classify", "bert_tiny", ("classify",), dict(labels=("bad", "good", "so"), pool="mean")),
        ("pretrain", "bert_tiny", ("lm",), {}),
        ("embed", "bert_tiny", ("embed",), {}),
        ("causal", "gpt2", ("lm",), {}),
    )
    for name, model, heads, options in kinds:
        run = folder / name
        task: dict[str, Any] | None = None
        if name == "classify":
            made_run.fine_tuning(run)
            (run / "evaluation-test.json").write_text((run / "evaluation.json").read_text())
            task = {"name": "classify", "pair": False, "sequence_length": 12, "problem_type": None}
            config = TrainConfig(run_dir="x", task="classify", train_file="a.tsv", model=model)
        else:
            made_run.pre_training(run)
            objective = "causal" if name == "causal" else "masked_lm"
            config = TrainConfig(run_dir="x", objective=objective, model=model, corpus="docstrings")
        config.write(run / "flags.cfg")
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(lines[8:16]))
        built = tfzoo.build(model, heads=heads, **(_SIZES | {"vocab_size": tokenizer.vocab_size}), **options)
        runs.write_config(run, {"main": built}, {"main": model}, tokenizer, task, run_id="0123456789abcdef")
        if name == "embed":
            path = run / "config.json"
            record = json.loads(path.read_text())
            record["models"]["main"]["sentence"] = dict(
                max_length=12, lowercase=False, prompts=sentence, default_prompt_name="query", similarity="cosine"
            )
            path.write_text(json.dumps(record))
        if name == "causal":
            runs.write_generation_config(run, {"max_new_tokens": 5, "num_beams": 2, "eos_token_id": 3})
        tokenizer.save(run / "tokenizer")
        store = checkpoint.Checkpoints(run / "checkpoints", run_id="0123456789abcdef")
        store.save(600, checkpoint.model_variables(built), progress, best=True)


def _damage_run(folder: pathlib.Path, draw: random.Random) -> str:
    from tfzoo.training import checkpoint

    run = one_of(folder, draw)
    records = sorted(path for path in run.rglob("*") if path.suffix in (".json", ".jsonl", ".cfg"))
    path = draw.choice(records)
    if draw.random() < 0.1:
        return f"{run.name}: {damage_one(run, draw)}"
    if path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        place = draw.randrange(len(lines))
        lines[place] = json.dumps(damage_json(json.loads(lines[place]), draw))
        path.write_text("\n".join(lines) + "\n")
        return f"{run.name}: {path.name}: values"
    if path.name == checkpoint.RECORD and draw.random() < 0.5:
        record = json.loads(path.read_bytes())
        del record["checksum"]
        record = damage_json(record, draw)
        if isinstance(record, dict):
            path.write_bytes(checkpoint._encode(record))
            return f"{run.name}: {path.name}: values, with a correct checksum"
    return f"{run.name}: {damage_file(path, draw)}"


def _read_runs(folder: pathlib.Path) -> Any:
    """Reads a run as generation, evaluation, reports and a resumed training would."""
    from tfzoo.training import checkpoint, evaluating, page, runs, state
    from tfzoo.training.config import TrainConfig
    from tfzoo.training.history import History

    read = []
    for run in sorted(folder.iterdir()):
        model, tokenizer = runs.load(run)
        history = History.read(run)
        store = checkpoint.Checkpoints(run / "checkpoints", read_only=True, run_id=runs.id_of(run))
        step, record, _ = store.read(store.selected(None))
        config = TrainConfig.read(run / "flags.cfg", str(run))
        task = None if runs.task_of(run) is None else evaluating.load(run, config)[1].record()
        origin = dataclasses.asdict(history.origin())
        values = config.values(), step, dataclasses.asdict(state.Progress.read(record, run)), repr(task)
        named = runs.roles(run), runs.embedding_of(run), tokenizer.fingerprint()
        read.append(repr((described(model), values, named, page.html(history), origin)))
    return read


class _Rows:
    """Rows of one document each, for packing."""

    padding_share = 0.25

    def __init__(self, count: int):
        draw = np.random.default_rng(count)
        self._rows = [draw.integers(0, 60, draw.integers(1, 16), np.int32) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = self._rows[index]
        return tokens, np.ones(len(tokens), np.int32)


def _make_packed(folder: pathlib.Path) -> None:
    from tfzoo.data import packed

    flags: dict[str, Any] = dict(text_field="text", raw_text=False, held_out=0.02, bad_text="strict")
    flags |= dict(objective="causal", sequence_length=16, tokenizer="wordpiece", vocab_size=100, lowercase=True)
    packed.write(
        folder / "packed",
        {"train": _Rows(20), "held_out": _Rows(3)},
        {"train": np.arange(50, dtype=np.int32), "held_out": np.arange(5, dtype=np.int32)},
        _tokenizer(),
        flags=flags,
        corpus={"name": "x", "fingerprint": "f" * 64, "report": {"files": 1, "train": {"documents": 20}}},
        shard_rows=8,
    )


def _damage_packed(folder: pathlib.Path, draw: random.Random) -> str:
    from tfzoo import files
    from tfzoo.data import packed

    root = folder / "packed"
    path = root / packed.MANIFEST
    if draw.random() < 0.2:
        return damage_one(root, draw)
    manifest = json.loads(path.read_text())
    if draw.random() < 0.5:
        manifest, done = damage_json(manifest, draw), "manifest: values, with a correct checksum"
    else:
        name = draw.choice(sorted(manifest["files"]))
        (root / name).write_bytes(damage_bytes((root / name).read_bytes(), draw))
        entry = {"bytes": (root / name).stat().st_size, "sha256": files.sha256(root / name)}
        manifest["files"][name] |= entry
        done = f"{name}: bytes, with a correct checksum"
    if isinstance(manifest, dict):
        manifest["sha256"] = packed._checksum(manifest)
    path.write_text(json.dumps(manifest))
    return done


def _read_packed(folder: pathlib.Path) -> Any:
    from tfzoo.data import packed
    from tfzoo.training import inputs
    from tfzoo.training.config import TrainConfig

    config, opened = inputs.find_packed(TrainConfig(run_dir="x", corpus=str(folder / "packed")), {})
    assert opened is not None
    opened.verify()
    tokenizer = opened.tokenizer
    inputs.make_objective(config, tokenizer)
    read: list[Any] = [config.values(), opened.fingerprint, opened.report, tokenizer.fingerprint()]
    for part in packed.PARTS:
        rows = opened.rows(part)
        read += [[values.tolist() for i in range(len(rows)) for values in rows.row(i)], rows.padding_share]
        read.append(opened.token_ids(part).tolist())
    return repr(read)


_RECORDS: dict[str, list[dict[str, Any]]] = {
    "generate": [{"prompt": "a", "temperature": 0.5, "top_k": 3, "seed": 1}, {"prompt": "b"}],
    "score": [{"context": "a", "continuation": "b"}, {"context": "c", "continuation": "d"}],
    "query": [{"query": "red fox", "relevant": ["d1", "d2"], "answers": ["red"]}],
    "predict": [{"id": 3, "text": "a b", "text_pair": "c"}, {"text": "d", "text_pair": "e"}],
}


def _make_records(folder: pathlib.Path) -> None:
    for name, lines in _RECORDS.items():
        (folder / name).mkdir()
        made_run.write_lines(folder / name / "rows.jsonl", lines)


def _damage_records(folder: pathlib.Path, draw: random.Random) -> str:
    path = one_of(folder, draw) / "rows.jsonl"
    if draw.random() < 0.1:
        return f"{path.parent.name}: {damage_one(path.parent, draw)}"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    place = draw.randrange(len(lines))
    lines[place] = damage_json(lines[place], draw)
    made_run.write_lines(path, lines)
    return f"{path.parent.name}: values"


def _read_records(folder: pathlib.Path) -> Any:
    return repr([(inner.name, _READERS[inner.name](str(inner / "rows.jsonl"))) for inner in sorted(folder.iterdir())])


def _generate(path: str) -> Any:
    from tfzoo import generate

    return list(generate.read_input(path))


def _score(path: str) -> Any:
    from tfzoo import score

    return list(score.read_input(path))


def _query(path: str) -> Any:
    from tfzoo.retrieval import measures

    return measures.read_relevant(path), measures.read_answers(path)


def _predict(path: str) -> Any:
    from tfzoo.prediction.rows import Source

    source = Source(path)
    return list(source.rows(["text"], "text_pair")), source.scan(["text"], "text_pair", skip=False)


_READERS = {
    "generate": _generate,
    "score": _score,
    "query": _query,
    "predict": _predict,
}
_MODULES = ("tensorflow", "tfzoo.training.runs", "tfzoo.training.evaluating", "tfzoo.generation", "tfzoo.text.proof")
KINDS = {
    "runs": Kind(_make_runs, _damage_run, _read_runs, modules=_MODULES),
    "packed": Kind(_make_packed, _damage_packed, _read_packed, modules=_MODULES),
    "records": Kind(_make_records, _damage_records, _read_records, modules=("tfzoo.generate", "tfzoo.score")),
}
