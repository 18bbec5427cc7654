"""Writes a trained model as artifacts that need nothing of tfzoo. None is published before another process
has replayed it with the same answers.

python -m tfzoo.export --model_dir=runs/bert --output_dir=exports
"""

import json
import logging
import sys
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, progress, records
from tfzoo.errors import UserError

# What `artifact.export` is told, beside the model.
_OPTIONS = (
    "name version formats sequence_length text_pair long_texts refuse pooling prompt_name max_new_tokens num_beams "
    "precision onnx_profile onnx_variants keep_versions"
).split()


def define_flags(flags: absl_flags.FlagValues) -> None:
    def define(kind, name, default, text, **options):
        getattr(absl_flags, f"DEFINE_{kind}")(name=name, default=default, help=text, flag_values=flags, **options)

    define("string", "model_dir", None, "a run's folder (its best/ is read, or else its newest checkpoint), a "
           "Hugging Face or sentence-transformers folder, or hf://NAME[@REVISION]")  # fmt: skip
    define("string", "checkpoint", None, "which checkpoint of the run to read instead")
    define("string", "output_dir", None, "where to write FORMAT/NAME/VERSION/")
    define("list", "formats", ["savedmodel", "onnx"], "which artifacts to write: savedmodel, onnx, litert")
    define("string", "name", None, "the name under which the model is served; its family's by default")
    define("integer", "version", None, "a whole number; the next free one by default")
    define("integer", "keep_versions", None, "remove versions older than the newest so many; by default none")
    define(
        "integer", "sequence_length", None, "tokens of the longest text; what the model reads, up to 1024, by default"
    )
    define("enum", "long_texts", "truncate", "what becomes of longer texts", enum_values=["truncate", "refuse"])
    define("enum", "refuse", "call", "what is refused where something is wrong with a row of a request: the call, as "
           "INVALID_ARGUMENT, or the row, whose output `error` says why", enum_values=["call", "row"])  # fmt: skip
    define("boolean", "text_pair", False, "a classifier that reads pairs of texts")
    define("enum", "pooling", None, "what makes one vector of a text, for a model without heads; the mean by "
           "default", enum_values=["mean", "first", "last", "pooled"])  # fmt: skip
    define("string", "prompt_name", None, "which of a sentence-transformers model's prompts texts begin with; by "
           "default its default one, if it has any")  # fmt: skip
    define("integer", "max_new_tokens", 64, "the most tokens that a language model writes")
    define("integer", "num_beams", None, "of the search for its likeliest text; as the model's folder says by default")
    define("enum", "precision", "float32", "what the SavedModel computes in",
           enum_values=["float32", "bfloat16", "float16"])  # fmt: skip
    define("enum", "onnx_profile", "standard", "ONNX operators: of opset 23; of 18 for older runtimes; or a decoder's "
           "folder for onnxruntime-genai", enum_values=["standard", "compat", "genai"])  # fmt: skip
    define("list", "onnx_variants", [], "graphs to write beside the float32 ones: float16, int8, int8_static, "
           "int8_weights, int4_weights")  # fmt: skip
    define("string", "calibration_file", None, "texts, one a line, by which int8_static is calibrated (a pair's are "
           "parted by a tab); golden.npz's few by default")  # fmt: skip
    absl_flags.mark_flags_as_required(["model_dir", "output_dir"], flag_values=flags)
    for name in ("version", "keep_versions", "sequence_length", "max_new_tokens", "num_beams"):
        cli.positive(flags, name)


def main(flags: absl_flags.FlagValues) -> None:
    with progress.importing_tensorflow():  # Which takes seconds, and --help needs none of it.
        from tfzoo.export import artifact
        from tfzoo.training import runs

    with progress.stage(f"reading {flags.model_dir}"):
        model, tokenizer = runs.load(flags.model_dir, flags.checkpoint)
    for name in ("absl", "tensorflow"):  # What they say of a SavedModel's functions is for those who write such.
        logging.getLogger(name).setLevel(logging.WARNING)
    options: dict[str, Any] = {name: flags[name].value for name in _OPTIONS}
    if flags.calibration_file is not None:
        options["calibration_texts"] = [
            records.text(where, record, "text")
            for where, record in records.read(flags.calibration_file, "text", "calibration_file")
        ]
        if not any(text.strip() for text in options["calibration_texts"]):
            raise UserError(f"--calibration_file={flags.calibration_file}: holds no text; write one a line")
    folders = artifact.export(model, tokenizer, flags.output_dir, **options)
    for kind, folder in folders.items():
        print(f"{kind}: {folder}, replayed by another process; see {folder / 'manifest.json'}")
        refused = json.loads((folder / "manifest.json").read_text()).get("tokenizer", {}).get("no_graph")
        if refused:
            print(f"{kind}: no tokenizer.onnx: {refused}")


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
