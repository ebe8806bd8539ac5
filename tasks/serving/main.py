"""Runs the reference server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks import certificates, registry

if TYPE_CHECKING:
    from secateur.inference_log.writer import Settings
    from secateur.runtime import Target
    from tasks.certificates import Certificate
    from tasks.serving.app import Limits

TOKEN = "SECATEUR_SERVE_TOKEN"  # noqa: S105 (the name of the variable that holds it)
_LEAST_TOKEN = 16


def run(
    models: Sequence[str],
    host: str,
    port: int,
    target: Target,
    limits: Limits,
    log_root: str | None,
    log_settings: Settings,
    say: Callable[[str], None],
    certificate: Certificate | None = None,
    token: str = "",
) -> None:
    """Serve the champions of source models, until it is asked to end; requests that are being answered are answered first.

    Args:
        models: source models; without any, all of which something serves in the bucket.
        host: address to listen on.
        port: to listen on; 0 takes a free one.
        target: what computes.
        limits: of requests.
        log_root: of the inference log; without, none is kept.
        log_settings: how much of it.
        say: told where it listens.
        certificate: by which it shows itself; without, it speaks plain HTTP.
        token: that everything but its health asks for; empty: nobody is asked.

    Raises:
        InputError: a name that is none, or an address that cannot be listened on.
    """
    import socket

    import uvicorn

    from secateur.inference_log.writer import Writer
    from tasks.serving.app import Server, application

    for model in models:
        registry.check_name(model)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise InputError(f"host, port: cannot listen on {host}:{port}: {error}; choose another with --port") from error
    writer = Writer(log_root, log_settings) if log_root else None
    server = Server([registry.onnx_name(model) for model in models], target, limits, writer)
    config = uvicorn.Config(
        application(server, token),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=30,
        ssl_certfile=certificate.cert if certificate else None,
        ssl_keyfile=certificate.key if certificate else None,
    )
    named = ", ".join(registry.onnx_name(model) for model in models) or "whatever serves in the bucket"
    if certificate is None and certificates.is_exposed(host):
        say(f"Others can reach {host}, without TLS: give --tls-cert and --tls-key, or let a proxy before it end TLS.")
    say(f"Serving {named} on {'http' if certificate is None else 'https'}://{host}:{listening.getsockname()[1]}")
    uvicorn.Server(config).run([listening])


def token_for(host: str, given: str, *, asks: bool) -> str:
    """The token that a server on this address asks for, empty where it asks nobody.

    Args:
        host: address to listen on.
        given: the token of the environment.
        asks: False where the user says that nobody shall be asked.

    Raises:
        InputError: others can reach it and there is no token, or one that can be guessed.
    """
    if not asks:
        return ""
    if given and len(given) < _LEAST_TOKEN:
        raise InputError(
            f"{TOKEN}: expected {_LEAST_TOKEN} characters or more, got {len(given)}; `openssl rand -hex 32` makes one"
        )
    if not given and certificates.is_exposed(host):
        raise InputError(
            f"host: others can reach {host}, and {TOKEN} is not set; set it to a token that clients shall show, listen on 127.0.0.1, "
            "or say --no-auth where something before it asks who they are"
        )
    return given
