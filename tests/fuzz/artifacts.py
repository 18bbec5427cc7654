"""Exported artifacts: those that export/verify.py replays, and those that tfzoo.predict and the server read."""

import json
import pathlib
import random
import shutil
import subprocess
import sys
from typing import Any

from tests import helpers
from tests.fuzz.folders import one_of
from tests.fuzz.harness import Kind
from tests.fuzz.mutations import damage_file, damage_one
from tfzoo.errors import CheckFailed, UserError
from tfzoo.export import manifest


def _make(folder: pathlib.Path) -> None:
    from tfzoo.export import __main__ as export

    exports = folder.with_name("exports")
    flags = ["--formats=onnx", "--sequence_length=16", "--name=encoder", f"--output_dir={exports}"]
    code, out, err = helpers.run(export, f"--model_dir={helpers.ROOT / 'tests/assets/golden_sentence/bert'}", *flags)
    assert code == 0, (code, out, err)
    folder.rmdir()
    shutil.move(exports / "onnx" / "encoder" / "1", folder)


def _damage(folder: pathlib.Path, draw: random.Random) -> str:
    """Damages a file, mostly with correct checksums in the manifest, so that the damage gets past that check."""
    damage = damage_one(folder, draw)
    try:
        content = json.loads((folder / manifest.NAME).read_text())
        if draw.random() < 0.8:
            stated = ("format", "files", "manifest_sha256")
            manifest.write(folder, {name: value for name, value in content.items() if name not in stated})
            damage += ", with correct checksums"
    except (OSError, ValueError, AttributeError):
        pass
    return damage


def _verify(folder: pathlib.Path) -> str:
    """Returns "ok" if the program says so, and raises an exception with its line otherwise."""
    command = [sys.executable, str(helpers.ROOT / "export" / "verify.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    lines = (done.stdout + done.stderr).splitlines()
    if len(lines) == 1 and (done.returncode, lines[0][:3]) == (0, "ok "):
        return "ok"
    if len(lines) == 1 and (done.returncode, lines[0][:7]) == (4, "FAILED "):
        raise CheckFailed(lines[0])
    if len(lines) == 1 and (done.returncode, lines[0][:7]) == (2, "error: "):
        raise UserError(lines[0])
    raise RuntimeError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")


def _make_served(folder: pathlib.Path) -> None:
    from tests.export import small
    from tests.serve import artifacts
    from tfzoo.export.answers import Options
    from tfzoo.text import training
    from tfzoo.text.sentencepiece import SentencePiece

    for head in _HEADS:
        artifacts.export(small.model("bert", heads=[head]), small.tokenizer(), folder / head / "1", Options(16))
    pieces = SentencePiece(training.train_sentencepiece(_SENTENCES, 60))
    model = small.model("bert", heads=["tag"], vocab_size=pieces.vocab_size)
    artifacts.export(model, pieces, folder / "pieces" / "1", Options(16))
    tokenizer = small.byte_level_tokenizer()
    for name, family in (("writes", "gpt2"), ("rewrites", "bart")):
        model = small.model(family, heads=["lm"], vocab_size=tokenizer.vocab_size)
        artifacts.export(model, tokenizer, folder / name / "1", Options(16, max_new_tokens=3))


def _damage_served(folder: pathlib.Path, draw: random.Random) -> str:
    """Damages the manifest or a file of the tokenizer, mostly with correct checksums; the graph is a program."""
    artifact = one_of(folder, draw) / "1"
    stated = json.loads((artifact / manifest.NAME).read_text())
    damaged = draw.choice([artifact / manifest.NAME, *sorted((artifact / "tokenizer").iterdir())])
    damage = f"{artifact.parent.name}: {damage_file(damaged, draw)}"
    if draw.random() < 0.9:
        try:
            content = json.loads(damaged.read_text()) if damaged.name == manifest.NAME else stated
            for field in ("files", "manifest_sha256"):
                content.pop(field, None)
            manifest.write(artifact, {"format": None, **content})
            damage += ", with correct checksums"
        except (ValueError, AttributeError, TypeError):
            pass
    return damage


def _read_served(folder: pathlib.Path) -> Any:
    """Answers texts as tfzoo.predict and as the server do."""
    import numpy as np

    from tfzoo.onnx_decoding.writer import OnnxWriter
    from tfzoo.prediction import folders
    from tfzoo.serve import decoder
    from tfzoo.serve.errors import StatusError
    from tfzoo.serve.onnx import Onnx

    read: list[Any] = []
    for artifact in sorted(folder.glob("*/1")):
        try:
            served = Onnx("m", 1, artifact)
            if artifact.parent.name == "writes":
                continues = decoder.Decoder(artifact)
                read.append((continues.length, continues.ids(_TEXTS[0])))
                writer = OnnxWriter(artifact, manifest.read(artifact))
                read.append(writer.generate_text(["of"], max_new_tokens=3))
                continue
            signature = served.signatures.get("serving_default")  # Encoder-decoders that write have none.
            inputs = signature.inputs if signature else {}
            columns = {name: np.array([text.encode() for text in _TEXTS], object) for name in inputs}
            if inputs and all(spec.dtype == object for spec in inputs.values()):
                outputs = served.run("serving_default", columns)
                read.append({name: value.tolist() for name, value in sorted(outputs.items())})
        except StatusError as error:
            if error.code in ("UNKNOWN", "INTERNAL"):
                raise
            raise UserError(error.message) from None
        predictor = folders.open_folder(artifact)
        read.append(predictor.answer([(text,) * len(predictor.inputs) for text in _TEXTS]))
    return repr(read)


_SENTENCES = ["the function of a text", "a text of the function", "texts and functions"] * 9
_HEADS = ("classify", "tag", "span", "lm", "embed")
_TEXTS = ("the function of a [MASK]", "")
KINDS = {
    "artifacts": Kind(_make, _damage, _verify, modules=("tensorflow", "tfzoo.export.__main__"), slow=True),
    "served": Kind(
        _make_served,
        _damage_served,
        _read_served,
        modules=("tensorflow", "tests.serve.artifacts", "onnxruntime"),
        slow=True,
    ),
}
