"""A client of TF Serving and of the embedded server, over gRPC or REST behind one interface.

    with connect("http://localhost:8501") as client:          # or grpc://localhost:8500, https://, grpcs://
        client.predict("packages", {"text": ["Returns the inverse of a matrix."]}, label="stable")
        for answer in client.predict_rows("packages", ({"text": line} for line in open("lines.txt"))):
            ...

Inputs and answers are NumPy arrays by name (lists are converted). Strings are str; outputs whose names end in _bytes
are bytes. To copy from: it needs numpy, and for gRPC grpcio and protobuf, but neither TensorFlow nor tfzoo.

    python serving/client.py grpc://localhost:8500 packages '{"text": ["Returns the inverse of a matrix."]}'

prints the answer as JSON. See --help.
"""

import argparse
import base64
import collections
import concurrent.futures
import contextlib
import functools
import http.client
import itertools
import json
import random
import ssl
import sys
import threading
import time
import urllib.parse

import numpy as np

# dtype -> number and name of the DataType, and the field of a TensorProto; strings have the dtype object.
TYPES = {
    "float32": (1, "DT_FLOAT", "float_val"),
    "float64": (2, "DT_DOUBLE", "double_val"),
    "int32": (3, "DT_INT32", "int_val"),
    "uint8": (4, "DT_UINT8", "int_val"),
    "int16": (5, "DT_INT16", "int_val"),
    "int8": (6, "DT_INT8", "int_val"),
    "object": (7, "DT_STRING", "string_val"),
    "int64": (9, "DT_INT64", "int64_val"),
    "bool": (10, "DT_BOOL", "bool_val"),
    "uint16": (17, "DT_UINT16", "int_val"),
    "float16": (19, "DT_HALF", "half_val"),
    "uint32": (22, "DT_UINT32", "uint32_val"),
    "uint64": (23, "DT_UINT64", "uint64_val"),
}
# REST's statuses and the names of the errors that they most likely stand for in gRPC.
CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
         408: "UNAVAILABLE", 409: "ABORTED", 413: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 499: "CANCELLED",
         501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}  # fmt: skip
RETRIED = {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}  # Inference has no side effects, so a repeated request does no harm.
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0  # Seconds before the first retry, and at most.


class ServingError(Exception):
    """A request failed. `code` is the name of a gRPC status, such as "NOT_FOUND"; `wait` the seconds until a retry."""

    def __init__(self, code, message, wait=0.0):
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.wait = code, message, wait


def connect(address, *, api_key=None, ca=None, certificate=None, key=None, timeout=30.0):
    """Returns a client for an address such as grpc://localhost:8500 or https://models.example:8501.

    Args:
      address: the scheme (grpc, grpcs, http or https), host and port.
      api_key: is sent with every request.
      ca: the PEM file with the authority that signed the server's certificate; None means the system's authorities.
      certificate, key: the PEM files of the client, for mutual TLS.
      timeout: seconds within which a request must be answered, including all retries; requests may override it.
    """
    parts = urllib.parse.urlsplit(address)
    transports = {"grpc": Grpc, "grpcs": Grpc, "http": Rest, "https": Rest}
    if parts.scheme not in transports or not parts.hostname or not parts.port:
        raise ValueError(f"{address!r} is not an address; write it as grpc://HOST:PORT or http://HOST:PORT")
    secure = parts.scheme.endswith("s")
    return Client(transports[parts.scheme](parts, secure, api_key, ca, certificate, key), timeout)


