"""Images, without an engine: what one copies and installs, done in a clean environment, starts its entry command."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from services import Servers, free_ports

REPOSITORY = Path(__file__).parents[1]
PREFIX = "/opt/secateur"
ABSENT = {"torch", "mlflow", "airflow", "onnx"}  # that the server's image does not carry


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The instructions of the server's image."""
    text = (REPOSITORY / "docker" / "serve.Dockerfile").read_text()
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def prefix(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first stage installs, from nothing but what it copies."""
    folder = tmp_path_factory.mktemp("image")
    context, made = folder / "context", folder / "opt"
    context.mkdir()
    for line in lines[: lines.index("FROM python:${PYTHON}")]:
        verb, _, rest = line.partition(" ")
        if verb == "COPY":
            *sources, place = rest.split()
            for source in sources:
                goal = context / place / source if place.endswith("/") else context / place
                goal.parent.mkdir(parents=True, exist_ok=True)
                if (REPOSITORY / source).is_dir():
                    shutil.copytree(REPOSITORY / source, goal, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(REPOSITORY / source, goal)
        elif verb == "RUN":
            for step in rest.replace(PREFIX, str(made)).split(" && "):
                program, *arguments = step.split()
                argv = [sys.executable if program == "python" else program, *arguments]
                subprocess.run(argv, cwd=context, check=True, capture_output=True, timeout=300)
    return made


@pytest.fixture
def served(
    lines: list[str], prefix: Path, servers: Servers, tmp_path: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The entry command's address and process, with nothing in its environment but where the bucket is."""
    entry = json.loads(next(line for line in lines if line.startswith("ENTRYPOINT")).partition(" ")[2])
    (port,) = free_ports(1)
    reached = {name: value for name, value in servers.items() if name.startswith(("AWS_", "SECATEUR_"))}
    variables = {"PATH": f"{prefix}/bin:{os.defpath}", "HOME": str(tmp_path), **reached}
    argv = [str(prefix / "bin" / entry[0]), *entry[1:-1], "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(argv, env=variables, cwd=tmp_path) as process:
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.slow
def test_the_server_runs_on_what_its_image_installs(prefix: Path, served: tuple[str, subprocess.Popen[bytes]]) -> None:
    url, process = served
    end = time.monotonic() + 60
    while True:
        try:
            assert httpx.get(f"{url}/v2/health/live", trust_env=False).json() == {"live": True}
            break
        except httpx.TransportError:
            assert process.poll() is None, "it ended; what it lacks is said above"
            assert time.monotonic() < end
            time.sleep(0.2)
    assert httpx.get(f"{url}/metrics", trust_env=False).status_code == 200
    there = {path.name for path in (prefix / "lib").glob("python*/site-packages/*")}
    assert there.isdisjoint(ABSENT)


def test_the_image_ends_without_root_and_without_tools_to_build(lines: list[str]) -> None:
    last = lines[lines.index("FROM python:${PYTHON}") :]
    assert "USER 50000:0" in last
    assert not [line for line in last if line.startswith("RUN")]
    assert last[-1].startswith("ENTRYPOINT")


def test_everything_that_is_copied_is_let_through(lines: list[str]) -> None:
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert {source.split("/")[0] for sources in copied for source in sources} <= allowed
