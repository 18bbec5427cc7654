"""Writes a trained model as artifacts that need nothing of tfzoo. None is published before another process
has replayed it with the same answers.

python -m tfzoo.export --model_dir=runs/bert --output_dir=exports
"""

import sys

from absl import flags as absl_flags

from tfzoo import cli


def define_flags(flags: absl_flags.FlagValues) -> None:
    def string(name, default, text):
        absl_flags.DEFINE_string(name, default, text, flag_values=flags)

    string("model_dir", None, "a run's folder: its best/ is read, or else its newest checkpoint")
    string("checkpoint", None, "which checkpoint of the run to read instead")
    string("output_dir", None, "where to write FORMAT/NAME/VERSION/")
    absl_flags.DEFINE_list(
        "formats", ["savedmodel", "onnx"], "which artifacts to write: savedmodel, onnx", flag_values=flags
    )
    string("name", "bert", "the name under which the model is served")
    absl_flags.DEFINE_integer("version", None, "a whole number; the next free one by default", flag_values=flags)
    absl_flags.mark_flags_as_required(["model_dir", "output_dir"], flag_values=flags)
    cli.positive(flags, "version")


def main(flags: absl_flags.FlagValues) -> None:
    from tfzoo import runs  # TensorFlow takes seconds to import, and --help needs none of it.
    from tfzoo.export import artifact

    model, tokenizer = runs.load(flags.model_dir, flags.checkpoint)
    folders = artifact.export(
        model, tokenizer, flags.output_dir, name=flags.name, version=flags.version, formats=flags.formats
    )
    for kind, folder in folders.items():
        print(f"{kind}: {folder}, replayed by another process; see {folder / 'manifest.json'}")


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags))
