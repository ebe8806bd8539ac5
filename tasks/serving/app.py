"""The server's routes, its limits, and how a champion takes the place of another without a request being dropped."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as release
from typing import TYPE_CHECKING, Any, cast

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tasks import bucket
from tasks.serving.metrics import Metrics
from tasks.serving.protocol import HEADER, ProtocolError, answer, parse
from tasks.serving.served import Served, champion_of

if TYPE_CHECKING:
    from secateur.inference_log.writer import Writer
    from secateur.runtime import Target

log = logging.getLogger("secateur.serving")

LONGEST_LABELS = 10_000  # in a request
RETRY_AFTER_S = "1"


@dataclass(frozen=True)
class Limits:
    """What one request may take, and how many may wait."""

    body_bytes: int = 64 << 20
    receive_s: float = 30.0  # for all of the body
    wait_s: float = 10.0  # for its turn
    waiting: int = 256  # requests, beyond which the next is told to come again
    parallel: int = 1  # requests that are computed at once
    poll_s: float = 2.0  # between looks at what the bucket points to


class Server:
    """The models that are served, and the threads that compute: all state of one server."""

    def __init__(self, models: Sequence[str], target: Target, limits: Limits, writer: Writer | None) -> None:
        """Serve these models of the bucket; without any, every one of which something serves there."""
        self._all = not models
        self.limits = limits
        self.metrics = Metrics(writer)
        self.writer = writer
        self._target = target
        self._served: dict[str, Served | None] = dict.fromkeys(models)
        self._threads = ThreadPoolExecutor(limits.parallel, thread_name_prefix="inference")
        self._turn = asyncio.Semaphore(limits.parallel)
        self._waiting = 0

    def served(self, model: str, version: str | None = None) -> Served:
        """What serves of a model.

        Raises:
            ProtocolError: 404 for another model or version, 503 before anything of it serves.
        """
        if model not in self._served:
            raise ProtocolError(
                404, f"model: expected one of {', '.join(self._served) or 'none yet'}, got {model[:200]!r}"
            )
        found = self._served[model]
        if found is None:
            raise ProtocolError(503, f"{model}: no version is ready yet")
        if version is not None and version != found.version:
            raise ProtocolError(
                404, f"version: {model} serves version {found.version}, its champion, alone; got {version[:50]!r}"
            )
        return found

    @property
    def ready(self) -> bool:
        """Whether every model has a version that answers."""
        return all(found is not None for found in self._served.values())

    @property
    def versions(self) -> dict[str, str | None]:
        """What serves, by model."""
        return {model: None if found is None else found.version for model, found in self._served.items()}

    async def watch(self) -> None:
        """Follow the bucket for ever: a new champion is fetched and warmed up beside the old one, and takes its place at once."""
        while True:
            await self.look()
            await asyncio.sleep(self.limits.poll_s)

    async def look(self) -> None:
        """Look once at what every model's pointer says."""
        if self._all:
            try:
                for model in await asyncio.to_thread(bucket.serving):
                    self._served.setdefault(model, None)
            except Exception as error:
                log.warning("the bucket cannot be listed: %s", error)
        for model, now in list(self._served.items()):
            try:
                found = await asyncio.to_thread(champion_of, model, self._target, now)
                self.metrics.looked(model, await asyncio.to_thread(bucket.read_json, model, "monitor.json"))
            except Exception as error:  # whatever it is, what serves goes on
                self.metrics.failed_reload(model)
                log.warning("%s: still %s: %s", model, f"version {now.version}" if now else "nothing", error)
                continue
            if found is not now:
                self._served[model] = found
                self.metrics.loaded(found)
                log.info("%s: version %s serves", model, found.version)

    async def infer(self, served: Served, request: Request) -> Response:
        """Answer one request."""
        begun, came = time.perf_counter(), datetime.now(UTC)
        body = await self._body(request)
        asked = parse(body, request.headers.get(HEADER), served.inputs, served.outputs)
        key = asked.id or str(uuid.uuid4())
        # the first output is what looks compare, so the log has it whatever was asked for
        names = tuple(dict.fromkeys((served.outputs[0].name, *asked.outputs)))
        arrays = await self._computed(served, asked.arrays, names)
        content, headers = answer(served.model, served.version, key, arrays, asked.outputs)
        if self.writer is not None:
            from secateur.inference_log.schema import Record

            inputs = {spec.name: array for spec, array in zip(served.inputs, asked.arrays, strict=True)}
            took = (time.perf_counter() - begun) * 1000
            self.writer.write(
                Record(came, key, served.model, served.version, inputs, arrays, took, metadata=asked.metadata)
            )
        return Response(content, headers=headers)

    async def label(self, model: str, request: Request) -> Response:
        """Take the truth of earlier requests."""
        import numpy as np

        from secateur.inference_log.schema import Label

        self.served(model)
        if self.writer is None:
            raise ProtocolError(501, "labels: this server keeps no log")
        try:
            given = json.loads(await self._body(request))["labels"]
            labels = [(str(one["id"]), np.atleast_1d(np.asarray(one["label"]))) for one in given]
        except (ValueError, TypeError, KeyError) as error:
            raise ProtocolError(400, 'expected {"labels": [{"id": ..., "label": ...}, ...]}') from error
        if len(labels) > LONGEST_LABELS or any(label.dtype.kind not in "biuf" for _, label in labels):
            raise ProtocolError(400, f"labels: expected numbers, of {LONGEST_LABELS} requests at most")
        for key, label in labels:
            self.writer.write(Label(datetime.now(UTC), key, model, label))
        return JSONResponse({"taken": len(labels)})

    async def _body(self, request: Request) -> bytes:
        """All of a request's body, within size and time."""
        length = request.headers.get("Content-Length", "0")
        most = self.limits.body_bytes
        if not length.isdecimal() or int(length) > most:
            raise ProtocolError(413, f"expected a body of {most} bytes at most, got {length[:20]}")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.receive_s):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise ProtocolError(413, f"expected a body of {most} bytes at most, got more")
                    parts.append(part)
        except TimeoutError as error:
            raise ProtocolError(408, f"expected the body within {self.limits.receive_s:g} s") from error
        return b"".join(parts)

    async def _computed(self, served: Served, arrays: tuple[Any, ...], names: tuple[str, ...]) -> dict[str, Any]:
        """The outputs, when it is this request's turn."""
        if self._waiting >= self.limits.waiting:
            raise ProtocolError(503, f"{self._waiting} requests wait already; come again")
        self._waiting += 1
        try:
            async with asyncio.timeout(self.limits.wait_s):
                await self._turn.acquire()
        except TimeoutError as error:
            raise ProtocolError(503, f"not its turn within {self.limits.wait_s:g} s; come again") from error
        finally:
            self._waiting -= 1
        # the turn is given back when the thread is done, also where nobody waits for the answer any more
        computing = asyncio.get_running_loop().run_in_executor(self._threads, served.run, arrays, names)
        computing.add_done_callback(lambda _: self._turn.release())
        try:
            return await asyncio.shield(computing)
        except Exception as error:  # what ONNX Runtime raises has no narrower type
            raise ProtocolError(
                400, f"{served.model} cannot answer this: {' '.join(str(error).split())[:300]}"
            ) from error

    def close(self) -> None:
        """End the threads, and write what the log still holds."""
        self._threads.shutdown(wait=True)
        if self.writer is not None:
            self.writer.close()


