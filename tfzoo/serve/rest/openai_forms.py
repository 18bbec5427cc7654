"""The forms that all routes of OpenAI's API share: names of models, parameters and errors."""

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from tfzoo.errors import UserError
from tfzoo.json_files import Field, Fields, check
from tfzoo.serve.errors import StatusError, invalid
from tfzoo.serve.rest.http import Request, Response
from tfzoo.serve.rest.json_text import dump, parse
from tfzoo.serve.servable import ModelSpec

# Parameters that do not change an answer here.
_IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"}
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def parameters(request: Request, fields: Fields, fixed: Mapping[str, tuple] = {}) -> dict[str, Any]:
    """Returns the parameters of a request.

    Args:
      request: its body is a JSON object.
      fields: the supported parameters.
      fixed: parameters of which only some values, the defaults, are supported.

    Raises:
      StatusError: a parameter is unknown, missing or has a wrong value.
    """
    given = {name: value for name, value in parse(request.body).items() if value is not None}
    for name, value in given.items():
        if name in fixed:
            if value not in fixed[name]:
                raise invalid(f"{name}: only {' or '.join(map(repr, fixed[name]))} is supported")
        elif name not in fields and name not in _IGNORED:
            raise invalid(f"{name}: the parameter is not supported; omit it")
    try:
        check(given, fields, "the request")
    except UserError as error:
        raise invalid(str(error)) from None
    return given


MODEL = Field(str, required=True)


def model_spec(name: str, signature: str = "") -> ModelSpec:
    """Returns the spec that a model's name means: NAME, NAME:LABEL or NAME:VERSION."""
    model, colon, choice = name.partition(":")
    if choice.isdecimal() and int(choice) < 2**63:
        return ModelSpec(model, int(choice), None, signature)
    return ModelSpec(model, None, choice if colon else None, signature)


def answering(function: Callable[..., Response]) -> Callable[..., Response]:
    """Wraps a route's function so that its errors have OpenAI's form."""

    def call(request: Request, *groups: Any) -> Response:
        try:
            return function(request, *groups)
        except StatusError as error:
            return Response(error_body(error), status=error.http_status)

    return call


def error_body(error: StatusError) -> bytes:
    """Returns the JSON of an error."""
    kind = _TYPES.get(error.http_status, "invalid_request_error" if error.http_status < 500 else "server_error")
    return dump({"error": {"message": error.message, "type": kind, "param": None, "code": error.code.lower()}})


def head(kind: str, object_name: str, model: str) -> dict[str, Any]:
    """Returns the fields with which an answer begins."""
    return {"id": f"{kind}-{uuid.uuid4().hex}", "object": object_name, "created": int(time.time()), "model": model}
