"""TF Serving's routes."""

import json
import re
import urllib.parse
from typing import Any

from google.protobuf import json_format

from tfzoo.serve import messages
from tfzoo.serve.core import REST, Call, Core
from tfzoo.serve.errors import invalid
from tfzoo.serve.rest import example_json, predict_json
from tfzoo.serve.rest.http import Request, Response, Route
from tfzoo.serve.rest.json_text import parse
from tfzoo.serve.servable import ModelSpec

_VERSION = r"(?:/versions/(\d+)|/labels/([^/:]+))?"
_INFER = re.compile(rf"/v1/models/([^/:]+){_VERSION}:(classify|regress|predict)", re.IGNORECASE | re.ASCII)
_DESCRIBE = re.compile(rf"/v1/models(?:/([^/:]+))?{_VERSION}(/metadata)?", re.IGNORECASE | re.ASCII)
_V1 = re.compile("/v1/.*", re.IGNORECASE | re.DOTALL)


def routes(core: Core) -> list[Route]:
    """Returns the routes for inference, status and metadata."""

    def infer(request: Request, name: str, version: str | None, label: str | None, method: str) -> Response:
        document = parse(request.body)
        spec = _spec(request, name, version, label, predict_json.signature_name(document))
        call = Call(REST, request.deadline)
        if method.lower() == "predict":
            _, outputs = core.predict(
                spec, lambda signature: predict_json.read(document, signature, core.limits), (), call
            )
            return Response(predict_json.write(outputs, predict_json.is_rows(document)))
        if method.lower() == "classify":
            _, result = core.classify(spec, example_json.read(document), call)
            return Response(example_json.classifications(result))
        _, result = core.regress(spec, example_json.read(document), call)
        return Response(example_json.regressions(result))

    def describe(
        request: Request, name: str | None, version: str | None, label: str | None, metadata: str | None
    ) -> Response:
        if name is None:
            raise invalid("Missing model name in request.")
        spec = _spec(request, name, version, label, "")
        content = _metadata(core.metadata(spec)) if metadata else _fields(core.status(spec))
        return Response((json.dumps(content, indent=1) + "\n").encode())

    return [Route("POST", _INFER, infer, refusal=core.refusal), Route("GET", _DESCRIBE, describe)]


def other(request: Request) -> Response:
    """Answers a request that no route matches."""
    if _V1.fullmatch(request.path):
        raise _malformed(request)
    return Response(b"", "text/plain", 404)


def _malformed(request: Request) -> Exception:
    return invalid(f"Malformed request: {request.method} {request.path}")


def _spec(request: Request, name: str, version: str | None, label: str | None, signature: str) -> ModelSpec:
    names = [None if part is None else urllib.parse.unquote(part) for part in (name, label)]
    if any(part is not None and re.search(r"[/:\0]|\ufffd", part) for part in names):
        raise _malformed(request)
    if version is not None and int(version) >= 2**63:
        raise invalid(f"Failed to convert version: {version} to numeric.")
    return ModelSpec(names[0] or "", None if version is None else int(version), names[1], signature)


def _fields(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _metadata(response: Any) -> dict[str, Any]:
    """Returns a GetModelMetadataResponse as TF Serving prints it, with the packed signatures unpacked."""
    signatures = messages.SignatureDefMap.FromString(response.metadata["signature_def"].value)
    spec = _fields(response.model_spec)
    return {
        "model_spec": {"name": spec["name"], "signature_name": "", "version": spec.get("version", "")},
        "metadata": {"signature_def": _fields(signatures)},
    }
