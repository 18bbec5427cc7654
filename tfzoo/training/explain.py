"""Messages for errors during a run."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence

from tfzoo import lazy
from tfzoo.errors import UserError
from tfzoo.training.config import TrainConfig

tf = lazy.module("tensorflow")


def not_finite(config: TrainConfig, step: int, in_a_row: int, saved: Sequence[int]) -> str:
    """Returns the error message for a non-finite loss or gradient that ends the run.

    Args:
      config: of the run.
      step: the step of the non-finite loss.
      in_a_row: number of consecutive failures before it.
      saved: the steps of the checkpoints.
    """
    remedy = (
        f"start a new run in another --run_dir with --learning_rate below {config.learning_rate:g}"
        + (f" or --clip_norm below {config.clip_norm:g}" if config.clip_norm else " or with --clip_norm")
        + (", or skip those batches with --on_nonfinite=rollback" if config.on_nonfinite == "stop" else "")
    )
    count = f" after {in_a_row} earlier failures without progress in between" if in_a_row else ""
    return (
        f"the loss or gradient of step {step} is not finite{count}; nothing was saved after step "
        f"{saved[-1] if saved else 0}; {remedy}"
    )


@contextlib.contextmanager
def explained(current: Callable[[], TrainConfig], num_replicas: int) -> Iterator[None]:
    """Converts errors that TensorFlow raises during a run to one-line messages with a remedy.

    Args:
      current: returns the config of the current stage.
      num_replicas: over which a batch is divided.

    Raises:
      UserError: the memory is insufficient, or a row could not be read.
    """
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        config = current()
        share = config.batch_size // num_replicas
        more = next((n for n in range(config.accumulation + 1, share + 1) if share % n == 0), None)
        shape = re.search(r"tensor with shape\[[\d,]*\]", str(error))
        raise UserError(
            f"out of memory{f' for a {shape[0]}' if shape else ''} while processing {share // config.accumulation} "
            f"rows of {config.sequence_length} tokens at a time: "
            + (f"add --accumulation={more}, which computes the same with {share // more} rows; or " if more else "")
            + "start a new run in another --run_dir with a lower --batch_size or --sequence_length, or a smaller model"
        ) from None
    except tf.errors.OpError as error:
        match = re.search(r"UserError: (.*)", error.message)  # An exception in the input pipeline arrives as text.
        if match is None:
            raise
        raise UserError(match[1]) from None
