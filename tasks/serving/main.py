"""Runs the reference server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks import registry

if TYPE_CHECKING:
    from secateur.inference_log.writer import Settings
    from secateur.runtime import Target
    from tasks.serving.app import Limits


def run(
    models: Sequence[str],
    host: str,
    port: int,
    target: Target,
    limits: Limits,
    log_root: str | None,
    log_settings: Settings,
    say: Callable[[str], None],
) -> None:
    """Serve the champions of source models, until it is asked to end; requests that are being answered are answered first.

    Args:
        models: source models; without any, all of which something serves in the bucket.
        host: address to listen on; TLS is a proxy's.
        port: to listen on; 0 takes a free one.
        target: what computes.
        limits: of requests.
        log_root: of the inference log; without, none is kept.
        log_settings: how much of it.
        say: told where it listens.

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
        application(server), log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=30
    )
    named = ", ".join(registry.onnx_name(model) for model in models) or "whatever serves in the bucket"
    say(f"Serving {named} on http://{host}:{listening.getsockname()[1]}")
    uvicorn.Server(config).run([listening])
