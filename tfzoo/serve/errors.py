"""Failures of requests: a gRPC status name and a message, which the front ends translate."""

# gRPC's status names in the order of their numbers -> the status that REST gives.
HTTP_STATUS = {
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
CODES = tuple(HTTP_STATUS)


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