class Client:
    """Requests with deadlines and retries. Threads may share a client."""

    def __init__(self, transport, timeout):
        self._transport, self._timeout = transport, timeout
        self._signatures = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._transport.close()

    def predict(self, model, inputs, *, signature="serving_default", version=None, label=None, timeout=None):
        """Returns the outputs of a signature for arrays of inputs.

        Raises:
          ServingError: the server rejects the request, or does not answer within `timeout` seconds.
          ValueError: an input cannot be converted to the type that the signature demands.
        """
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        dtypes, outputs = self._signature((model, version, label), signature, end)
        arrays = {name: _input(name, value, dtypes.get(name)) for name, value in inputs.items()}
        answer = self._retried(end, self._transport.predict, model, version, label, signature, arrays, outputs)
        return {name: _text(name, array) for name, array in sorted(answer.items())}

    def predict_rows(self, model, rows, *, batch_size=32, concurrency=4, **options):
        """Yields the answer for each row (a dict of values by name), in order.

        Rows are read as they are needed and sent in batches; `concurrency` batches are on their way at a time.
        """
        rows = iter(rows)
        batches = iter(lambda: list(itertools.islice(rows, batch_size)), [])
        with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
            pending: collections.deque = collections.deque()
            try:
                for batch in batches:
                    columns = {name: [row[name] for row in batch] for name in batch[0]}
                    pending.append((len(batch), pool.submit(self.predict, model, columns, **options)))
                    if len(pending) > concurrency:
                        yield from _rows(*pending.popleft())
                while pending:
                    yield from _rows(*pending.popleft())
            finally:
                for _, future in pending:
                    future.cancel()

    def status(self, model, *, version=None, label=None, timeout=None):
        """Returns the states of a model's versions, such as {5: "AVAILABLE", 3: "END"}."""
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        return self._retried(end, self._transport.status, model, version, label)

    def wait_until_available(self, model, *, version=None, label=None, timeout=60.0):
        """Waits until a version of a model can be used.

        Raises:
          ServingError: it cannot within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while True:
            problem = "is not AVAILABLE yet"
            try:
                if "AVAILABLE" in self.status(model, version=version, label=label, timeout=1.0).values():
                    return
            except ServingError as error:
                problem = str(error)
            if time.monotonic() > end:
                raise ServingError("DEADLINE_EXCEEDED", f"{model}: {problem} after {timeout:g} seconds")
            time.sleep(0.2)

    def _signature(self, place, name, end):
        """Returns the dtypes of inputs and outputs, which are asked for once: all versions should have the same."""
        if place not in self._signatures:
            self._signatures[place] = self._retried(end, self._transport.signatures, *place)
        if name not in self._signatures[place]:
            raise ServingError("INVALID_ARGUMENT", f"{place[0]}: has no signature {name}")
        return self._signatures[place][name]

    def _retried(self, end, function, *arguments):
        for attempt in itertools.count():
            left = end - time.monotonic()
            if left <= 0:
                raise ServingError("DEADLINE_EXCEEDED", "no answer within the time limit")
            try:
                return function(*arguments, left)
            except ServingError as error:
                # Random waits, so that clients that were refused together do not come back together.
                wait = max(error.wait, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1))
                if error.code not in RETRIED or time.monotonic() + wait >= end:
                    raise
                time.sleep(wait)


def _input(name, value, dtype):
    try:
        return to_array(value, dtype)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def to_array(value, dtype=None):
    """Returns a value as an array of numbers, or of dtype object that contains bytes.

    Args:
      value: an array, or a value or nested lists of them.
      dtype: the dtype to which numbers are converted if it can represent them; None keeps NumPy's choice.
    """
    # NumPy's own types of strings would drop NUL at the end.
    array = np.asarray(value, dtype if dtype is not None and dtype.kind == "O" else None)
    if array.dtype.kind in "OUS":
        array = np.asarray(value, object)
        flat = [item.encode() if isinstance(item, str) else item for item in array.reshape(-1)]
        if not all(isinstance(item, bytes) for item in flat):
            wanted = "numbers or strings" if dtype is None else "strings" if dtype.kind == "O" else "numbers"
            raise ValueError(f"must consist of {wanted}, in lists of equal lengths")
        return np.fromiter(flat, object, len(flat)).reshape(array.shape)
    if array.dtype.name not in TYPES:
        raise ValueError(f"must not have the dtype {array.dtype}")
    if dtype is None or dtype == array.dtype or not (array.dtype.kind in "iuf" and dtype.kind in "iuf"):
        return array
    with np.errstate(invalid="ignore"):
        converted = array.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(converted, array):
        raise ValueError(f"has values that {dtype} cannot represent")
    return converted


def _text(name, array):
    """Returns an output; strings become str, except in outputs whose names end in _bytes."""
    if array.dtype.kind != "O" or name.endswith("_bytes"):
        return array
    texts = (item.decode(errors="replace") for item in array.reshape(-1))
    return np.fromiter(texts, object, array.size).reshape(array.shape)


def _rows(size, future):
    outputs = future.result()
    if any(array.shape[:1] != (size,) for array in outputs.values()):
        raise ServingError("INVALID_ARGUMENT", "the outputs do not consist of one value per row; use predict")
    return [{name: array[i] for name, array in outputs.items()} for i in range(size)]


class Rest:
    """HTTP with a connection for each thread."""

    def __init__(self, address, secure, api_key, ca, certificate, key):
        self._address = address
        self._context = ssl.create_default_context(cafile=ca) if secure else None
        if self._context and certificate:
            self._context.load_cert_chain(certificate, key)
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._threads = threading.local()
        self._connections, self._lock = [], threading.Lock()

    def close(self):
        for connection in self._connections:
            connection.close()

    def predict(self, model, version, label, signature, inputs, outputs, timeout):
        body = {"signature_name": signature, "inputs": {name: _to_json(array) for name, array in inputs.items()}}
        answer = self._ask("POST", self._path(model, version, label) + ":predict", timeout, body)["outputs"]
        if len(outputs) == 1:  # The name of a single output is omitted.
            answer = dict.fromkeys(outputs, answer)
        return {name: _from_json(values, outputs[name]) for name, values in answer.items()}

    def signatures(self, model, version, label, timeout):
        answer = self._ask("GET", self._path(model, version, label) + "/metadata", timeout)
        dtypes = {kind: np.dtype(name) for name, (_, kind, _) in TYPES.items()}

        def side(tensors):
            return {name: dtypes[tensor["dtype"]] for name, tensor in tensors.items() if tensor["dtype"] in dtypes}

        signatures = answer["metadata"]["signature_def"]["signature_def"].items()
        return {name: (side(each["inputs"]), side(each["outputs"])) for name, each in signatures}

    def status(self, model, version, label, timeout):
        answer = self._ask("GET", self._path(model, version, label), timeout)
        return {int(each["version"]): each["state"] for each in answer["model_version_status"]}

    def _path(self, model, version, label):
        path = f"/v1/models/{urllib.parse.quote(model, safe='')}"
        if version is not None:
            return f"{path}/versions/{version}"
        return path if label is None else f"{path}/labels/{urllib.parse.quote(label, safe='')}"

    def _ask(self, method, path, timeout, body=None):
        try:
            connection = self._connection(timeout)
            connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            answer = connection.getresponse()
            content, status = answer.read(), answer.status
        except TimeoutError:
            self._forget()
            raise ServingError("DEADLINE_EXCEEDED", "no answer within the time limit") from None
        except (OSError, http.client.HTTPException) as error:
            self._forget()
            # The first bytes of a server that does not speak HTTP, such as that of the gRPC port, are not text.
            reason = getattr(error, "strerror", "") or str(error) or type(error).__name__
            reason = reason if reason.isprintable() else "the answer is not HTTP; is this the gRPC port?"
            raise ServingError("UNAVAILABLE", f"{self._address.netloc}: {reason}") from None
        if status == 200:
            return json.loads(content)
        try:
            message = json.loads(content)["error"]
        except (ValueError, KeyError, TypeError):
            message = content.decode(errors="replace")[:200]
        wait = answer.headers.get("Retry-After", "")
        raise ServingError(CODES.get(status, "UNKNOWN"), message, float(wait) if wait.isdecimal() else 0.0)

    def _connection(self, timeout):
        connection = getattr(self._threads, "connection", None)
        if connection is None:
            host, port = self._address.hostname, self._address.port
            connection = (
                http.client.HTTPSConnection(host, port, context=self._context)
                if self._context
                else http.client.HTTPConnection(host, port)
            )
            self._threads.connection = connection
            with self._lock:
                self._connections.append(connection)
        connection.timeout = max(timeout, 0.001)
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)
        return connection

    def _forget(self):
        """Closes this thread's connection; the next request opens a new one."""
        self._threads.connection.close()


