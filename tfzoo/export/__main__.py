"""Exports a trained model as artifacts that run without tfzoo. Every artifact is replayed in a separate process, and
all of them are published only if each reproduces the model's answers.

    python -m tfzoo.export --model_dir=runs/bert --output_dir=exports
"""

import json
import logging
import sys
from typing import Any

from absl import flags as absl_flags

from tfzoo import cli, progress, records
from tfzoo.chat import ChatTemplate
from tfzoo.chat.frames import frames_of
from tfzoo.errors import UserError
from tfzoo.export import memory

# Keyword arguments of `artifact.export` that are taken from the flags of the same names.
_OPTIONS = (
    "name version formats sequence_length text_pair long_texts refuse pooling prompt_name max_new_tokens num_beams "
    "precision onnx_profile onnx_variants keep_versions"
).split()

_ANSWERING = ("chat", "preferences")  # Tasks whose models answer messages.


def define_flags(flags: absl_flags.FlagValues) -> None:
    def define(kind, name, default, text, **options):
        getattr(absl_flags, f"DEFINE_{kind}")(name=name, default=default, help=text, flag_values=flags, **options)

    define("string", "model_dir", None, "A run's folder (its best/ if there is one, otherwise its newest checkpoint), "
           "a Hugging Face or sentence-transformers folder, or hf://NAME[@REVISION].")  # fmt: skip
    define("string", "checkpoint", None, "The checkpoint of the run to export instead.")
    define("string", "role", None, "Which model of a run with several models to export, such as generator; by default, "
           "the main model.")  # fmt: skip
    define("string", "output_dir", None, "The folder in which FORMAT/NAME/VERSION/ is created.")
    define("list", "formats", ["savedmodel", "onnx"], "The artifacts to write: savedmodel, onnx, litert.")
    define("string", "name", None, "The name under which the model is served; defaults to the name of its family, "
           "followed by _ROLE if --role is specified.")  # fmt: skip
    define("integer", "version", None, "The version number; defaults to the next free one.")
    define("integer", "keep_versions", None, "Remove all but this many of the newest versions; by default none "
           "is removed.")  # fmt: skip
    define("integer", "sequence_length", None, "The maximum number of tokens in a text; defaults to that of the "
           "fine-tuning, or else to the maximum length of the model, at most 1024.")  # fmt: skip
    define(
        "enum",
        "long_texts",
        "truncate",
        "What to do with a text that is longer than --sequence_length.",
        enum_values=["truncate", "refuse"],
    )
    define("enum", "refuse", "call", "What to refuse if a row of a request is invalid: the whole call, with "
           "INVALID_ARGUMENT, or only that row, with the reason in its output `error`.",
           enum_values=["call", "row"])  # fmt: skip
    define("boolean", "text_pair", None, "The classifier reads pairs of texts; defaults to what the run was fine-tuned "
           "on.")  # fmt: skip
    define("enum", "pooling", None, "How a model without heads pools its token states into one vector per text; "
           "defaults to mean.", enum_values=["mean", "first", "last", "pooled"])  # fmt: skip
    define("string", "prompt_name", None, "The prompt of a sentence-transformers model to put before each text; "
           "defaults to the model's default prompt, if it has one.")  # fmt: skip
    define("integer", "max_new_tokens", None, "The maximum number of tokens that a language model generates; "
           "defaults to the setting in an encoder-decoder's folder, or else to 64, for a decoder at most half of the "
           "sequence length.")  # fmt: skip
    define("integer", "num_beams", None, "The number of beams in the search for the likeliest text; defaults to the "
           "setting in the model's folder.")  # fmt: skip
    define("enum", "precision", "float32", "The precision in which the SavedModel computes; bfloat16 "
           "also stores its weights in two bytes each.",
           enum_values=["float32", "bfloat16", "float16"])  # fmt: skip
    define("enum", "onnx_profile", "standard", "standard writes operators of opset 23; compat, for older runtimes, "
           "those of opset 18; genai writes a decoder's folder for onnxruntime-genai.",
           enum_values=["standard", "compat", "genai"])  # fmt: skip
    define("list", "onnx_variants", [], "Graphs to write in addition to the float32 ones: float16, int8, int8_static, "
           "int8_weights, int4_weights.")  # fmt: skip
    define("string", "calibration_file", None, "A file of texts for calibrating int8_static, one per line (a tab "
           "separates the two texts of a pair); defaults to the few texts in golden.npz.")  # fmt: skip
    absl_flags.mark_flags_as_required(["model_dir", "output_dir"], flag_values=flags)
    for name in ("version", "keep_versions", "sequence_length", "max_new_tokens", "num_beams"):
        cli.positive(flags, name)


def main(flags: absl_flags.FlagValues) -> None:
    memory.return_freed()
    with progress.importing_tensorflow():  # Takes seconds, and --help does not need it.
        from tfzoo.export import artifact
        from tfzoo.training import history, runs

    with progress.stage(f"reading {flags.model_dir}"):
        model, tokenizer = runs.load(flags.model_dir, flags.checkpoint, role=flags.role)
    for name in ("absl", "tensorflow"):  # Their messages about a SavedModel's functions do not concern users.
        logging.getLogger(name).setLevel(logging.WARNING)
    # Exports are not trained, so custom gradients are not saved.
    logging.getLogger("absl").addFilter(lambda record: "unsaved custom gradients" not in record.getMessage())
    options: dict[str, Any] = {name: flags[name].value for name in _OPTIONS}
    for name in ("max_new_tokens", "num_beams"):
        if options[name] is not None and not model.can_generate:
            raise UserError(f"--{name}={options[name]}: model {model.name!r} does not write texts; omit it")
    task = runs.task_of(flags.model_dir)
    if options["text_pair"] is None:
        options["text_pair"] = task is not None and task.pair
    if task is not None and task.name in _ANSWERING:
        # A text is a message of the user, and the model answers it.
        templates = dict(tokenizer.chat_templates)
        frames = frames_of(ChatTemplate(templates, tokenizer)) if templates else None
        if frames is None:
            message = "%s: the export continues texts as they are, because the chat template cannot be put around them"
            logging.getLogger("absl").warning(message, flags.model_dir)
        else:
            tokenizer.frames, tokenizer.adds_bos = frames, False
            options["messages"] = True
    elif options["sequence_length"] is None and task is not None:
        options["sequence_length"] = task.sequence_length
    if task is not None and task.prefix:
        options["prompt"] = f"{task.prefix} "
    if flags.role and flags.name is None:  # Otherwise, two models of a run would be versions of one.
        options["name"] = f"{model.family}_{flags.role}"
    if flags.calibration_file is not None:
        options["calibration_texts"] = [
            records.text(where, record, "text")
            for where, record in records.read(flags.calibration_file, "text", "calibration_file")
        ]
        if not any(text.strip() for text in options["calibration_texts"]):
            raise UserError(f"--calibration_file={flags.calibration_file}: contains no text; write one text per line")
    options["origin"] = history.origin_of(flags.model_dir, flags.checkpoint, flags.role)
    folders = artifact.export(model, tokenizer, flags.output_dir, **options)
    for kind, folder in folders.items():
        print(f"{kind}: {folder}, replayed in a separate process; see {folder / 'manifest.json'}")
        refused = json.loads((folder / "manifest.json").read_text()).get("tokenizer", {}).get("no_graph")
        if refused:
            print(f"{kind}: no tokenizer.onnx: {refused}")


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
