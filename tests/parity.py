"""Compares models with their reference: python -m tests.parity FOLDER [--page=docs/models.md]

FOLDER contains cases of tests/assets/references.py, at any depth. For each case, the folder is read by the real
converter; outputs, loss and gradients are compared; and the model is saved as NAME/saved, with every stored tensor
bit-identical. --page rewrites the table between the marks in that file.

--fresh tests the other direction: it fills FOLDER with tiny models that tfzoo builds, NAME/saved, and their outputs,
NAME/golden.npz, of every kind and head that transformers has; `references.py --check FOLDER` compares them.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import shutil
import sys

import keras
import numpy as np
import tensorflow as tf

import tfzoo
from tfzoo import json_files, models
from tfzoo.text.wordpiece import WordPiece
from tfzoo.weights import huggingface, safetensors_files
from tfzoo.weights import table as weight_table

OUTPUTS, GRADIENTS = 1e-5, 1e-4  # Tolerances, times max(1, max|reference|).
ROUNDING = 4  # For an ill-conditioned draw: the tolerance, times the float32 error of the reference.
MARKS = "<!-- parity: written by make parity -->", "<!-- end of parity -->"


VOCAB, LENGTH, LABELS = 53, 12, 3
TINY = dict(vocab_size=VOCAB, hidden_size=16, num_layers=2, num_heads=4, intermediate_size=24, max_positions=16)
# Further sizes, for models that have them. All sizes differ, so that no two can be confused.
TINY_TOO = dict(num_decoder_layers=3, num_kv_heads=2, head_dim=6, embedding_size=10, window=4)
FRESH: dict[str, dict] = {
    "reformer": dict(axial_shape=[4, 4], axial_dims=[6, 10], lsh_chunk_length=4, local_chunk_length=4, num_hashes=2)
    | dict(num_buckets=[2, 4], attention_layers=["lsh", "local"]),
    "t5": dict(relative_buckets=8, relative_distance=20),
    "transformer": dict(positions="sinusoidal_concat", norm_epsilon=1e-5),  # As in Marian.
}
PADDING = {"roberta": 1, "bart": 1, "xlnet": 5, "transformer": VOCAB - 1}  # 0 for the others, as in the tokenizer.


def cases(folder) -> list[pathlib.Path]:
    """Returns the folders of the cases of references.py."""
    paths = sorted(pathlib.Path(folder).rglob("case.json"))
    return [path.parent for path in paths if not json.loads(path.read_text()).get("fresh")]


def compare(case: pathlib.Path, model) -> dict[str, float]:
    """Returns the largest difference of each output, the loss and all gradients, divided by max(1, max|reference|)."""
    info = json.loads((case / "case.json").read_text())
    golden = dict(np.load(case / "golden.npz"))
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
        values = {weight_table.relative_path(v): np.zeros(v.shape, np.float32) for v in model.variables}
        for variable, gradient in zip(trained, tape.gradient(loss, trained)):
            if gradient is not None:
                values[weight_table.relative_path(variable)] = tf.convert_to_tensor(gradient).numpy()
        page, kind = models.page_of(model), json_files.read(case / "config.json")["model_type"]
        computed = {
            huggingface.saved_name(slot.name, model, kind, page): slot.to_stored(
                [values[weight_table.relative_path(variable)] for variable in slot.variables]
            )
            for slot in weight_table.slots(page.WEIGHTS, model)
        }
        # The reference has fixed tensors, such as sinusoidal positions, whose gradients are 0.
        differences["gradients"] = max(
            _difference(computed.get(name, np.float32(0)), value) for name, value in expected.items()
        )
    return differences


def is_rounding(case: pathlib.Path, over: dict[str, float]) -> bool:
    """Returns whether differences above the tolerance are float32 rounding of an ill-conditioned draw.

    They are if the differences computed in float64 are within the tolerance, and if these, which are the rounding of
    the reference itself, are at least a fourth of the float32 differences.
    """
    exact = compare(case, huggingface.load(case, dtype="float64")[0])
    within = all(exact[name] <= (GRADIENTS if name == "gradients" else OUTPUTS) for name in over)
    return within and all(value <= ROUNDING * exact[name] for name, value in over.items())


def loss_of(logits, target, kind):
    """Returns the mean cross-entropy over target != -100; for a span, the mean of its start and its end."""
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


def there_and_back(case: pathlib.Path, model, tokenizer, folder: pathlib.Path) -> None:
    """Saves the model that was read from `case` to `folder`.

    Raises:
      AssertionError: a tensor or a field of config.json has changed.
    """
    huggingface.save(model, folder, tokenizer)
    with safetensors_files.open_folder(case) as one, safetensors_files.open_folder(folder) as other:
        assert one.names == other.names, (case.name, set(one.names) ^ set(other.names))
        for name in one.names:
            assert one.read(name).tobytes() == other.read(name).tobytes(), (case.name, name)
    before, after = (json_files.read(path / "config.json") for path in (case, folder))
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    assert not changed, (case.name, {key: (before.get(key), after.get(key)) for key in changed})


def _difference(actual, expected) -> float:
    return float(np.max(np.abs(actual - expected)) / max(1.0, np.max(np.abs(expected))))


def _real(name, actual, expected, golden):
    """Returns the values at real tokens; the values at padding are arbitrary."""
    decoder = "input.decoder_padding_mask" in golden and name != "memory"
    mask = golden.get("input.decoder_padding_mask" if decoder else "input.padding_mask")
    if mask is None or expected.ndim < 2 or expected.shape[:2] != mask.shape:
        return actual, expected
    return actual[mask], expected[mask]


def table(results: dict[pathlib.Path, dict[str, float]]) -> str:
    """Returns a table with a row for each family: its cases in tests/assets/references.py, and the worst draw."""
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


def fresh_models():
    """Yields (name, arguments of tfzoo.build) for every family that transformers has.

    Of the first configuration of a family every head; of the others, those that differ in more than size.
    """
    for family in models.FAMILIES:
        page, seen = models.page(family), []
        for name in page.CONFIGS if page.WEIGHTS is not None else ():
            _, config = models.find(name)
            overrides = TINY | {k: v for k, v in TINY_TOO.items() if getattr(config, k)} | FRESH.get(family, {})
            config = dataclasses.replace(config, **overrides)
            if config in seen:
                continue
            heads = sorted(set(page.ARCHITECTURES.values())) if not seen else [page.Model.DEFAULT_HEADS]
            seen.append(config)
            for head in heads:
                yield name, overrides | dict(heads=head)
                if family == "reformer" and "lm" in head:
                    yield name, overrides | dict(heads=head, causal=False)


def write_fresh(folder: pathlib.Path, name: str, arguments: dict, seed: int) -> pathlib.Path:
    """Builds a model, adds noise to all weights, saves it, and records its outputs."""
    random = np.random.default_rng(seed)
    model = tfzoo.build(name, num_labels=LABELS, **arguments)
    for variable in model.variables:
        if not weight_table.is_state(variable):
            variable.assign_add(random.normal(0, 0.15, variable.shape))
    case = folder / "-".join([name, *model.head_names, *(["masked"] if arguments.get("causal") is False else [])])
    shutil.rmtree(case, ignore_errors=True)
    family = models.page_of(model).__name__.rpartition(".")[2]
    words = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(5, VOCAB))])
    tfzoo.save(model, case / "saved", words if PADDING.get(family, 0) == 0 else None)
    inputs = fresh_inputs(model, family, random)
    outputs = model(inputs)
    arrays = {f"input.{k}": v for k, v in inputs.items()} | {f"output.{k}": v.numpy() for k, v in outputs.items()}
    np.savez_compressed(case / "golden.npz", **arrays)
    about = dict(family=family, heads=model.head_names, fresh=True)
    (case / "case.json").write_text(json.dumps(about, indent=2) + "\n")
    return case


def fresh_inputs(model, family: str, random) -> dict[str, np.ndarray]:
    """Returns three rows: one full, the others padded on the right (XLNet: on the left)."""
    config, classify = model.config, "classify" in model.head_names
    mask, words = _rows(LENGTH, random)
    if classify:  # The end token, at which encoder-decoders of transformers read the class.
        words[np.arange(3), mask.sum(1) - 1] = {"bart": 2, "t5": 1}.get(family, 6)
    if family == "xlnet":
        mask, words = mask[:, ::-1], words[:, ::-1]
    padding = PADDING.get(family, 0)
    inputs = {"token_ids": np.where(mask, words, padding).astype(np.int32), "padding_mask": mask}
    if "segment_ids" in model.INPUTS:
        inputs["segment_ids"] = ((np.arange(LENGTH) > 2) & mask).astype(np.int32)
    if "decoder_token_ids" in model.INPUTS:
        decoder_mask, words = (mask, np.roll(words, 1, 1)) if classify else _rows(LENGTH - 3, random)
        words[:, 0] = {"bart": 2}.get(family, padding)
        inputs["decoder_token_ids"] = np.where(decoder_mask, words, padding).astype(np.int32)
        inputs["decoder_padding_mask"] = decoder_mask
    for name in getattr(model, "rotations", ()):
        shape = (config.num_heads, config.head_dim, config.num_hashes, sum(config.num_buckets) // 2)
        inputs[name] = random.normal(size=shape).astype(np.float32)
    return inputs


def _rows(length, random):
    mask = np.arange(length) < np.array([length, length - 5, 3])[:, None]
    return mask, random.integers(6, VOCAB - 1, mask.shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--page", type=pathlib.Path)
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    if args.fresh:
        written = [write_fresh(args.folder, *model, seed) for seed, model in enumerate(fresh_models())]
        print(f"{len(written)} models written to {args.folder}")
        return
    results, failed = {}, []
    found = cases(args.folder)
    if not found:
        parser.error(f"no cases in {args.folder}")
    for case in found:
        try:
            model, tokenizer = huggingface.load(case)
            results[case] = compare(case, model)
            shutil.rmtree(case / "saved", ignore_errors=True)
            there_and_back(case, model, tokenizer, case / "saved")
        except Exception as error:
            failed.append(f"{case}: {type(error).__name__}: {error}")
            continue
        over = {k: v for k, v in results[case].items() if not v <= (GRADIENTS if k == "gradients" else OUTPUTS)}
        if over and is_rounding(case, over):
            print(f"{case}: ill-conditioned: within the tolerance in float64; {over}")
            over = {}
        failed += [f"{case}: {name} differs by {value:.1e}" for name, value in over.items()]
        keras.backend.clear_session()
    text = table(results)
    print(text, *failed, sep="\n")
    if args.page and not failed:
        begin, end = (re.escape(mark) for mark in MARKS)
        text_of_page = args.page.read_text()
        args.page.write_text(re.sub(f"(?s)({begin}\n).*(\n{end})", lambda m: m[1] + text + m[2], text_of_page))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
