"""The receiver of webhooks: what MLflow itself sends rings, what anybody else sends does not."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from services import LOOPBACK, Servers

from secateur.errors import InputError
from tasks.cli import webhook
from tasks.cli.airflow_api import AirflowError

SECRET = "a secret of enough letters"


@contextmanager
def receiving(ring: Callable[[], None], said: list[str]) -> Iterator[str]:
    """A receiver on a free port of loopback; gives its address."""
    with webhook.listener(LOOPBACK, 0, SECRET, ring, said.append) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{LOOPBACK}:{server.server_port}"
        server.shutdown()


def post(url: str, body: bytes = b"{}", **headers: str) -> int:
    """The status of a request with these headers."""
    named = {f"X-MLflow-{name.replace('_', '-')}": value for name, value in headers.items()}
    return httpx.post(url, content=body, headers=named, trust_env=False).status_code


def signed(body: bytes, secret: str = SECRET, moment: float | None = None) -> dict[str, str]:
    """The headers that MLflow's own code would send."""
    from mlflow.webhooks.delivery import _generate_hmac_signature

    now = str(int(time.time() if moment is None else moment))
    signature = _generate_hmac_signature(secret, "d1", now, body.decode())
    return {"Delivery_Id": "d1", "Timestamp": now, "Signature": signature}


def test_a_version_that_is_registered_in_mlflow_rings(services: Servers) -> None:
    from mlflow.entities.webhook import WebhookEvent

    from tasks import tracking

    client, rung, said = tracking.client(), threading.Event(), list[str]()
    with receiving(rung.set, said) as url:
        hook = client.create_webhook("watch", url, [WebhookEvent.from_str("model_version.created")], secret=SECRET)
        client.create_registered_model("hooked")
        run_id = tracking.find_or_create_run(tracking.experiment_of("files"), "nothing", "nothing", {})
        client.create_model_version("hooked", f"runs:/{run_id}/nothing", run_id)
        assert rung.wait(20), said
        client.delete_webhook(hook.webhook_id)


def test_only_who_knows_the_secret_and_speaks_now_rings() -> None:
    rung, said, body = list[int](), list[str](), b'{"entity": "model_version"}'
    with receiving(lambda: rung.append(1), said) as url:
        assert post(url, body, **signed(body)) == 204
        assert post(url, body, **signed(body, secret="guessed")) == 401
        assert post(url, body, **signed(b"another body")) == 401
        assert post(url, body, **signed(body, moment=time.time() - webhook.TOLERANCE_S - 5)) == 401
        assert post(url, body, **(signed(body) | {"Timestamp": "now"})) == 401
        assert post(url, body) == 401
    assert rung == [1]


def test_a_request_without_an_end_is_refused_before_it_is_read() -> None:
    with receiving(lambda: None, []) as url, socket.create_connection((LOOPBACK, httpx.URL(url).port or 0)) as line:
        line.sendall(b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n")
        assert b" 413 " in line.recv(100)


def test_while_airflow_is_down_mlflow_is_asked_to_try_again() -> None:
    def ring() -> None:
        raise AirflowError("Airflow does not answer")

    said: list[str] = []
    with receiving(ring, said) as url:
        assert post(url, b"{}", **signed(b"{}")) == 502
    assert "Airflow does not answer" in said


def test_a_secret_that_can_be_guessed_and_a_taken_port_are_refused() -> None:
    with pytest.raises(InputError, match="SECATEUR_WEBHOOK_SECRET: expected 16 characters or more, got 5"):
        webhook.listener(LOOPBACK, 0, "short", lambda: None, print)
    with receiving(lambda: None, []) as url, pytest.raises(InputError, match="host, port: cannot listen on"):
        webhook.listener(LOOPBACK, httpx.URL(url).port or 0, SECRET, lambda: None, print)
