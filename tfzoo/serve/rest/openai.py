"""OpenAI's /v1/models and /v1/embeddings, and /v1/rerank in the form that Cohere and Jina use."""

import base64
import re
from typing import Any

import numpy as np

from tfzoo.json_files import Field, Fields
from tfzoo.serve.core import REST, Call, Core
from tfzoo.serve.errors import invalid
from tfzoo.serve.rest import completions
from tfzoo.serve.rest.http import Request, Response, Route
from tfzoo.serve.rest.json_text import dump, shortest, to_bytes
from tfzoo.serve.rest.openai_forms import MODEL, answering, model_spec, parameters
from tfzoo.serve.servable import ModelSpec, Signature

_DOCUMENT = Field(dict, items=Field(str))
_EMBEDDINGS: Fields = {
    "model": MODEL,
    "input": (Field(str, required=True), Field(list, items=Field(str), required=True)),
    "encoding_format": Field(str, choices=("float", "base64")),
    "dimensions": Field(int, low=1),
}
_RERANK: Fields = {
    "model": MODEL,
    "query": Field(str, required=True),
    "documents": (Field(list, items=Field(str), required=True), Field(list, items=_DOCUMENT, required=True)),
    "top_n": Field(int, low=1),
    "return_documents": Field(bool),
}


def routes(core: Core) -> list[Route]:
    """Returns the routes."""

    def models(request: Request) -> Response:
        # TF Serving answers this path with an error, and its clients send no key; OpenAI's always do.
        if "authorization" not in request.headers:
            raise invalid("Missing model name in request.")
        return Response(dump({"object": "list", "data": [_model(name) for name in core.model_names()]}))

    def embeddings(request: Request) -> Response:
        given = parameters(request, _EMBEDDINGS)
        texts = given["input"] if isinstance(given["input"], list) else [given["input"]]
        if not texts:
            raise invalid("input: must contain at least one text")
        vectors = _run(core, request, model_spec(given["model"]), {"text": texts}, ("embeddings",))["embeddings"]
        size = given.get("dimensions", vectors.shape[-1])
        if size != vectors.shape[-1]:
            raise invalid(f"dimensions: the model's vectors have {vectors.shape[-1]} numbers; omit the parameter")
        vectors = vectors.astype("<f4")
        if given.get("encoding_format") == "base64":
            values: list[Any] = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
        else:
            values = shortest(vectors).tolist()
        data = [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(values)]
        # The tokenizer is inside the model, so that the number of tokens is unknown.
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return Response(dump({"object": "list", "data": data, "model": given["model"], "usage": usage}))

    def rerank(request: Request) -> Response:
        given = parameters(request, _RERANK)
        documents = [each if isinstance(each, str) else each.get("text") for each in given["documents"]]
        if not documents or None in documents:
            raise invalid('documents: must contain texts, or objects with the field "text"')
        inputs = {"text": [given["query"]] * len(documents), "text_pair": documents}
        scores = _relevance(_run(core, request, model_spec(given["model"]), inputs, ()))
        order = sorted(range(len(documents)), key=lambda i: -scores[i])[: given.get("top_n")]
        results: list[dict[str, Any]] = [{"index": i, "relevance_score": scores[i]} for i in order]
        if given.get("return_documents"):
            for result in results:
                result["document"] = {"text": documents[result["index"]]}
        return Response(dump({"model": given["model"], "results": results}))

    posts = {"embeddings": embeddings, "rerank": rerank}
    return [
        Route("GET", re.compile("/v1/models"), models),
        *(Route("POST", re.compile(f"/v1/{name}"), answering(function)) for name, function in posts.items()),
        *completions.routes(core),
    ]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tfzoo"}


def _run(
    core: Core, request: Request, spec: ModelSpec, columns: dict[str, list[str]], outputs: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Returns outputs of serving_default for columns of texts."""

    def read(signature: Signature) -> dict[str, np.ndarray]:
        if signature.inputs.keys() != columns.keys() or not {*outputs} <= signature.outputs.keys():
            wanted = f"{' and '.join(columns)} -> {', '.join(outputs) or 'scores'}"
            raise invalid(f"model: {spec.name} does not have the signature {wanted} that this route needs")
        return {name: _strings(values) for name, values in columns.items()}

    return core.predict(spec, read, outputs, Call(REST, request.deadline))[1]


def _strings(values: list[str]) -> np.ndarray:
    return np.fromiter(map(to_bytes, values), object, len(values))


def _relevance(outputs: dict[str, np.ndarray]) -> list[float]:
    """Returns a score for each row of a classifier of pairs: its value, or the score of the second of two labels."""
    if "value" in outputs:
        return shortest(outputs["value"]).tolist()
    if "scores" in outputs and outputs["scores"].shape[-1] == 2:
        return shortest(outputs["scores"][:, 1]).tolist()
    raise invalid("model: has neither the output value nor the scores of two labels, so that it cannot rank documents")