def _to_json(array):
    if array.dtype.name in ("float32", "float16"):
        return array.astype(str).astype(float).tolist()  # 0.1, not 0.10000000149011612.
    if array.dtype.kind != "O":
        return array.tolist()

    def value(item):
        try:
            return item.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(item).decode()}

    values = np.empty(array.size, object)
    values[:] = [value(item) for item in array.reshape(-1)]
    return values.reshape(array.shape).tolist()


def _from_json(values, dtype):
    if dtype.kind != "O":
        return np.array(values, dtype)
    shape, level = [], [values]
    while level and isinstance(level[0], list):
        shape.append(len(level[0]))
        level = list(itertools.chain.from_iterable(level))
    flat = (base64.b64decode(item["b64"]) if isinstance(item, dict) else item.encode() for item in level)
    return np.fromiter(flat, object, len(level)).reshape(shape)


class Grpc:
    """One channel; a name with several addresses is asked in turn."""

    def __init__(self, address, secure, api_key, ca, certificate, key):
        import grpc

        def read(path):
            if path is None:
                return None
            with open(path, "rb") as file:
                return file.read()

        options = [
            ("grpc.max_receive_message_length", -1),  # 4 MB by default.
            ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
        ]
        if secure:
            credentials = grpc.ssl_channel_credentials(read(ca), read(key), read(certificate))
            self._channel = grpc.secure_channel(address.netloc, credentials, options)
        else:
            self._channel = grpc.insecure_channel(address.netloc, options)
        self._metadata = [("authorization", f"Bearer {api_key}")] if api_key else []
        self._error = grpc.RpcError
        self._messages = messages = _messages()

        def method(path, request, response):
            return self._channel.unary_unary(
                f"/tensorflow.serving.{path}",
                request_serializer=messages[request].SerializeToString,
                response_deserializer=messages[response].FromString,
            )

        self._predict = method("PredictionService/Predict", "PredictRequest", "PredictResponse")
        metadata = "GetModelMetadataRequest", "GetModelMetadataResponse"
        self._metadata_of = method("PredictionService/GetModelMetadata", *metadata)
        self._status = method("ModelService/GetModelStatus", "GetModelStatusRequest", "GetModelStatusResponse")

    def close(self):
        self._channel.close()

    def predict(self, model, version, label, signature, inputs, outputs, timeout):
        answer = self._ask(self._predict, self.request(model, version, label, signature, inputs), timeout)
        return {name: _from_proto(tensor) for name, tensor in answer.outputs.items()}

    def request(self, model, version, label, signature, inputs):
        """Returns the message of a Predict request."""
        request = self._messages["PredictRequest"]()
        self._fill(request.model_spec, model, version, label)
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            tensor = request.inputs[name]
            tensor.dtype = TYPES[array.dtype.name][0]
            for size in array.shape:
                tensor.tensor_shape.dim.add(size=size)
            if array.dtype.kind == "O":
                tensor.string_val.extend(array.reshape(-1))
            else:
                tensor.tensor_content = np.ascontiguousarray(array).tobytes()
        return request

    def signatures(self, model, version, label, timeout):
        request = self._messages["GetModelMetadataRequest"](metadata_field=["signature_def"])
        self._fill(request.model_spec, model, version, label)
        packed = self._ask(self._metadata_of, request, timeout).metadata["signature_def"].value
        dtypes = {number: np.dtype(name) for name, (number, _, _) in TYPES.items()}

        def side(tensors):
            return {name: dtypes[tensor.dtype] for name, tensor in tensors.items() if tensor.dtype in dtypes}

        signatures = self._messages["SignatureDefMap"].FromString(packed).signature_def.items()
        return {name: (side(each.inputs), side(each.outputs)) for name, each in signatures}

    def status(self, model, version, label, timeout):
        request = self._messages["GetModelStatusRequest"]()
        self._fill(request.model_spec, model, version, label)
        states = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
        answer = self._ask(self._status, request, timeout)
        return {each.version: states[each.state] for each in answer.model_version_status}

    def _fill(self, spec, model, version, label):
        spec.name = model
        if version is not None:
            spec.version.value = version
        elif label is not None:
            spec.version_label = label

    def _ask(self, method, request, timeout):
        try:
            return method(request, timeout=timeout, metadata=self._metadata)
        except self._error as error:
            raise ServingError(error.code().name, error.details()) from None


