"""Malformed and hostile requests over gRPC and HTTP, each a pure function of its number.

A few of them are valid by chance.
"""

import collections
import gzip
import random
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from tests.serve.process import ServerProcess
from tfzoo.serve import messages

_SILENCE = 300  # Seconds; answers take milliseconds.
VOCAB, LENGTH = 65, 16  # Of the models that read ids.
IDS = (-1, 0, 1, VOCAB - 1, VOCAB, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63))
# What a client or an operator did wrong, or the server's limits; everything else would be the server's fault.
_REFUSALS = {
    "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED",
}  # fmt: skip
_DIMS = (-(2**63), -2, -1, 0, 1, 1, 2, 3, 3, LENGTH, LENGTH + 1, 1000, 2**20, 2**20 + 1, 2**26, 2**31, 2**40, 2**62)
# The models of tests.serve.models and tests.serve.faults_test, and for each signature the names of its inputs.
MODELS = ("half_plus_two", "half_plus_two", "old_style", "tokens", "tokens")
SIGNATURES = {
    "serving_default": ("x", "token_ids"), "upper": ("text",), "several": ("ids", "scale"), "classify": ("inputs",),
    "regress": ("inputs",), "": ("x",),
}  # fmt: skip
_OTHER_MODELS = ("", "nobody", "../tokens", "a\0b", "é" * 99)
_OTHER_SIGNATURES = ("nothing", "__saved_model_init_op", "\n")
_FIELDS = {
    "float_val": "f", "double_val": "f", "int_val": "i", "string_val": "s", "int64_val": "i", "bool_val": "b",
    "half_val": "h", "scomplex_val": "f", "dcomplex_val": "f", "uint32_val": "u", "uint64_val": "u",
}  # fmt: skip
_TEXTS = (b"", b"a", b"\xff\xfe", b"a\0b", "東京 é".encode(), b"x" * 5000, b"\xed\xa0\x80", b"[MASK]" * 50)
_FLOATS = (0.0, 1.5, float("nan"), float("inf"), -float("inf"), 3.4e38, 1e-45)
# Parts of JSON texts.
_LITERALS = (
    "1", "0.5", "-1", "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e400", "01", "+1", "1.", ".5", "1e", "0x10",
    "2147483647", "2147483648", "9223372036854775807", "9223372036854775808", "1" * 400, "1" * 5000, "-0", "1e-999",
    "true", "null", "nul", '""', '"a"', '"\\ud800"', '"\\u0000"', '"\ufeff"', '"' + "é" * 300 + '"', '"\\x"', '"\t"',
    "{}", "[]", "[[]]", '{"b64": "YQ=="}', '{"b64": "!"}', '{"b64": 1}', '{"b64": "YQ==", "x": 1}', '{"a": 1, "a": 2}',
    "[" * 100 + "]" * 100, "[" * 30 + "1" + "]" * 30, "[" * 5000, '{"a":' * 3000 + "1" + "}" * 3000, "'a'", "]", ",",
    str(VOCAB), str(VOCAB - 1), "[[1, 2], [3]]", "[[1, 2, 3]]", "[1, [2]]", f"[{', '.join(['1'] * (LENGTH + 1))}]",
)  # fmt: skip


class _Draw(random.Random):
    """Random choices for requests to some models."""

    models: Sequence[str]
    signatures: Mapping[str, Sequence[str]]