def application(server: Server, token: str = "") -> Starlette:
    """The server as an ASGI application, which looks for champions from its start to its end.

    With a token, everything but its health is for those who show it: `Authorization: Bearer <token>`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(server.watch())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await asyncio.to_thread(server.close)

    one = "/v2/models/{model}"
    health = [("/v2/health/live", _live), ("/v2/health/ready", _ready)]
    routes = [("/v2", _about), ("/metrics", _metrics)]
    routes += [(f"{one}{version}{end}", found) for version in ("", "/versions/{version}") for end, found in _OF_MODELS]
    posted = [(f"{one}/labels", _label), (f"{one}/infer", _infer), (f"{one}/versions/{{version}}/infer", _infer)]
    made = Starlette(
        routes=[
            *(Route(path, _guarded(found), methods=["GET"]) for path, found in health),
            *(Route(path, _guarded(_admitted(found)), methods=["GET"]) for path, found in routes),
            *(Route(path, _guarded(_admitted(found)), methods=["POST"]) for path, found in posted),
        ],
        lifespan=lifespan,
        exception_handlers={404: _told, 405: _told, 500: _told},
    )
    made.state.server = server
    made.state.token = token.encode()
    return made


def _server(request: Request) -> Server:
    return cast(Server, request.app.state.server)


def _known(request: Request) -> bool:
    """Whether the request shows the token, or nobody is asked for one."""
    wanted: bytes = request.app.state.token
    scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
    return not wanted or (scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), wanted))


async def _about(_: Request) -> Response:
    return JSONResponse({"name": "secateur", "version": release("secateur"), "extensions": ["binary_tensor_data"]})


async def _live(_: Request) -> Response:
    return JSONResponse({"live": True})


async def _ready(request: Request) -> Response:
    server = _server(request)
    versions = {"versions": server.versions} if _known(request) else {}
    return JSONResponse({"ready": server.ready, **versions}, 200 if server.ready else 503)


async def _model(request: Request) -> Response:
    one = _named(request)
    sides = {side: [spec.described() for spec in getattr(one, side)] for side in ("inputs", "outputs")}
    return JSONResponse({"name": one.model, "versions": [one.version], "platform": "onnxruntime_onnx", **sides})


async def _model_ready(request: Request) -> Response:
    return JSONResponse({"name": _named(request).model, "ready": True})


async def _infer(request: Request) -> Response:
    return await _server(request).infer(_named(request), request)


async def _label(request: Request) -> Response:
    return await _server(request).label(request.path_params["model"], request)


async def _metrics(request: Request) -> Response:
    content, kind = _server(request).metrics.text()
    return Response(content, media_type=kind)


_OF_MODELS = (("", _model), ("/ready", _model_ready))


def _named(request: Request) -> Served:
    """What serves of the model, and the version, that an address names."""
    return _server(request).served(request.path_params["model"], request.path_params.get("version"))


def _admitted(function: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Answer those alone who show the token."""

    async def answered(request: Request) -> Response:
        if not _known(request):
            raise ProtocolError(401, "expected the header Authorization: Bearer <token> with this server's token")
        return await function(request)

    return answered


def _guarded(function: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Answer what is refused in the protocol's form, and count what was answered."""

    async def answered(request: Request) -> Response:
        begun = time.perf_counter()
        try:
            response = await function(request)
        except ProtocolError as refused:
            headers = {"Retry-After": RETRY_AFTER_S} if refused.status == 503 else {}
            if refused.status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            if refused.status in (401, 408, 413):
                headers["Connection"] = "close"  # what it still sends is not read
            response = _error(refused.status, str(refused), headers)
        except ClientDisconnect:
            response = _error(499, "the client went away")
        except Exception as error:
            log.exception("A request failed")
            response = _error(500, f"{type(error).__name__}: what went wrong is in the server's log")
        if request.method == "POST":
            server, model = _server(request), request.path_params["model"]
            known = model if model in server.versions else ""
            server.metrics.answered(known, response.status_code, time.perf_counter() - begun)
        return response

    return answered


async def _told(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    return _error(status, f"{request.method} {request.url.path[:200]}: {getattr(error, 'detail', 'failed')}")


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": sentence}, status, headers)
