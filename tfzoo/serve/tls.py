"""TLS, and mutual TLS, from TF Serving's SSLConfig, whose fields contain PEM texts."""

import pathlib
import ssl
import tempfile
from typing import Any

import grpc

from tfzoo.errors import UserError, one_line


def grpc_credentials(config: Any) -> grpc.ServerCredentials:
    """Returns the credentials of a gRPC server for a messages.SSLConfig that `http_context` accepts."""
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )


def http_context(config: Any, where: str) -> ssl.SSLContext:
    """Returns the context of an HTTP server for a messages.SSLConfig; `where` is its file's name in errors.

    Raises:
      UserError: the key or a certificate is not valid, or clients are to be verified without a certificate authority.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if config.client_verify and not config.custom_ca:
        raise UserError(f"{where}: client_verify needs custom_ca, the certificates that sign those of clients; add it")
    try:
        with tempfile.TemporaryDirectory() as folder:  # Readable for this user alone.
            pem = pathlib.Path(folder, "server.pem")
            pem.write_text(f"{config.server_key}\n{config.server_cert}")
            context.load_cert_chain(pem)
        if config.client_verify:
            context.load_verify_locations(cadata=config.custom_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (ssl.SSLError, ValueError) as error:
        raise UserError(
            f"{where}: server_key, server_cert or custom_ca is not valid ({one_line(error)}); write their PEM texts"
        ) from None
    return context