def _from_proto(tensor):
    name, field = next((name, field) for name, (number, _, field) in TYPES.items() if number == tensor.dtype)
    dtype, shape = np.dtype(name), [dim.size for dim in tensor.tensor_shape.dim]
    values = getattr(tensor, field)
    if tensor.tensor_content and name != "object":
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    if name == "float16":
        return np.array(values, np.uint16).view(dtype).reshape(shape)
    return np.fromiter(values, dtype, len(values)).reshape(shape)


# The messages of TF Serving's API that are used here: field -> number and type; * means repeated, < a map from string.
MESSAGES = {
    "Dim": {"size": (1, "int64")},
    "TensorShapeProto": {"dim": (2, "Dim*")},
    "TensorProto": {
        "dtype": (1, "int32"), "tensor_shape": (2, "TensorShapeProto"), "tensor_content": (4, "bytes"),
        "float_val": (5, "float*"), "double_val": (6, "double*"), "int_val": (7, "int32*"),
        "string_val": (8, "bytes*"), "int64_val": (10, "int64*"), "bool_val": (11, "bool*"),
        "half_val": (13, "int32*"), "uint32_val": (16, "uint32*"), "uint64_val": (17, "uint64*"),
    },
    "Version": {"value": (1, "int64")},
    "ModelSpec": {"name": (1, "string"), "version": (2, "Version"), "signature_name": (3, "string"),
                  "version_label": (4, "string")},
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, "<TensorProto")},
    "PredictResponse": {"outputs": (1, "<TensorProto")},
    "GetModelMetadataRequest": {"model_spec": (1, "ModelSpec"), "metadata_field": (2, "string*")},
    "Any": {"type_url": (1, "string"), "value": (2, "bytes")},
    "GetModelMetadataResponse": {"metadata": (2, "<Any")},
    "TensorInfo": {"name": (1, "string"), "dtype": (2, "int32")},
    "SignatureDef": {"inputs": (1, "<TensorInfo"), "outputs": (2, "<TensorInfo")},
    "SignatureDefMap": {"signature_def": (1, "<SignatureDef")},
    "GetModelStatusRequest": {"model_spec": (1, "ModelSpec")},
    "ModelVersionStatus": {"version": (1, "int64"), "state": (2, "int32")},
    "GetModelStatusResponse": {"model_version_status": (1, "ModelVersionStatus*")},
}  # fmt: skip


