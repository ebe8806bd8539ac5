"""Receives MLflow's webhooks and tells Airflow to look at the registry: MLflow cannot sign in there, Airflow cannot check a signature.

What a webhook says of the version is not used: the registry itself says what is new. A forged or repeated one could only
make Airflow look once more.
"""

import base64
import hashlib
import hmac
import os
import time
from collections.abc import Callable, Mapping
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from secateur.errors import InputError
from tasks.certificates import Certificate
from tasks.cli import airflow_api
from tasks.cli.airflow_api import AirflowError

ASSET = "secateur_registry"  # of dags/watch_registry.py
SECRET = "SECATEUR_WEBHOOK_SECRET"  # noqa: S105 (the name of the variable that holds it)
TOLERANCE_S = 300.0
_LARGEST_BODY = 1 << 20
_PATIENCE_S = 10.0
_LEAST_SECRET = 16


def serve(host: str, port: int, certificate: Certificate | None, say: Callable[[str], None]) -> None:
    """Listen for ever, with the secret of the environment; Airflow is that of the environment too, else the local stack's.

    Raises:
        InputError: no secret, or one that can be guessed, or an address that cannot be listened on.
    """
    with listener(host, port, os.environ.get(SECRET, ""), ring, say, certificate) as server:
        say(f"Listening on {'http' if certificate is None else 'https'}://{host}:{server.server_port}")
        server.serve_forever()


def ring() -> None:
    """Tell Airflow that the registry is worth a look."""
    with airflow_api.connect() as client:
        airflow_api.ring(client, ASSET)


def listener(
    host: str,
    port: int,
    secret: str,
    ring: Callable[[], None],
    say: Callable[[str], None],
    certificate: Certificate | None = None,
) -> ThreadingHTTPServer:
    """A server that calls `ring` for every genuine request, and says what it answered.

    204 when it has rung, 401 for a request that is not genuine, 413 without a length or with a large one, 502 when Airflow does
    not answer: MLflow then tries again.

    Raises:
        InputError: a secret that can be guessed, or an address that cannot be listened on.
    """
    if len(secret) < _LEAST_SECRET:
        raise InputError(
            f"{SECRET}: expected {_LEAST_SECRET} characters or more, got {len(secret)}; `openssl rand -hex 32` makes one"
        )

    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE_S

        def handle(self) -> None:
            try:
                super().handle()
            except OSError as error:  # it went away, or speaks no TLS
                say(f"{self.client_address[0]} {type(error).__name__}: {error}")

        def do_POST(self) -> None:
            status = self.judged()
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def judged(self) -> HTTPStatus:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > _LARGEST_BODY:
                self.close_connection = True  # what it still sends is not read
                return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            if not genuine(secret, self.headers, self.rfile.read(int(length)), time.time()):
                return HTTPStatus.UNAUTHORIZED
            try:
                ring()
            except (AirflowError, InputError) as error:
                say(str(error))
                return HTTPStatus.BAD_GATEWAY
            return HTTPStatus.NO_CONTENT

        def log_message(self, template: str, *values: object) -> None:
            say(f"{self.client_address[0]} {template % values}")

    return _listening(host, port, Handler, certificate)


def _listening(
    host: str, port: int, handler: type[BaseHTTPRequestHandler], certificate: Certificate | None
) -> ThreadingHTTPServer:
    try:
        server = ThreadingHTTPServer((host, port), handler)
    except OSError as error:
        raise InputError(f"host, port: cannot listen on {host}:{port}: {error}; choose another with --port") from error
    if certificate is not None:
        # the handshake is the handler's: a client that does not finish one keeps nobody else waiting
        server.socket = certificate.context().wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    return server


def genuine(secret: str, headers: Mapping[str, str] | Message, body: bytes, now: float) -> bool:
    """True when whoever knows the secret signed this body within the last five minutes (`now` in epoch seconds).

    MLflow's signature is that of Standard Webhooks: HMAC-SHA256 of `<delivery id>.<time>.<body>`, in base64 after `v1,`.
    """
    get = headers.get
    delivery, moment = get("X-MLflow-Delivery-Id", ""), get("X-MLflow-Timestamp", "")
    if not moment.isdecimal() or abs(now - int(moment)) > TOLERANCE_S:
        return False
    signed = hmac.new(secret.encode(), f"{delivery}.{moment}.".encode() + body, hashlib.sha256).digest()
    expected = f"v1,{base64.b64encode(signed).decode()}"
    return hmac.compare_digest(expected.encode(), get("X-MLflow-Signature", "").encode())