class Requests:
    """The requests of a seed.

    Args:
      seed: any number.
      models: the models to ask for, beside some that do not exist.
      signatures: the names of their inputs by signature.
    """

    def __init__(self, seed: int, models: Sequence[str] = MODELS, signatures: Mapping[str, Sequence[str]] = SIGNATURES):
        self.seed, self._models, self._signatures = seed, models, signatures

    def _draw(self, what: str) -> _Draw:
        draw = _Draw(f"{self.seed} {what}")
        draw.models, draw.signatures = self._models, self._signatures
        return draw

    def grpc(self, number: int) -> tuple[str, bytes]:
        """Returns the method and the message of a request."""
        draw = self._draw(f"grpc {number}")
        build = draw.choice([_predict] * 6 + [_examples] * 3 + [_multi_inference, _metadata, _status, _random_bytes])
        method, data = build(draw)
        return method, _damaged(draw, data) if draw.random() < 0.3 else data

    def http(self, number: int) -> tuple[bytes, bool]:
        """Returns what to send, and whether it is a complete request, for which the server owes an answer."""
        draw = self._draw(f"http {number}")
        method = draw.choice(["POST"] * 8 + ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
        return _request(draw, method, _path(draw), _json(draw))

    def openai(self, number: int) -> tuple[bytes, bool]:
        """Returns the same for a route in OpenAI's form."""
        draw = self._draw(f"openai {number}")
        route = draw.choice(list(_OPENAI))
        return _request(draw, "POST", f"/v1/{route}", _openai(draw, route))


def _request(draw: _Draw, method: str, path: str, text: str) -> tuple[bytes, bool]:
    body = text.encode(errors="surrogatepass")
    if draw.random() < 0.3:
        body = _damaged(draw, body)
    headers = ["Host: localhost", "Connection: close"]
    if draw.random() < 0.1:
        body = gzip.compress(body)
        body = _damaged(draw, body) if draw.random() < 0.5 else body
        headers.append("Content-Encoding: gzip")
    elif draw.random() < 0.05:
        headers.append(f"Content-Encoding: {draw.choice(['br', 'gzip, gzip', 'GZIP', 'x' * 200])}")
    if draw.random() < 0.2:
        odd = ["Accept-Encoding: ;;q=", "Content-Type: text/\xff", "X-Long: " + "a" * 9000, "Authorization: Bearer"]
        headers.append(draw.choice(odd))
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in headers)
    if draw.random() < 0.85:
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1", "replace") + body, True
    return _odd_http(draw, head.encode("latin-1", "replace"), body), False


def _damaged(draw: _Draw, data: bytes) -> bytes:
    """Returns bytes of which some are changed, removed, repeated or moved."""
    damaged = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        begin = draw.randrange(len(damaged) + 1)
        end = min(len(damaged), begin + draw.choice([1, 1, 4, 40]))
        change = draw.randrange(5)
        if change == 0:
            damaged[begin:end] = draw.randbytes(end - begin)
        elif change == 1:
            del damaged[begin:end]
        elif change == 2:
            damaged[begin:begin] = damaged[begin:end] * draw.choice([1, 3])
        elif change == 3:
            damaged[begin:end] = draw.choice([b"\xff", b"\0", b"\x80" * 12, b"\n", b'"', b"[", b"\xff\xff\xff\xff\x0f"])
        else:
            del damaged[begin:]
    return bytes(damaged)


def _spec(draw: _Draw, spec: Any) -> str:
    """Fills a ModelSpec and returns the name of its signature."""
    spec.name = draw.choice(draw.models if draw.random() < 0.6 else _OTHER_MODELS)
    name = spec.signature_name = draw.choice(list(draw.signatures) if draw.random() < 0.7 else _OTHER_SIGNATURES)
    if draw.random() < 0.15:
        spec.version.value = draw.choice([-1, 0, 1, 123, 2**63 - 1])
    elif draw.random() < 0.1:
        spec.version_label = draw.choice(["", "stable", "../x", "a" * 1000])
    return name


def _predict(draw: _Draw) -> tuple[str, bytes]:
    request = messages.PredictRequest()
    names = list(draw.signatures.get(_spec(draw, request.model_spec), ()))
    if draw.random() < 0.15:
        names.append(draw.choice(["extra", "", "x" * 1000]))
    if draw.random() < 0.05:
        names = []
    for name in names:
        _tensor(draw, request.inputs[name])
    for _ in range(draw.choice([0] * 8 + [1, 2])):
        request.output_filter.append(draw.choice(["y", "upper", "nothing", ""]))
    return "PredictionService/Predict", request.SerializeToString()


