"""The process in which chat templates run: a template may be hostile, and may need any time and memory.

It reads requests and writes replies as lines of JSON; tfzoo.chat.sandbox starts it and limits it. The messages contain
texts with their provenance.

    {"source": a template}                      -> {} or {"invalid": a message, "line": its line or null}
    {"source": a template, "context": values}   -> {"text": a text}, {"refused": a message} or {"failed": a message}
"""

import functools
import itertools
import json
import math
import resource
import sys
from typing import Any

import jinja2

from tfzoo.chat.environment import Environment, Refused
from tfzoo.chat.provenance import Text, joined, who
from tfzoo.errors import one_line


def encode(value: Any) -> Any:
    """Returns JSON for JSON-like values with texts: lists, dicts as lists of pairs, texts as letters and provenance."""
    if isinstance(value, str):
        runs = [[kind, len(list(run))] for kind, run in itertools.groupby(who(value))]
        return {"text": str.__str__(value), "who": runs}
    if isinstance(value, dict):
        return {"items": [[encode(key), encode(item)] for key, item in value.items()]}
    return [encode(item) for item in value] if isinstance(value, list) else value


def decode(value: Any) -> Any:
    """Returns the values of `encode`."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "items" in value:
        return {decode(key): decode(item) for key, item in value["items"]}
    return Text(value["text"], b"".join(bytes([kind]) * length for kind, length in value["who"]))


@functools.lru_cache(maxsize=64)
def _template(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@functools.cache
def _environment() -> Environment:
    return Environment()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the reply to a request."""
    try:
        template = _template(request["source"])
    except Exception as error:  # Including what Python's own compiler cannot do.
        line = getattr(error, "lineno", None) if isinstance(error, jinja2.TemplateError) else None
        return {"invalid": one_line(error), "line": line}
    if "context" not in request:
        return {}
    try:
        return {"text": encode(joined([template.render(decode(request["context"]))]))}
    except Refused as error:
        return {"refused": one_line(error)}
    except MemoryError:
        return {"failed": "MemoryError: the limit of its process is reached"}
    except Exception as error:  # The template is a third-party program, which may fail in any way.
        return {"failed": f"{type(error).__name__}: {one_line(error)}"}


def serve(seconds: int, memory: int) -> None:
    """Replies to the requests on stdin, one at a time, until it is closed.

    Args:
      seconds: of processor time for one request; the process is killed when it has used them.
      memory: of address space, in bytes; what needs more fails.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = math.ceil(used.ru_utime + used.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        reply = answer(json.loads(line))
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()
