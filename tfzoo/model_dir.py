"""The options that specify the model of a program: --model_dir, --checkpoint and --weights."""

import dataclasses
import pathlib

from tfzoo import hub, progress
from tfzoo.options import Checked, option

_GROUP = "Model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelDir(Checked):
    """Where a model is read from, and how its weights are stored. Programs that load a model inherit these options."""

    model_dir: str = option(
        dataclasses.MISSING,
        "Run folder, Hugging Face folder or hf://NAME[@REVISION].",
        group=_GROUP,
    )
    checkpoint: str | None = option(
        None, "Folder of one of the run's checkpoints; by default best/, or the newest without one.", group=_GROUP
    )
    weights: str = option(
        "float32",
        "Storage type of the weight matrices: bfloat16 and int8 round them and need a half or a quarter of the memory; "
        "int8 is faster with --jit_compile.",
        group=_GROUP,
        choices=("float32", "bfloat16", "int8"),
    )

    @property
    def folder(self) -> pathlib.Path:
        """The folder with the files: model_dir, or the local copy of hf://NAME, which is downloaded if necessary.

        Raises:
          UserError: the folder does not exist, or the files cannot be downloaded.
        """
        return hub.folder(self.model_dir)

    def load(self):
        """Returns (model, tokenizer).

        Raises:
          UserError: a file is missing or damaged.
        """
        folder = self.folder
        with progress.importing_tensorflow():
            from tfzoo import nn
            from tfzoo.training import runs
        with progress.stage(f"reading {self.model_dir}"):
            model, tokenizer = runs.load(folder, self.checkpoint)
            nn.store_weights(model, self.weights)
        return model, tokenizer
