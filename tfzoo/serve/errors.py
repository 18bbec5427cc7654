"""Failures of requests: a gRPC status name and a message, which the front ends translate."""

# The status that REST gives for each of gRPC's names.
HTTP_STATUS = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INTERNAL": 500,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class StatusError(Exception):
    """A request failed.

    Args:
      code: the name of a gRPC status, such as "INVALID_ARGUMENT".
      message: what a client reads.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.http_status = HTTP_STATUS[code]
        self.code, self.message = code, message


def invalid(message: str) -> StatusError:
    """Returns an INVALID_ARGUMENT error."""
    return StatusError("INVALID_ARGUMENT", message)