def _tensor(draw: _Draw, tensor: Any) -> None:
    tensor.dtype = draw.choice([1, 3, 7, 9, 1, 3, 7, 9, 2, 0, 20, 101, 10**6, *range(24)])
    sizes = [draw.choice(_DIMS) for _ in range(draw.choice([0, 1, 1, 2, 2, 3, 6]))]
    if draw.random() < 0.4:
        sizes = [draw.choice([1, 2]), *draw.choice([[], [3], [LENGTH], [LENGTH + 1], [1000]])]
    if draw.random() < 0.02:
        sizes = [1] * 300
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_shape.unknown_rank = draw.random() < 0.02
    if draw.random() < 0.2:
        tensor.tensor_content = draw.randbytes(draw.choice([0, 1, 4, 7, 8, 12, 24, 4 * LENGTH]))
        if draw.random() < 0.5:
            tensor.tensor_content = struct.pack("<3q", *draw.choices([-1, 0, VOCAB, 2**31 - 1, 2**63 - 1], k=3))
        return
    usual = {1: "float_val", 2: "double_val", 3: "int_val", 7: "string_val", 9: "int64_val"}
    field = usual.get(tensor.dtype, "int_val") if draw.random() < 0.8 else draw.choice(list(_FIELDS))
    values = {
        "f": _FLOATS, "i": IDS if field == "int64_val" else [i for i in IDS if abs(i) < 2**31], "s": _TEXTS,
        "b": (True, False), "h": (0, 1, 0x7E00, 0x7C00, 2**31 - 1, -1), "u": (0, VOCAB, 2**32 - 1),
    }[_FIELDS[field]]  # fmt: skip
    getattr(tensor, field).extend(draw.choices(values, k=draw.choice([0, 1, 1, 2, 3, LENGTH, 2000])))


def _feature(draw: _Draw, feature: Any) -> None:
    kind = draw.randrange(4)
    count = draw.choice([0, 1, 1, 1, 2, 100])
    if kind == 0:
        feature.bytes_list.value.extend(draw.choices(_TEXTS, k=count))
    elif kind == 1:
        feature.int64_list.value.extend(draw.choices(IDS, k=count))
    elif kind == 2:
        feature.float_list.value.extend(draw.choices(_FLOATS, k=count))


def _input(draw: _Draw, examples: Any) -> None:
    rows = examples.example_list.examples
    if draw.random() < 0.3:
        rows = examples.example_list_with_context.examples
        _feature(draw, examples.example_list_with_context.context.features.feature["x"])
    for _ in range(draw.choice([0, 1, 1, 3, 50])):
        row = rows.add()
        for name in draw.sample(["x", "y", ""], draw.choice([0, 1, 1, 2])):
            _feature(draw, row.features.feature[name])


def _examples(draw: _Draw) -> tuple[str, bytes]:
    method = draw.choice(["Classify", "Regress"])
    request = messages.ClassificationRequest() if method == "Classify" else messages.RegressionRequest()
    _spec(draw, request.model_spec)
    if draw.random() < 0.6:
        request.model_spec.name, request.model_spec.signature_name = draw.choice(draw.models), method.lower()
    _input(draw, request.input)
    return f"PredictionService/{method}", request.SerializeToString()


def _multi_inference(draw: _Draw) -> tuple[str, bytes]:
    request = messages.MultiInferenceRequest()
    for _ in range(draw.choice([0, 1, 2, 2, 30])):
        task = request.tasks.add()
        task.model_spec.name = draw.choice(draw.models[:2])
        task.model_spec.signature_name = draw.choice(["classify", "regress", "serving_default"])
        task.method_name = draw.choice(["tensorflow/serving/classify", "tensorflow/serving/regress", "", "x"])
    _input(draw, request.input)
    return "PredictionService/MultiInference", request.SerializeToString()


def _metadata(draw: _Draw) -> tuple[str, bytes]:
    request = messages.GetModelMetadataRequest()
    _spec(draw, request.model_spec)
    request.metadata_field.extend(draw.choices(["signature_def", "", "x"], k=draw.choice([0, 1, 3])))
    return "PredictionService/GetModelMetadata", request.SerializeToString()