@functools.cache
def _messages():
    """Returns the classes of MESSAGES by name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="client.proto", package="client", syntax="proto3")

    def declare(message, name, number, kind):
        field = message.field.add(name=name, number=number)
        field.label = field.LABEL_REPEATED if kind[-1] == "*" or kind[0] == "<" else field.LABEL_OPTIONAL
        if kind[0] == "<":  # A map is a list of entries.
            entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
            entry.options.map_entry = True
            declare(entry, "key", 1, "string")
            declare(entry, "value", 2, kind[1:])
            field.type, field.type_name = field.TYPE_MESSAGE, f".client.{message.name}.{entry.name}"
        elif kind.rstrip("*") in MESSAGES:
            field.type, field.type_name = field.TYPE_MESSAGE, f".client.{kind.rstrip('*')}"
        else:
            field.type = field.Type.Value(f"TYPE_{kind.rstrip('*').upper()}")

    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            declare(message, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"client.{name}")) for name in MESSAGES}


def _inputs(text):
    try:
        inputs = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: is not JSON ({error})") from None
    if not isinstance(inputs, dict):
        raise argparse.ArgumentTypeError(f'{text}: is not an object; write {{"NAME": [VALUE, ...]}}')
    return inputs


def main(argv=None):
    parser = argparse.ArgumentParser(description="Sends a request to TF Serving or the embedded server.")
    parser.add_argument("address", help="such as grpc://localhost:8500 or http://localhost:8501")
    parser.add_argument("model", help="the name of the model")
    parser.add_argument("inputs", type=_inputs, help='JSON, such as {"text": ["one", "two"]}')
    parser.add_argument("--signature", default="serving_default", help="(default serving_default)")
    version = parser.add_mutually_exclusive_group()
    version.add_argument("--version", type=int, help="the version to ask, instead of the newest")
    version.add_argument("--label", help="the label of the version to ask")
    parser.add_argument("--api_key", help="is sent with every request")
    parser.add_argument("--ca", help="PEM file of the authority that signed the server's certificate")
    parser.add_argument("--certificate", help="PEM file of the client, for mutual TLS")
    parser.add_argument("--key", help="PEM file of the client's key")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds (default 30)")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait until the model is available")
    flags = parser.parse_args(argv)
    tls = dict(ca=flags.ca, certificate=flags.certificate, key=flags.key)
    choice = dict(version=flags.version, label=flags.label)
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(connect(flags.address, api_key=flags.api_key, timeout=flags.timeout, **tls))
            if flags.wait:
                client.wait_until_available(flags.model, timeout=flags.wait, **choice)
            outputs = client.predict(flags.model, flags.inputs, signature=flags.signature, **choice)
        except (ServingError, ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(json.dumps({name: _to_json(to_array(array)) for name, array in outputs.items()}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
