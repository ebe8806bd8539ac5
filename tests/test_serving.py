"""The reference server as a process of its own, over real S3: it answers, it follows the champion, it outlives bad clients."""

import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from services import BUCKET, LOOPBACK, Servers, using, write_onnx

from secateur.inference_log import reader
from tasks.serving.protocol import HEADER, arrays_of, request

MODEL = "served-onnx"
STARTS_WITHIN_S, FOLLOWS_WITHIN_S = 60.0, 10.0


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    url: str
    log: str

    def infer(
        self, value: float = 1.0, *, binary: bool = True, path: str = f"/v2/models/{MODEL}/infer"
    ) -> httpx.Response:
        body, headers = request({"x": np.full((2, 2), value, np.float32)}, binary=binary)
        return httpx.post(self.url + path, content=body, headers=headers, timeout=30)

    def post(self, content: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v2/models/{MODEL}/infer", json=content, timeout=30, **options)


def publish(folder: Path, version: int) -> None:
    """A version that adds its own number."""
    from tasks import bucket

    bucket.publish(MODEL, str(version), write_onnx(folder / f"{version}.onnx", float(version)))


def point(version: int) -> None:
    from tasks import bucket

    bucket.point(MODEL, str(version))


@contextmanager
def serving(log: str, *options: str) -> Iterator[Running]:
    argv = [sys.executable, "-m", "tasks.cli.app", "serve", "served", "--port", "0", "--flush-s", "0.2", *options]
    variables = {**os.environ, "SECATEUR_LOG": log, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(argv, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Serving"):
                break
        assert lines[-1:], "it said nothing"
        assert lines[-1].startswith("Serving"), "".join(lines)
        drain = threading.Thread(target=lambda: [lines.append(line) for line in process.stdout or ()], daemon=True)
        drain.start()
        running = Running(process, lines[-1].split()[-1], log)
        _until(lambda: httpx.get(f"{running.url}/v2/health/ready").status_code == 200, STARTS_WITHIN_S, lines)
        yield running
    finally:
        process.terminate()
        process.wait(30)


def _until(seen: Any, within_s: float, lines: list[str] | None = None) -> None:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if seen():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise TimeoutError("".join(lines or ["not seen in time"]))


@pytest.fixture(scope="module")
def server(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    with using(servers):
        for version in (1, 2):
            publish(folder, version)
        point(1)
        with serving(str(folder / "log"), "--body-mb", "1", "--receive-s", "1") as running:
            yield running


@pytest.mark.parametrize("binary", [True, False])
def test_it_answers_by_the_protocol(server: Running, binary: bool) -> None:
    answer = server.infer(3.0, binary=binary)
    assert answer.status_code == 200
    (found,) = arrays_of(answer.content, answer.headers.get(HEADER)).values()
    assert (found == found[0, 0]).all()
    assert server.infer(path=f"/v2/models/{MODEL}/versions/77/infer").status_code == 404


def test_it_says_what_it_serves(server: Running) -> None:
    about = httpx.get(f"{server.url}/v2").json()
    assert "binary_tensor_data" in about["extensions"]
    one = httpx.get(f"{server.url}/v2/models/{MODEL}").json()
    assert one["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert httpx.get(f"{server.url}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{server.url}/v2/models/{MODEL}/ready").json() == {"name": MODEL, "ready": True}


def test_it_follows_the_champion_without_dropping_a_request(server: Running, services: Servers) -> None:
    failed: list[Any] = []
    versions: set[str] = set()
    done = threading.Event()

    def client() -> None:
        with httpx.Client(timeout=30) as http:
            while not done.is_set():
                body, headers = request({"x": np.zeros((1, 2), np.float32)})
                answer = http.post(f"{server.url}/v2/models/{MODEL}/infer", content=body, headers=headers)
                if answer.status_code != 200:
                    failed.append(answer.text)
                    continue
                said = json.loads(answer.content[: int(answer.headers[HEADER])])
                (value,) = arrays_of(answer.content, answer.headers[HEADER]).values()
                versions.add(said["model_version"])
                if (value != float(said["model_version"])).any():
                    failed.append(said)

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(4):
        wanted = 2 - number % 2
        point(wanted)
        _until(
            lambda wanted=wanted: httpx.get(f"{server.url}/v2/models/{MODEL}").json()["versions"] == [str(wanted)],
            FOLLOWS_WITHIN_S,
        )
    done.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert versions == {"1", "2"}


def test_a_broken_champion_changes_nothing(server: Running, services: Servers, tmp_path: Path) -> None:
    import boto3

    before = httpx.get(f"{server.url}/v2/models/{MODEL}").json()["versions"]
    content = json.dumps({"version": "9", "uri": f"s3://{BUCKET}/{MODEL}/9/model.onnx"}).encode()
    kept = boto3.client("s3").get_object(Bucket=BUCKET, Key=f"{MODEL}/champion.json")["Body"].read()
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{MODEL}/champion.json", Body=content)
    try:
        _until(lambda: "secateur_failed_reloads_total" in httpx.get(f"{server.url}/metrics").text, FOLLOWS_WITHIN_S)
        assert httpx.get(f"{server.url}/v2/models/{MODEL}").json()["versions"] == before
        assert server.infer().status_code == 200
    finally:
        boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{MODEL}/champion.json", Body=kept)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}]}, 400),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}, 400),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1]}]}, 400),
        ([], 400),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": "9" * 2_000_000}]}, 413),
    ],
)
def test_what_is_no_request_gets_an_error_in_the_protocols_form(server: Running, content: Any, status: int) -> None:
    answer = server.post(content)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert server.infer().status_code == 200


def test_unknown_models_versions_paths_and_methods_are_named(server: Running) -> None:
    for path in ("/v2/models/other/infer", f"/v2/models/{MODEL}/versions/9/infer", "/v3"):
        answer = httpx.post(server.url + path, json={})
        assert answer.status_code == 404
        assert answer.json()["error"]
    assert httpx.get(f"{server.url}/v2/models/{MODEL}/infer").status_code == 405


def test_a_body_in_parts_that_is_too_large_is_refused(server: Running) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 100_000

    try:
        answer = httpx.post(f"{server.url}/v2/models/{MODEL}/infer", content=parts())
        assert answer.status_code == 413
    except httpx.HTTPError:  # it may close before all was sent
        pass
    assert server.infer().status_code == 200


def test_a_slow_client_is_let_go_and_holds_up_nobody(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n"
    with socket.create_connection((LOOPBACK, int(port)), timeout=10) as slow:
        slow.sendall(head.encode() + b"{")
        begun = time.monotonic()
        assert server.infer().status_code == 200
        answer = slow.recv(4096).decode()
        assert "408" in answer.splitlines()[0]
        assert time.monotonic() - begun < 5


def test_a_client_that_goes_away_is_survived(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((LOOPBACK, int(port))) as gone:
            gone.sendall(
                f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n{{".encode()
            )
    assert server.infer().status_code == 200


def test_requests_and_labels_are_in_the_log(server: Running) -> None:
    body, headers = request({"x": np.ones((1, 2), np.float32)}, "named")
    assert httpx.post(f"{server.url}/v2/models/{MODEL}/infer", content=body, headers=headers).status_code == 200
    labels = {"labels": [{"id": "named", "label": 1}]}
    assert httpx.post(f"{server.url}/v2/models/{MODEL}/labels", json=labels).json() == {"taken": 1}
    assert httpx.post(f"{server.url}/v2/models/{MODEL}/labels", json={"labels": [{"id": 1}]}).status_code == 400
    span = datetime.now(UTC) - timedelta(minutes=10), datetime.now(UTC) + timedelta(minutes=1)
    _until(lambda: any(one.request_id == "named" for one in reader.read(server.log, MODEL, *span).records), 10)
    found = next(one for one in reader.read(server.log, MODEL, *span).records if one.request_id == "named")
    assert found.inputs["x"].tolist() == [[1, 1]]
    assert found.outputs["y"].shape == (1, 2)
    assert found.latency_ms > 0
    _until(lambda: len(reader.read_labels(server.log, MODEL, *span)[0]) == 1, 10)


def test_prometheus_is_told(server: Running) -> None:
    server.infer()
    text = httpx.get(f"{server.url}/metrics").text
    assert f'secateur_requests_total{{model="{MODEL}",status="200"}}' in text
    assert f'secateur_champion_version{{model="{MODEL}"}}' in text
    assert 'secateur_log_records_total{fate="written"}' in text


def test_more_than_may_wait_are_told_to_come_again(services: Servers, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    point(1)
    with serving(str(tmp_path / "log"), "--waiting", "1", "--no-log") as running:
        content, headers = request({"x": np.zeros((200_000, 2), np.float32)})
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            url = f"{running.url}/v2/models/{MODEL}/infer"
            asked = [pool.submit(httpx.post, url, content=content, headers=headers, timeout=60) for _ in range(48)]
            answers = [one.result() for one in asked]
        statuses = {answer.status_code for answer in answers}
        assert statuses <= {200, 503}
        assert 200 in statuses
        refused = [answer for answer in answers if answer.status_code == 503]
        assert all("error" in answer.json() and answer.headers["Retry-After"] for answer in refused)


def test_asked_to_end_it_answers_first_what_it_has_and_writes_its_log(services: Servers, tmp_path: Path) -> None:
    publish(tmp_path, 1)
    point(1)
    with serving(str(tmp_path / "log"), "--flush-s", "60") as running:
        for _ in range(5):
            assert running.infer().status_code == 200
    span = datetime.now(UTC) - timedelta(minutes=10), datetime.now(UTC) + timedelta(minutes=1)
    assert len(reader.read(str(tmp_path / "log"), MODEL, *span).records) == 5


def test_an_address_that_is_taken_is_said(services: Servers, server: Running) -> None:
    port = server.url.rpartition(":")[2]
    argv = [sys.executable, "-m", "tasks.cli.app", "serve", "served", "--port", port]
    done = subprocess.run(argv, env=dict(os.environ), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "cannot listen on" in done.stderr
