"""python -m tfzoo.serve in a process of its own, and what can be seen of it from outside. Imports no TensorFlow."""

import http.client
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import grpc

from tests.helpers import PATIENCE, ROOT
from tfzoo.serve import messages


def free_port() -> int:
    """Returns a port of the loopback interface that nobody used a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ServerProcess:
    """A running server with a gRPC and an HTTP port, which is ready when the object is made.

    Args:
      flags: of python -m tfzoo.serve, except the ports.

    Attributes:
      port, rest_port: where it listens.
    """

    def __init__(self, *flags: str):
        self.port, self.rest_port = free_port(), free_port()
        self._log = tempfile.TemporaryFile("w+")
        command = [sys.executable, "-X", "faulthandler", "-m", "tfzoo.serve"]
        command += [f"--port={self.port}", f"--rest_api_port={self.rest_port}"]
        self.process = subprocess.Popen(
            [*command, *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=self._log,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
        )  # fmt: skip
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{self.port}", [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
        )
        wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return self.ask("GET", "/readyz")[0] == 200
        except ConnectionError:
            return False

    def ask(self, method: str, path: str, body: bytes | str | None = None) -> tuple[int, bytes]:
        """Sends an HTTP request over a connection of its own; returns the status and the body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=PATIENCE)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def method(self, path: str) -> grpc.UnaryUnaryMultiCallable:
        """Returns a gRPC method of bytes, such as PredictionService/Predict."""
        return self.channel.unary_unary(f"/tensorflow.serving.{path}")

    def send(self, data: bytes, is_whole: bool = True, timeout: float = PATIENCE) -> int | None:
        """Sends bytes to the HTTP port, over a connection of their own.

        Args:
          data: what is sent.
          is_whole: whether it is a complete request; otherwise, the client ends its side of the connection.
          timeout: seconds without anything from the server after which a TimeoutError is raised.

        Returns:
          The status of the answer, or None if there is none.
        """
        with socket.create_connection(("127.0.0.1", self.rest_port), timeout=timeout) as connection:
            try:
                connection.sendall(data)
                if not is_whole:
                    connection.shutdown(socket.SHUT_WR)
                answer = connection.makefile("rb").readline()
                while connection.recv(1 << 16):
                    pass
            except ConnectionError:  # The server may close a connection before it has read everything.
                answer = b""
        return int(answer.split()[1]) if answer else None

    def available(self, model: str) -> list[int]:
        """Returns the available versions of a model."""
        request = messages.GetModelStatusRequest(model_spec={"name": model}).SerializeToString()
        answer = self.method("ModelService/GetModelStatus")(request, timeout=PATIENCE)
        versions = messages.GetModelStatusResponse.FromString(answer).model_version_status
        return [each.version for each in versions if each.state == 30]

    def log(self) -> str:
        """Returns what the process has written to stderr so far."""
        self._log.seek(0)
        return self._log.read()

    def stacks(self) -> str:
        """Ends a server that does not answer, and returns what it wrote, last what its threads were doing."""
        self.process.send_signal(signal.SIGABRT)
        self.process.wait()
        return self.log()[-10_000:]

    def memory(self, field: str = "VmRSS") -> int:
        """Returns the bytes of memory in use, or at most in use so far (VmHWM)."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(rf"^{field}:\s*(\d+) kB", status, re.MULTILINE)
        assert match
        return int(match[1]) * 1024

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def is_running(self) -> bool:
        return self.process.poll() is None

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Waits for the end of the process and returns its exit code."""
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.channel.close()
        if self.is_running():
            self.process.kill()
            self.process.wait()
        self._log.close()


def wait_until(is_so: Callable[[], bool]) -> None:
    """Waits for a condition; raises an AssertionError if it does not come true in a very long time."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, "the condition has not come true"
        time.sleep(0.02)
