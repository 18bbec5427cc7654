"""Installs a version of an exported model in the folder of a server, sets labels and takes them back.

    python -m tfzoo.publish exports/savedmodel/bert/2 --to=/srv/models                 # All requests get version 2.
    python -m tfzoo.publish exports/savedmodel/bert/3 --to=/srv/models --label=canary  # Those that ask for canary: 3.
    python -m tfzoo.publish exports/savedmodel/bert/3 --to=/srv/models                 # All requests get version 3.
    python -m tfzoo.publish --rollback=bert --to=/srv/models                           # Version 2 again.

The artifact is verified (replayed by its verify.py), copied to TO/NAME/VERSION under a temporary name, compared with
its manifest, and renamed. TO/models.config then names the versions to load: the one that was published without a label,
and those with labels. A server that polls that file (--model_config_file=TO/models.config
--model_config_file_poll_wait_seconds=30) follows.

TF Serving refuses to move a label to a version that it has not loaded: the command then only adds the version, and
moves the label when it is repeated. Versions are never removed. TO/published.json records what was published, for
--rollback.
"""

import json
import pathlib
import re
import shutil
import sys

from absl import flags as absl_flags

from tfzoo import cli, files, json_files
from tfzoo.errors import CheckFailed, UserError
from tfzoo.export import publish, verify
from tfzoo.serve import models_config

MANIFEST = "manifest.json"
RECORD = "published.json"
_PLATFORMS = {"savedmodel": "tensorflow", "onnx": "onnx"}  # Only the embedded server serves ONNX artifacts.
_FIELDS = {"kind": json_files.Field(str, choices=tuple(_PLATFORMS), required=True)}


def define_flags(flags: absl_flags.FlagValues) -> None:
    for name, text in (
        ("artifact", "The artifact's folder, which may also be the first argument without --artifact=."),
        ("to", "The folder of the server's models."),
        ("label", "The label to set; by default, the version is for requests without a label."),
        (
            "rollback",
            "The name of a model whose --label (by default, requests without one) returns to the version before.",
        ),
        ("base_path", "The path of TO as the server sees it, such as /models in a container; defaults to TO."),
    ):
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)
    absl_flags.mark_flags_as_required(["to"], flag_values=flags)


def main(flags: absl_flags.FlagValues) -> None:
    if (flags.artifact is None) == (flags.rollback is None):
        raise UserError("specify either an artifact to publish or --rollback=NAME")
    label = flags.label or ""
    if label and not re.fullmatch(r"[A-Za-z0-9_.-]+", label):
        raise UserError(f"--label={label}: must consist of letters, digits, _, . and -")
    to = pathlib.Path(flags.to)
    base_path = flags.base_path or str(to.absolute())
    if not base_path.startswith("/"):
        raise UserError(f"--base_path={base_path}: is not an absolute path, which TF Serving requires")
    if not to.exists():
        files.check_can_be_made(to, "to")
        with files.writing(to):
            to.mkdir(parents=True)
    with files.Lock(to):
        published = _read(to / RECORD)
        before = {name: _current(labels) for name, labels in published.items()}
        if flags.rollback is not None:
            name = flags.rollback
            _take_back(name, label, published.get(name, {}))
        else:
            name, version = _install(pathlib.Path(flags.artifact), to)
            versions = published.setdefault(name, {}).setdefault(label, [])
            if versions[-1:] != [version]:
                versions.append(version)
        current = _current(published[name])
        platform, *others = {_platform(to / name / str(version)) for version in current.values()}
        if others:
            raise UserError(f"{to / name}: contains SavedModels and ONNX artifacts; give one of them another --name")
        config, folder = to / models_config.NAME, f"{base_path.rstrip('/')}/{name}"
        was = before.get(name, {})
        moved_to = {version for each, version in current.items() if each and was.get(each, version) != version}
        if missing := moved_to - models_config.loaded(config, name):
            models_config.edit(config, name, platform, folder, was, missing)
            print(f"{name}: version {min(missing)} will be loaded; repeat the command when it is available")
            return
        models_config.edit(config, name, platform, folder, current)
        files.atomic_write(to / RECORD, json.dumps(published, indent=1) + "\n")
    for each, version in sorted(current.items()):
        print(f"{name}: version {version} {f'has the label {each}' if each else 'answers requests without a label'}")


def _install(artifact: pathlib.Path, to: pathlib.Path) -> tuple[str, int]:
    """Verifies an artifact, copies it, and returns its name and version."""
    if not (artifact / MANIFEST).is_file():
        raise UserError(f"{artifact}: is not an artifact; specify a folder NAME/VERSION that tfzoo.export has written")
    _platform(artifact)
    try:
        stated = verify.read_manifest(artifact)
    except verify.Failure as error:
        raise CheckFailed(f"{artifact}: {error}; nothing was published") from None
    name, version = stated["name"], stated["version"]
    folder = to / name / str(version)
    if folder.exists():
        if (folder / MANIFEST).read_bytes() != (artifact / MANIFEST).read_bytes():
            raise UserError(f"{folder}: already exists with other content; export under another --version")
        return name, version
    publish.replay([artifact])
    try:
        with files.atomic_folder(folder) as partial:
            shutil.copytree(artifact, partial, dirs_exist_ok=True, symlinks=True)
            verify.check_files(partial, stated["files"])
    except verify.Failure as error:
        raise CheckFailed(f"{artifact}: changed while it was copied ({error}); nothing was published") from None
    return name, version


def _platform(folder: pathlib.Path) -> str:
    """Returns the model_platform of an artifact."""
    path = folder / MANIFEST
    stated = json_files.read(path)
    json_files.check(stated, _FIELDS, path)
    return _PLATFORMS[stated["kind"]]


def _take_back(name: str, label: str, published: dict[str, list[int]]) -> None:
    """Removes the current version of a label; a label without an earlier version is removed."""
    versions = published.get(label, [])
    if not versions or (len(versions) == 1 and (not label or len(published) == 1)):
        where = f"under the label {label}" if label else "without a label"
        current = f"before version {versions[0]}" if versions else "yet"
        raise UserError(f"--rollback={name}: no version was published {where} {current}; publish one")
    versions.pop()
    if not versions:
        del published[label]


def _current(labels: dict[str, list[int]]) -> dict[str, int]:
    """Returns the current version of each label."""
    return {label: versions[-1] for label, versions in labels.items()}


def _read(path: pathlib.Path) -> dict[str, dict[str, list[int]]]:
    """Returns the published versions: model -> label ("" for none) -> versions, the current one last."""
    published = json_files.read(path) if path.exists() else {}
    labels = json_files.Field(dict, items=json_files.Field(list, items=json_files.Field(int, low=0)))
    json_files.check(published, dict.fromkeys(published, labels), path)
    return published


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        arguments[0] = f"--artifact={arguments[0]}"
    sys.exit(cli.run(main, define_flags, arguments, usage=f"[ARTIFACT] {cli.USAGE}"))
