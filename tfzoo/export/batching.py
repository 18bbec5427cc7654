"""batching_params.pbtxt: how a server batches requests for a SavedModel.

TF Serving reads the file with --enable_batching and --enable_per_model_batching_parameters, instead of the same fields
of --batching_parameters_file. The sizes are powers of two, so that few shapes occur and at most half of a batch is
padding (copies of a row). pad_variable_length_inputs is never set: it pads token ids with the first id of a row,
without a mask.
"""

import pathlib

NAME = "batching_params.pbtxt"
_TEXT = """\
max_batch_size { value: 32 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 100 }
allowed_batch_sizes: [1, 2, 4, 8, 16, 32]
"""


def write(folder: pathlib.Path) -> None:
    """Writes the file into a SavedModel's folder."""
    (folder / NAME).write_text(_TEXT)
