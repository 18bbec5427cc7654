"""What a model gives beside what its reference gave: python -m tests.parity FOLDER [--readme=README.md]

FOLDER holds cases of tests/assets/references.py, at any depth. For each: the folder goes through the real converter,
outputs, loss and gradients are compared, and the model is written back as NAME/saved, with every stored tensor
bit-identical. --readme rewrites the table between the marks in that file.
"""

import argparse
import json
import pathlib
import re
import shutil
import sys

import keras
import numpy as np
import tensorflow as tf

from tfzoo import huggingface, models, tensors, weights

OUTPUTS, GRADIENTS = 1e-5, 1e-4  # Allowed, times max(1, max|reference|).
MARKS = "<!-- parity: written by make parity -->", "<!-- end of parity -->"


def cases(folder) -> list[pathlib.Path]:
    return sorted(path.parent for path in pathlib.Path(folder).rglob("case.json"))


def compare(case: pathlib.Path) -> dict[str, float]:
    """The largest difference of each output, of the loss and of all gradients, divided by max(1, max|reference|)."""
    info = json.loads((case / "case.json").read_text())
    golden = dict(np.load(case / "golden.npz"))
    model, _ = huggingface.load(case)
    inputs = {name.removeprefix("input."): tf.constant(v) for name, v in golden.items() if name.startswith("input.")}
    with tf.GradientTape() as tape:
        outputs = model(inputs)
        loss = loss_of(outputs[info["loss"]["output"]], golden["target"], info["loss"]["kind"])
    differences = {"loss": _difference(loss, golden["loss"].reshape(()))}
    for name, expected in golden.items():
        if name.startswith("output."):
            name = name.removeprefix("output.")
            differences[name] = _difference(*_real(name, outputs[name].numpy(), expected, golden))
    expected = {n.removeprefix("gradient."): v for n, v in golden.items() if n.startswith("gradient.")}
    if expected:
        trained = model.trainable_variables
        values = {weights.relative_path(v): np.zeros(v.shape, np.float32) for v in model.variables}
        for variable, gradient in zip(trained, tape.gradient(loss, trained)):
            if gradient is not None:
                values[weights.relative_path(variable)] = tf.convert_to_tensor(gradient).numpy()
        ours = weights.stored_arrays(weights.slots(models.page_of(model).WEIGHTS, model), values)
        differences["gradients"] = max(_difference(ours[name], value) for name, value in expected.items())
    return differences


def loss_of(logits, target, kind):
    """Mean cross-entropy over target != -100; of a span, the mean of its start's and its end's."""
    if kind == "span":
        losses = [tf.nn.sparse_softmax_cross_entropy_with_logits(target[:, i], logits[..., i]) for i in (0, 1)]
        return tf.reduce_mean(losses)
    counted = target != -100
    target = np.where(counted, target, 0)
    if kind == "binary":
        each = tf.nn.sigmoid_cross_entropy_with_logits(target.astype(np.float32), logits)
    else:
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(target, logits)
    return tf.reduce_sum(each * counted) / counted.sum()


def there_and_back(case: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the model of `case` to `folder`.

    Raises:
      AssertionError: a tensor, or a field of config.json, is not what it was.
    """
    model, tokenizer = huggingface.load(case)
    huggingface.save(model, folder, tokenizer)
    with tensors.open_folder(case) as one, tensors.open_folder(folder) as other:
        assert one.names == other.names, (case.name, set(one.names) ^ set(other.names))
        for name in one.names:
            assert one.read(name).tobytes() == other.read(name).tobytes(), (case.name, name)
    before, after = (tensors.read_json(path / "config.json") for path in (case, folder))
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    assert not changed, (case.name, {key: (before.get(key), after.get(key)) for key in changed})


def _difference(ours, expected) -> float:
    return float(np.max(np.abs(ours - expected)) / max(1.0, np.max(np.abs(expected))))


def _real(name, ours, expected, golden):
    """What stands at real tokens: padding's states may be anything."""
    decoder = "input.decoder_padding_mask" in golden and name != "memory"
    mask = golden.get("input.decoder_padding_mask" if decoder else "input.padding_mask")
    if mask is None or expected.ndim < 2 or expected.shape[:2] != mask.shape:
        return ours, expected
    return ours[mask], expected[mask]


def table(results: dict[pathlib.Path, dict[str, float]]) -> str:
    """A row for each family: its cases (tests/assets/references.py has them), and the worst of all draws."""
    rows: dict[str, list] = {}
    for case, differences in results.items():
        family = json.loads((case / "case.json").read_text())["family"]
        name = case.parent.name if case.name.isdigit() else case.name
        rows.setdefault(family, []).append((name, differences))
    lines = ["| family | cases | models | outputs and loss | gradients |", "|---|---|---:|---:|---:|"]
    for family, draws in sorted(rows.items()):
        names = ", ".join(sorted({name for name, _ in draws}))
        outputs = max(v for _, d in draws for k, v in d.items() if k != "gradients")
        gradients = max((d["gradients"] for _, d in draws if "gradients" in d), default=None)
        shown = "" if gradients is None else f"{gradients:.1e}"
        lines.append(f"| {family} | {names} | {len(draws)} | {outputs:.1e} | {shown} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--readme", type=pathlib.Path)
    args = parser.parse_args()
    results, failed = {}, []
    for case in cases(args.folder):
        if case.name == "saved":
            continue
        try:
            results[case] = compare(case)
            shutil.rmtree(case / "saved", ignore_errors=True)
            there_and_back(case, case / "saved")
        except Exception as error:
            failed.append(f"{case}: {type(error).__name__}: {error}")
            continue
        over = {k: v for k, v in results[case].items() if not v <= (GRADIENTS if k == "gradients" else OUTPUTS)}
        failed += [f"{case}: {name} differs by {value:.1e}" for name, value in over.items()]
        keras.backend.clear_session()
    text = table(results)
    print(text, *failed, sep="\n")
    if args.readme and not failed:
        begin, end = (re.escape(mark) for mark in MARKS)
        page = args.readme.read_text()
        args.readme.write_text(re.sub(f"(?s)({begin}\n).*(\n{end})", lambda m: m[1] + text + m[2], page))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
