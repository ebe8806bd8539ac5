"""What comes after a promotion, from the shell: logs of other servers, exports of the log, a look."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from services import MODEL, Job, Servers
from test_converters import event
from typer.testing import CliRunner

from secateur.errors import InputError
from secateur.inference_log import reader
from tasks.cli import production
from tasks.cli.app import app
from tasks.monitoring import observe

NAME = "other-onnx"


@pytest.fixture
def log(tmp_path: Path, services: Servers, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(observe.ROOT, str(tmp_path / "log"))
    return tmp_path / "log"


def payloads(folder: Path) -> Path:
    path = folder / "payloads.jsonl"
    pairs = [
        (event("request", {"instances": [[i, 2.0]]}, f"k{i}"), event("response", {"predictions": [[1.0]]}, f"k{i}"))
        for i in range(3)
    ]
    path.write_text("\n".join(["damaged", *(line for pair in pairs for line in pair)]))
    return path


def test_another_servers_log_is_converted_once_however_often(log: Path, tmp_path: Path) -> None:
    argv = ["convert-log", str(payloads(tmp_path)), "other", "--form", "kserve", "--version", "2"]
    for _ in range(2):
        done = CliRunner().invoke(app, argv)
        assert done.exit_code == 0, done.output
        assert done.output.splitlines() == ["3 requests are in the log.", "1 lines that are no JSON object"]
    day = datetime(2026, 1, 31, tzinfo=UTC)
    assert len(reader.read(str(log), NAME, day, day + timedelta(days=1)).records) == 3


def test_what_was_asked_is_exported_as_examples(log: Path, tmp_path: Path) -> None:
    production.convert(payloads(tmp_path), "kserve", "other", "2", "x")
    output = tmp_path / "asked.npz"
    done = CliRunner().invoke(app, ["export-log", "other", str(output), "--since", "2026-01-31T00:00"])
    assert done.exit_code == 0, done.output
    with np.load(output) as stored:
        assert stored["inputs"].tolist() == [[0, 2], [1, 2], [2, 2]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda path: production.convert(path, "seldon", "m", "1", "x"),
            "--form: expected one of kserve, sagemaker, triton",
        ),
        (lambda path: production.convert(path / "no", "kserve", "m", "1", "x"), "there is none at"),
        (lambda path: production.export("m", "yesterday", path), "--since: expected a moment"),
        (lambda path: production.export("m", "2026-01-01", path), "the log has none"),
    ],
)
def test_what_cannot_be_is_said(log: Path, tmp_path: Path, call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(tmp_path)  # type: ignore[operator]


def test_a_look_from_the_shell_says_what_it_found(log: Path, job: Job) -> None:
    assert job.promotion
    done = CliRunner().invoke(app, ["look", MODEL, "--json"])
    assert done.exit_code == 3, done.output
    assert json.loads(done.output)["outcome"] == "unknown"
    said = CliRunner().invoke(app, ["look", MODEL])
    assert "unknown: nothing was observed" in said.output
    assert "monitor/monitor.html" in said.output


def test_settings_of_the_server_that_cannot_be_are_said(log: Path) -> None:
    done = CliRunner().invoke(app, ["serve", "--parallel", "0"])
    assert isinstance(done.exception, InputError)
    assert "--parallel: expected more than 0" in str(done.exception)
