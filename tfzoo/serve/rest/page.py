"""The page for people at `/`: models, states and signatures, and a form that sends requests and shows answers.

page.html is complete in itself: it loads nothing but the data of this server.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from tfzoo.serve import tensors
from tfzoo.serve.core import Core
from tfzoo.serve.errors import StatusError
from tfzoo.serve.rest.http import HTML, Request, Response, Route
from tfzoo.serve.rest.json_text import dump
from tfzoo.serve.servable import ModelSpec, TensorSpec

_HTML = pathlib.Path(__file__).with_name("page.html")
# Nothing from elsewhere is loaded, and other sites cannot show the page in a frame.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
POLICY = (
    (b"content-security-policy", f"{_POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'".encode()),
)
_DEFAULT = "serving_default"
_STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}


def routes(core: Core) -> list[Route]:
    """Returns the routes of the page and of its data."""
    content = _HTML.read_bytes()

    def show(_: Request) -> Response:
        return Response(content, HTML, headers=POLICY)

    def models(_: Request) -> Response:
        return Response(dump({"models": [_model(core, name) for name in core.model_names()]}))

    return [
        Route("GET", re.compile("/"), show, is_public=True),
        Route("GET", re.compile("/page/models"), models),
    ]


def _model(core: Core, name: str) -> dict[str, Any]:
    versions, signatures = [], {}
    try:
        for status in core.status(ModelSpec(name)).model_version_status:
            state = _STATES.get(status.state, "UNKNOWN")
            versions.append({"version": status.version, "state": state, "error": status.status.error_message})
        with core.servable(ModelSpec(name)) as servable:
            # The first one is chosen in the form.
            for key, signature in sorted(servable.signatures.items(), key=lambda item: item[0] != _DEFAULT):
                signatures[key] = {"inputs": _side(signature.inputs), "outputs": _side(signature.outputs)}
    except StatusError:  # It has no version yet, or no longer.
        pass
    return {"name": name, "versions": versions, "signatures": signatures}


def _side(specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    return {
        name: {
            "dtype": f"DT_{tensors.TYPES[spec.data_type][0].upper()}",
            "shape": None if spec.shape is None else [-1 if size is None else size for size in spec.shape],
        }
        for name, spec in specs.items()
    }
