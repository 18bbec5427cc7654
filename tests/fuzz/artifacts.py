"""Exported artifacts, which export/verify.py replays."""

import json
import pathlib
import random
import shutil
import subprocess
import sys

from tests import helpers
from tests.fuzz.harness import Kind
from tests.fuzz.mutations import damage_one
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


KINDS = {"artifacts": Kind(_make, _damage, _verify, modules=("tensorflow", "tfzoo.export.__main__"), slow=True)}