def _status(draw: _Draw) -> tuple[str, bytes]:
    request = messages.GetModelStatusRequest()
    _spec(draw, request.model_spec)
    return "ModelService/GetModelStatus", request.SerializeToString()


def _random_bytes(draw: _Draw) -> tuple[str, bytes]:
    # Groups within groups, for ever, are a message that a careless parser follows too deeply.
    data = draw.choice([draw.randbytes(draw.choice([1, 10, 1000])), b"\x0b" * 10_000, b"\x0a\xff\xff\xff\xff\x07", b""])
    return f"PredictionService/{draw.choice(['Predict', 'Classify', 'MultiInference'])}", data


def _value(draw: _Draw, depth: int = 3) -> str:
    kind = draw.random()
    if depth == 0 or kind < 0.55:
        return draw.choice(_LITERALS)
    items = [_value(draw, depth - 1) for _ in range(draw.choice([0, 1, 1, 2, 3]))]
    if kind < 0.8:
        return f"[{', '.join(items)}]"
    inputs = {name for names in draw.signatures.values() for name in names}
    names = draw.choices([*sorted(inputs), "b64", "extra", ""], k=len(items))
    return "{" + ", ".join(f'"{name}": {item}' for name, item in zip(names, items)) + "}"


def _json(draw: _Draw) -> str:
    if draw.random() < 0.15:
        return _value(draw)
    key = draw.choice(["instances", "instances", "inputs", "inputs", "examples", "Instances"])
    members = [f'"{key}": {_value(draw)}']
    if draw.random() < 0.6:
        name = draw.choice([*draw.signatures, *_OTHER_SIGNATURES, "a\\u0000b"]).replace("\n", "\\n")
        text = f'"{name}"' if draw.random() < 0.9 else _value(draw)
        members.insert(draw.randrange(2), f'"signature_name": {text}')
    if draw.random() < 0.1:
        members.append(f'"{draw.choice([key, "context", "inputs", "x"])}": {_value(draw)}')
    return "{" + ", ".join(members) + "}"


# Route -> what a request has; others are sometimes added.
_OPENAI = {
    "completions": ("prompt",),
    "chat/completions": ("messages",),
    "embeddings": ("input",),
    "rerank": ("query", "documents"),
}
_OPTIONS = (
    "max_tokens", "temperature", "top_p", "top_k", "seed", "n", "stop", "stream", "echo", "logprobs", "encoding_format",
    "top_n", "return_documents", "dimensions", "tools", "user", "x",
)  # fmt: skip
_SOME_TEXTS = (
    '"the function"',
    '["the", "of"]',
    '"' + "the " * 200 + '"',
    '[""]',
    "[5, 6]",
    "[[5, 6], [7]]",
    "[-1]",
    f"[{VOCAB}]",
)
_MESSAGES = (
    '[{"role": "user", "content": "the"}]', '[{"role": "user"}]', '[{"role": "{{ 1/0 }}", "content": "{% raw %}"}]',
    "[]",
    '[{"role": "user", "content": [{"type": "text", "text": "of"}]}]', '[{"role": 5, "content": null}]',
    "[" + ", ".join(['{"role": "user", "content": "of"}'] * 300) + "]",
)  # fmt: skip


def _openai(draw: _Draw, route: str) -> str:
    members = [f'"model": "{draw.choice(draw.models)}"' if draw.random() < 0.9 else f'"model": {_value(draw)}']
    for other, names in _OPENAI.items():
        for name in names:
            if draw.random() < (0.9 if other == route else 0.03):
                usual = draw.choice(_MESSAGES if name == "messages" else _SOME_TEXTS)
                members.append(f'"{name}": {usual if draw.random() < 0.7 else _value(draw)}')
    for name in draw.sample(_OPTIONS, draw.choice([0, 1, 2, 3])):
        usual = draw.choice(["1", "0.5", "2", "true", '"float"', '"base64"', '"the"'])
        members.append(f'"{name}": {usual if draw.random() < 0.6 else _value(draw)}')
    draw.shuffle(members)
    return "{" + ", ".join(members) + "}"


