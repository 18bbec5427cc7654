"""/openapi.json, the description of all routes, and /docs, the same for people."""

import html
import re
from typing import Any

import tfzoo
from tfzoo.serve.core import Core
from tfzoo.serve.rest.http import EVENTS, HTML, JSON, Request, Response, Route
from tfzoo.serve.rest.json_text import dump
from tfzoo.serve.rest.page import POLICY

_NUMBER, _TEXT, _WHOLE = {"type": "number"}, {"type": "string"}, {"type": "integer"}
_FLAG = {"type": "boolean"}
_ERRORS = {
    400: "the request is malformed, or the model rejects it",
    401: "an API key is missing or wrong",
    404: "the model, or this version of it, is not available",
    408: "the request did not arrive in time",
    413: "the request is too large",
    415: "the content encoding is not supported",
    429: "the server is busy; try again later",
    501: "the model's types have no JSON form",
    503: "the server is not ready",
    504: "the answer took too long",
}
# Rows of an answer, whose form is that of the signature's outputs. NaN and Infinity are not JSON, but written as such.
_ANSWER: dict[str, Any] = {}


def routes(core: Core, has_page: bool, metrics_path: str | None) -> list[Route]:
    """Returns the routes of both forms of the description."""

    def as_json(_: Request) -> Response:
        return Response(dump(description(core.model_names(), metrics_path)))

    def as_page(_: Request) -> Response:
        return Response(_page(description(core.model_names(), metrics_path), has_page).encode(), HTML, headers=POLICY)

    return [
        Route("GET", re.compile("/openapi.json"), as_json, is_public=True),
        Route("GET", re.compile("/docs"), as_page, is_public=True),
    ]


