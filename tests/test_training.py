"""What a training tells while it runs, and where its states are kept: this disk, and the run in MLflow."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from secateur.checkpoints import Checkpoint, newest, pack, unpack
from tasks import tracking, training

KEY = "c" * 64
pytestmark = pytest.mark.usefixtures("services")


def packed(step: int) -> bytes:
    return pack(KEY, step, {"step": step})


def step_of(stored: bytes) -> int:
    return unpack(KEY, stored)["step"]


@pytest.fixture
def run_id(services: object, request: pytest.FixtureRequest) -> str:
    return tracking.find_or_create_run(tracking.experiment_of("trainings"), request.node.name, request.node.name, {})


def stored_in(run_id: str) -> dict[str, int]:
    """The steps of the states that the run holds, by their names."""
    names = [entry.path for entry in tracking.client().list_artifacts(run_id, "checkpoint")]
    return {name: step_of(tracking.get_bytes(run_id, name) or b"") for name in names}


def test_a_run_holds_the_last_two_states_also_when_another_machine_goes_on(run_id: str) -> None:
    first = training.in_run(run_id, "last.pt")
    for step in (1, 2, 3):
        first.save(packed(step))
    second = training.in_run(run_id, "last.pt")
    assert [step_of(stored) for stored in second.load()] == [3]
    second.save(packed(4))
    assert sorted(stored_in(run_id).values()) == [3, 4]


def test_a_damaged_state_in_the_run_falls_back_to_the_one_before_and_is_replaced_first(run_id: str) -> None:
    first = training.in_run(run_id, "last.pt")
    for step in (1, 2):
        first.save(packed(step))
    tracking.put_bytes(run_id, packed(2)[:-5], "checkpoint", "last.pt.odd")
    second = training.in_run(run_id, "last.pt")
    assert [step_of(stored) for stored in second.load()] == [1]
    second.save(packed(2))
    assert stored_in(run_id) == {"checkpoint/last.pt.even": 1, "checkpoint/last.pt.odd": 2}


def test_a_store_that_fails_costs_the_state_and_not_the_training(
    run_id: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = training.in_run(run_id, "last.pt")
    checkpoint.save(packed(1))

    def full(*_: object) -> None:
        raise OSError("507 Insufficient Storage")

    with monkeypatch.context() as patched:
        patched.setattr(tracking, "put_bytes", full)
        checkpoint.save(packed(2))
    said = "checkpoint not stored in MLflow (OSError: 507 Insufficient Storage); training goes on, the one before stays"
    assert said in capsys.readouterr().out
    checkpoint.save(packed(3))
    assert stored_in(run_id) == {"checkpoint/last.pt.even": 1, "checkpoint/last.pt.odd": 3}


def killed(run_id: str, work: Callable[[Checkpoint], None]) -> None:
    """A training that does some work and comes to no end."""
    with training.checkpoint(run_id, "last.pt") as checkpoint:
        work(checkpoint)
        raise KeyboardInterrupt


def test_a_killed_training_finds_the_disks_state_here_and_the_stores_on_another_machine(run_id: str) -> None:
    found = []

    def save(checkpoint: Checkpoint) -> None:
        for step in (1, 2, 3):
            checkpoint.save(packed(step))

    def load(checkpoint: Checkpoint) -> None:
        found.append(step_of(newest(checkpoint.load())))

    with pytest.raises(KeyboardInterrupt):
        killed(run_id, save)
    with pytest.raises(KeyboardInterrupt):
        killed(run_id, load)
    shutil.rmtree(Path(os.environ["XDG_CACHE_HOME"], "secateur", run_id))
    with pytest.raises(KeyboardInterrupt):
        killed(run_id, load)
    assert found == [3, 1]  # the store is given one every few minutes


def test_another_release_begins_again(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bytes] = []
    with pytest.raises(KeyboardInterrupt):
        killed(run_id, lambda checkpoint: checkpoint.save(packed(1)))
    monkeypatch.setattr(tracking, "code_digest", lambda: "another release")
    with pytest.raises(KeyboardInterrupt):
        killed(run_id, lambda checkpoint: found.extend(checkpoint.load()))
    assert found == []


def test_after_the_end_the_last_state_is_in_the_run_alone(run_id: str) -> None:
    with training.checkpoint(run_id, "last.pt") as checkpoint:
        for step in (1, 2, 3):
            checkpoint.save(packed(step))
    assert sorted(stored_in(run_id).values()) == [1, 3]
    assert not [*Path(os.environ["XDG_CACHE_HOME"], "secateur", run_id).iterdir()]


def test_a_long_training_prints_and_logs_a_line_a_minute(
    run_id: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now))
    report = training.reporter(run_id, "recovery", batch=8)
    for step in range(1, 301):
        now += 0.5
        report(step, 600, 0.25)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "step 240/600: loss 0.2500, 16 examples/s, 3 min left"
    assert len(lines) == 2
    paces = tracking.client().get_metric_history(run_id, "recovery_examples_per_second")
    assert [(metric.step, metric.value) for metric in paces] == [(120, 16.0), (240, 16.0)]
