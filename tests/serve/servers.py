"""The server that the black-box tests ask: one in this process, or the one at TFZOO_SERVER_GRPC and _REST."""

import atexit
import functools
import os
import pathlib
import shutil
import tempfile

from tests.serve import models
from tfzoo.serve import messages
from tfzoo.serve.core import Core
from tfzoo.serve.grpc_server import GrpcServer
from tfzoo.serve.loading import Loader
from tfzoo.serve.manager import Manager
from tfzoo.serve.metrics import Metrics
from tfzoo.serve.rest import server as rest_server
from tfzoo.serve.rest.http import Settings


@functools.cache
def core() -> Core:
    """Returns the core of a server with the models of tests.serve.models; it lives as long as the process."""
    folder = pathlib.Path(tempfile.mkdtemp()).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = messages.parse_text(models.save_all(folder).read_text(), messages.ModelServerConfig, "models.config")
    metrics = Metrics()
    manager = Manager(Loader(metrics), poll_seconds=0, max_retries=0, any_label=True)
    atexit.register(manager.stop)
    manager.reload(config)
    return Core(manager, metrics)


@functools.cache
def grpc_address() -> str:
    """Returns HOST:PORT of the gRPC server."""
    if "TFZOO_SERVER_GRPC" in os.environ:
        return os.environ["TFZOO_SERVER_GRPC"]
    server = GrpcServer(core(), {"port": "127.0.0.1:0"}, threads=32)
    atexit.register(server.stop, 1)
    return f"127.0.0.1:{server.port}"


@functools.cache
def rest_address() -> str:
    """Returns HOST:PORT of the REST server."""
    if "TFZOO_SERVER_REST" in os.environ:
        return os.environ["TFZOO_SERVER_REST"]
    settings = Settings(max_request_bytes=core().limits.max_request_bytes, max_requests=core().max_inside)
    server = rest_server.Server(rest_server.application(core(), settings), rest_server.listen("127.0.0.1", 0), None)
    atexit.register(server.stop, 1)
    return f"127.0.0.1:{server.port}"
