"""The commands on a model's history without Airflow: rolling back, verifying, repairing."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from services import registered_onnx
from test_champion import move, serving

from tasks import bucket, journal, registry
from tasks.cli import app

pytestmark = pytest.mark.usefixtures("services")

MODEL = "by-command"


@pytest.fixture
def secateur(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process, where no stack runs; its exit status and what it printed."""
    monkeypatch.setenv("SECATEUR_STACK_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SECATEUR_AIRFLOW_URL", raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["secateur", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), " ".join(printed.out.split()), " ".join(printed.err.split())

    return call


@pytest.mark.slow
def test_a_history_is_rolled_back_verified_found_wrong_and_repaired(
    secateur: Callable[..., tuple[int, str, str]],
) -> None:
    move(MODEL, registered_onnx(MODEL, 1.0))
    move(MODEL, registered_onnx(MODEL, 2.0))
    status, out, _ = secateur("rollback", MODEL, "--to", "previous", "--reason", "Airflow is down", "--direct")
    assert (status, out) == (0, "Champion is version 1 (before: 2).")
    assert serving(MODEL) == ("1", "1", "1")
    assert "@" in journal.entries(MODEL)[-1].who

    status, out, _ = secateur("history", MODEL, "--verify")
    assert status == 0
    assert f"The journal of {MODEL} verifies: 3 entries, each bound to the one before" in out

    bucket.point(registry.onnx_name(MODEL), "2")
    status, out, _ = secateur("history", MODEL, "--verify", "--json")
    assert status == 1
    assert json.loads(out)["findings"] == [
        "the journal says that version 1 serves (entry 3), the alias names 1, the pointer 2"
    ]
    status, _, err = secateur("rollback", MODEL, "--to", "2", "--reason", "again", "--direct")
    assert status == 1
    assert err.startswith("Error: journal: expected that of by-command to verify")

    status, _, err = secateur("history", MODEL, "--repair")
    assert (status, err) == (
        1,
        "Error: --reason: expected why the journal is repaired, got none; it is written into the journal",
    )
    status, out, _ = secateur("history", MODEL, "--repair", "--reason", "a hand slipped")
    assert (status, out) == (0, "Champion stays version 1.")
    assert secateur("history", MODEL, "--verify")[0] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("history", "../up"), "Error: model: expected a registered model's name"),
        (("history", "a-model", "--reason", "none"), "Error: --reason: expected beside --repair"),
        (
            ("rollback", "unheard-of", "--to", "1", "--reason", "x", "--direct"),
            "'unheard-of' has none; promote a version",
        ),
    ],
    ids=["name", "lonely reason", "unknown model"],
)
def test_what_is_asked_for_wrongly_is_one_sentence(
    secateur: Callable[..., tuple[int, str, str]], words: tuple[str, ...], sentence: str
) -> None:
    status, _, err = secateur(*words)
    assert status == 1
    assert sentence in err