def description(models: list[str], metrics_path: str | None) -> dict[str, Any]:
    """Returns an OpenAPI 3.1 description for the names of the models."""
    paths: dict[str, Any] = {}
    places = {
        "": ("the newest version", []),
        "/versions/{version}": (
            "a version",
            [_parameter("version", {"type": "integer", "minimum": 0, "maximum": 2**63 - 1})],
        ),
        "/labels/{label}": (
            "the version with a label",
            [_parameter("label", {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"})],
        ),
    }
    model = _parameter("model", {"type": "string", **({"enum": models} if models else {})})
    for place, (of, parameters) in places.items():
        base, common = f"/v1/models/{{model}}{place}", {"parameters": [model, *parameters]}
        for method, (summary, body, answer) in _inference().items():
            paths[f"{base}:{method}"] = {**common, "post": _operation(f"{summary} with {of}", answer, body)}
        paths[base] = {
            **common,
            "get": _operation(f"The state of {of}" if place else "The states of all versions", _STATES),
        }
        paths[f"{base}/metadata"] = {**common, "get": _operation(f"The signatures of {of}", {"type": "object"})}
    paths["/v1/models"] = {"get": _operation("The models, for OpenAI's clients, which send an API key", _MODELS)}
    for path, (summary, body, answer) in _openai(models).items():
        paths[path] = {"post": _operation(summary, answer, body, streams="completions" in path)}
    for path, summary in (("/livez", "Whether the server answers"), ("/readyz", "Whether every model can be used")):
        paths[path] = {
            "get": _operation(summary, {"type": "object", "required": ["status"], "properties": {"status": _TEXT}})
        }
    if metrics_path:
        metrics = {
            "summary": "Metrics for Prometheus",
            "responses": {"200": {"description": "metrics", "content": {"text/plain": {}}}},
        }
        paths[metrics_path] = {"get": metrics}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tfzoo serve",
            "version": tfzoo.__version__,
            "description": "TF Serving's REST API, OpenAI's and health.",
        },
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _object(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": required | optional}


def _list(items: dict[str, Any], least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, **({"minItems": least} if least else {})}


def _operation(
    summary: str, answer: dict[str, Any], body: dict[str, Any] | None = None, streams: bool = False
) -> dict[str, Any]:
    error = _object({"error": {"anyOf": [_TEXT, _object({"message": _TEXT})]}})
    content: dict[str, Any] = {JSON: {"schema": answer}}
    if streams:
        content[EVENTS] = {"schema": _TEXT}
    responses: dict[str, Any] = {"200": {"description": "the answer", "content": content}}
    for status, text in _ERRORS.items():
        # /readyz says "not ready" with this status.
        schema = {"anyOf": [error, answer]} if status == 503 else error
        responses[str(status)] = {"description": text, "content": {JSON: {"schema": schema}}}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    return operation


def _inference() -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    name = {"signature_name": _TEXT}
    rows = _object({"instances": {"type": "array", "minItems": 1}}, **name) | {"not": {"required": ["inputs"]}}
    columns = _object({"inputs": {}}, **name) | {"not": {"required": ["instances"]}}
    examples = _object({"examples": _list({"type": "object"}, 1)}, context={"type": "object"}, **name)
    pair = {"type": "array", "prefixItems": [_TEXT, {}], "minItems": 2, "maxItems": 2}
    return {
        "predict": (
            "Run a signature on rows (instances) or columns (inputs)",
            {"type": "object", "oneOf": [rows, columns]},
            {"anyOf": [_object({"predictions": {"type": "array"}}), _object({"outputs": _ANSWER})]},
        ),
        "classify": ("Classify tf.Examples", examples, _object({"results": _list(_list(pair))})),
        "regress": ("Predict a number for tf.Examples", examples, _object({"results": {"type": "array"}})),
    }


_STATES = _object(
    {
        "model_version_status": _list(
            _object(
                {
                    "version": _TEXT,
                    "state": {"enum": ["UNKNOWN", "START", "LOADING", "AVAILABLE", "UNLOADING", "END"]},
                    "status": _object({"error_code": _TEXT, "error_message": _TEXT}),
                }
            )
        )
    }
)
_MODELS = _object({"object": {"const": "list"}, "data": _list(_object({"id": _TEXT, "object": {"const": "model"}}))})


def _optional(schemas: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns schemas of optional parameters: null means that one is not given."""
    return {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in schemas.items()}


def _openai(models: list[str]) -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    model = {"type": "string", "description": "NAME, NAME:VERSION or NAME:LABEL", "examples": models}
    texts = {"anyOf": [_TEXT, _list(_TEXT, 1)]}
    writing: dict[str, dict[str, Any]] = {
        "max_tokens": _WHOLE | {"minimum": 1},
        "temperature": _NUMBER | {"minimum": 0, "maximum": 2},
        "top_p": _NUMBER | {"minimum": 0, "maximum": 1},
        "top_k": _WHOLE | {"minimum": 0},
        "seed": _WHOLE,
        "n": _WHOLE | {"minimum": 1, "maximum": 16},
        "stop": {"anyOf": [_TEXT, _list(_TEXT)]},
        "stream": _FLAG,
    }
    chat: dict[str, dict[str, Any]] = {"max_completion_tokens": _WHOLE | {"minimum": 1}, **writing}
    ranking: dict[str, dict[str, Any]] = {"top_n": _WHOLE | {"minimum": 1}, "return_documents": _FLAG}
    choice = {"index": _WHOLE, "finish_reason": {"enum": ["stop", "length"]}}
    message = _object({"role": {"const": "assistant"}, "content": _TEXT})
    vector = {"anyOf": [_list(_NUMBER), _TEXT]}
    asked = _list(_object({"role": _TEXT, "content": {"anyOf": [_TEXT, _list({"type": "object"})]}}), 1)
    documents = {"anyOf": [_list(_TEXT, 1), _list(_object({"text": _TEXT}), 1)]}
    return {
        "/v1/embeddings": (
            "Vectors of texts",
            _object({"model": model, "input": texts}, **_optional({"encoding_format": {"enum": ["float", "base64"]}})),
            _object({"data": _list(_object({"index": _WHOLE, "embedding": vector})), "model": _TEXT}),
        ),
        "/v1/completions": (
            "Continue texts",
            _object({"model": model, "prompt": texts}, **_optional(writing)),
            _object({"choices": _list(_object({"text": _TEXT, **choice}))}),
        ),
        "/v1/chat/completions": (
            "Answer messages",
            _object({"model": model, "messages": asked}, **_optional(chat)),
            _object({"choices": _list(_object({"message": message, **choice}))}),
        ),
        "/v1/rerank": (
            "Order documents by their relevance to a query",
            _object({"model": model, "query": _TEXT, "documents": documents}, **_optional(ranking)),
            _object({"results": _list(_object({"index": _WHOLE, "relevance_score": _NUMBER}))}),
        ),
    }


_STYLE = """:root { color-scheme: light dark; } body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
max-width: 60rem; padding: 1rem; } table { border-collapse: collapse; } td, th { text-align: left; padding: .2rem .75rem
.2rem 0; vertical-align: top; } code { overflow-wrap: anywhere; }"""


def _page(described: dict[str, Any], has_page: bool) -> str:
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(operation['summary'])}</td></tr>"
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
        if method != "parameters"
    )
    back = '<a href="/">Models</a> · ' if has_page else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Routes</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f'<h1>Routes</h1><p>{back}<a href="/openapi.json">OpenAPI description</a></p>'
        f"<table><thead><tr><th>Method</th><th>Path</th><th></th></tr></thead><tbody>{rows}</tbody></table></body></html>"
    )