def _path(draw: _Draw) -> str:
    if draw.random() < 0.7:
        name = draw.choice(draw.models)
        return f"/v1/models/{name}:{draw.choice(['predict', 'predict', 'predict', 'classify', 'regress', 'x'])}"
    name = draw.choice(
        ["..", "%2e%2e", "%2f", "a%2fb", "%00", "half_plus_two%00", "half_plus_two%2f..", "%ff", "%", "%zz", "a" * 9000,
         "half_plus_two", "", ":", "tokens/versions/1", "tokens/versions/-1", "tokens/versions/99999999999999999999",
         "tokens/labels/..", "tokens/labels/%00", "tokens/versions/\xb2", "..%2f..%2f..%2fetc%2fpasswd"]
    )  # fmt: skip
    end = draw.choice([":predict", "/metadata", "", ":classify", "?x=1", "#", "//", ":predict/x"])
    return draw.choice(
        [f"/v1/models/{name}{end}"] * 6 + [f"/{name}", "/v1", "*", "http://[/", "/v1/models\\x", "/metrics"]
    )


def _odd_http(draw: _Draw, head: bytes, body: bytes) -> bytes:
    """Returns bytes that are not a request, or not a whole one."""
    return draw.choice(
        [
            head + b"Content-Length: %d\r\n\r\n" % (len(body) + 100) + body,
            head + b"Content-Length: -1\r\n\r\n" + body,
            head + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n" + body,
            head + b"Content-Length: %s\r\n\r\n" % (b"9" * 30) + body,
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % (len(body) + 5) + body,
            head + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + body,
            head + b"Transfer-Encoding: gzip\r\n\r\n" + body,
            head + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
            head + b"Upgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            head,
            head.replace(b"HTTP/1.1", b"HTTP/9.9") + b"\r\n",
            head.replace(b"HTTP/1.1", b"") + b"\r\n",
            head.replace(b": ", b"") + b"\r\n",
            head + b"A: b\r\n" * 3000 + b"\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(100),
            draw.randbytes(draw.choice([1, 100, 70_000])),
            b"\0" * 100_000,
            b"\r\n" * 100,
        ]
    )


def refusals(server: ServerProcess, requests: Requests, kinds: Sequence[str], tries: int) -> collections.Counter:
    """Sends malformed requests of some kinds (grpc, http, openai) in turn; returns how many had each outcome.

    Raises:
      AssertionError: the server does not answer, or with an error that is its own fault. If it is silent, the message
        shows what its threads were doing.
    """
    outcomes: collections.Counter[object] = collections.Counter()
    before = server.memory()
    for number in range(tries):
        kind = kinds[number % len(kinds)]
        shown = f"{kind} request {number} of seed {requests.seed}"
        if kind == "grpc":
            method, data = requests.grpc(number)
            try:
                server.method(method)(data, timeout=_SILENCE)
                outcomes["OK"] += 1
            except grpc.RpcError as error:
                code = error.code().name
                assert code != "DEADLINE_EXCEEDED", f"{shown}: silence\n{server.stacks()}"
                assert code in _REFUSALS, f"{shown}: {code} {error.details()}"
                outcomes[code] += 1
        else:
            made, is_whole = getattr(requests, kind)(number)
            try:
                status = server.send(made, is_whole, _SILENCE)
            except TimeoutError:
                raise AssertionError(f"{shown}: silence\n{server.stacks()}") from None
            assert status is not None or not is_whole, f"{shown}: no answer"
            assert status is None or status < 500, f"{shown}: {status}"
            outcomes[status] += 1
    grown = (server.memory("VmHWM") - before) / 2**20
    print(f"{tries} malformed requests: {dict(outcomes.most_common())}; {grown:.0f} MB more memory")
    assert grown < 256, f"{grown} MB more memory"
    return outcomes
