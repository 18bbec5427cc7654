"""What the server accepts, and how much of it at a time."""

import dataclasses

from tfzoo.options import Checked, option

STATUS_THREADS = 16  # Threads of each front end for requests that do not wait for a model.


def most_held(max_request_bytes: int) -> int:
    """Returns how many bytes of requests a front end may hold: several of the largest size, but not one per thread."""
    return max(4 * max_request_bytes, 2**26)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits(Checked):
    """Limits of requests, each of which is a flag."""

    max_request_bytes: int = option(
        64 * 2**20,
        "The maximum size of a request in bytes, after decompression.",
        group="Limits",
        low=1,
        high=2**31 - 1,
    )
    max_tensor_elements: int = option(
        2**26, "The maximum number of elements of an input.", group="Limits", low=1, high=2**31 - 1
    )
    max_json_depth: int = option(64, "The maximum nesting depth of a JSON request.", group="Limits", low=1, high=500)
    max_running_requests: int = option(
        0,
        "How many requests run at a time; 0 means one for each processor, or any number with --enable_batching.",
        group="Limits",
        low=0,
    )
    max_queued_requests: int = option(
        128, "How many more requests wait for their turn; others are refused.", group="Limits", low=0
    )
    max_queue_seconds: float = option(
        1.0,
        "How long a request may be expected to wait for its turn; others are refused. Half as many requests as run "
        "may wait longer. Once one has been refused, none may wait while more arrive than the server can answer.",
        group="Limits",
        low=0,
    )
    max_new_tokens: int = option(
        1024, "The maximum number of tokens that a request may ask to generate.", group="Limits", low=1
    )
    drain_seconds: float = option(
        20.0, "How long the requests that run have to finish after SIGTERM.", group="Limits", low=0
    )
