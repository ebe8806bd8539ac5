"""MLflow as the memory: runs found by key, results of steps kept and found again, files in and out with checksums."""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from services import Job, another_job, free_ports

from secateur.errors import InputError
from tasks import tracking
from tasks.references import File, Pinned

pytestmark = pytest.mark.usefixtures("services")

NOWHERE = Pinned("remembering", "1", "r", {}, File("", ""), "", "", "", "", "", "", "", ("x",), "", "", 0)


@dataclass(frozen=True)
class Answer:
    """What the step below returns."""

    value: int
    parts: tuple[int, ...]


calls: list[int] = []


@tracking.remembered
def add(pinned: Pinned, first: int, second: int) -> Answer:
    """A step that counts how often it works."""
    calls.append(first)
    if first < 0:
        raise ValueError("negative")
    return Answer(first + second, (first, second))


@pytest.fixture
def pinned() -> Pinned:
    """A job with a run of its own and nothing remembered."""
    calls.clear()
    return another_job(NOWHERE, uuid.uuid4().hex)


@pytest.fixture
def run_id(pinned: Pinned) -> str:
    """A run of its own."""
    return pinned.run_id


def found(pinned: Pinned, key: str) -> list[str]:
    """The runs of a key that are not deleted."""
    runs = tracking.client().search_runs([pinned.experiment_id], f"tags.`{tracking.KEY}` = '{key}'")
    return [run.info.run_id for run in runs]


def test_a_step_works_once_per_input(pinned: Pinned) -> None:
    assert add(pinned, 1, 1) == Answer(2, (1, 1))
    assert add(pinned, 1, 1) == Answer(2, (1, 1))
    assert add(pinned, second=1, first=1) == Answer(2, (1, 1))
    assert calls == [1]


def test_another_input_or_another_job_is_worked_again(pinned: Pinned) -> None:
    add(pinned, 1, 1)
    add(pinned, 2, 1)
    add(replace(pinned, key="other code"), 2, 1)
    assert calls == [1, 2, 2]


def test_a_step_that_failed_is_not_remembered(pinned: Pinned) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="negative"):
            add(pinned, -1, 1)
    assert calls == [-1, -1]


def test_what_an_older_release_remembered_and_this_one_cannot_read_is_a_sentence(pinned: Pinned) -> None:
    add(pinned, 1, 1)
    kept = tracking.get_json(pinned.run_id, "steps/test_tracking.json")
    assert kept
    del kept["result"]["parts"]
    tracking.put_json(pinned.run_id, "steps/test_tracking.json", kept)
    with pytest.raises(
        InputError, match=r"^steps/test_tracking.json.parts: .* another release of Secateur began this run"
    ):
        add(pinned, 1, 1)


def test_a_digest_does_not_know_the_order_of_keys() -> None:
    assert tracking.digest({"a": 1, "b": File("u", "s")}) == tracking.digest({"b": File("u", "s"), "a": 1})
    assert tracking.digest({"a": 1}) != tracking.digest({"a": 2})


def test_the_same_key_is_the_same_run(pinned: Pinned) -> None:
    same = tracking.find_or_create_run(pinned.experiment_id, pinned.key, "another name", {})
    assert same == pinned.run_id
    assert tracking.find_or_create_run(pinned.experiment_id, f"{pinned.key}!", "name", {}) != same


def test_of_two_runs_made_at_once_the_older_is_everybodys(pinned: Pinned) -> None:
    tracking.client().create_run(pinned.experiment_id, tags={tracking.KEY: pinned.key})
    assert tracking.find_or_create_run(pinned.experiment_id, pinned.key, "name", {}) == pinned.run_id


def test_who_made_a_run_uses_an_older_one_that_comes_to_light_later_and_deletes_its_own(pinned: Pinned) -> None:
    """It was begun first and seen last: whoever found the younger one alone went on with it, and lost it."""
    client, key = tracking.client(), f"{pinned.key} late"
    begun = int(time.time() * 1000)
    with ThreadPoolExecutor(1) as pool:
        finding = pool.submit(tracking.find_or_create_run, pinned.experiment_id, key, "name", {})
        while not (younger := found(pinned, key)):
            time.sleep(0.01)
        client.create_run(pinned.experiment_id, begun, tags={tracking.KEY: key})
        assert finding.result() not in younger
    assert found(pinned, key) == [finding.result()]


def test_of_many_at_once_all_go_on_with_one_run_and_only_that_is_left(pinned: Pinned) -> None:
    key = f"{pinned.key} many"
    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(lambda name: tracking.find_or_create_run(pinned.experiment_id, key, name, {}), "abcdef"))
    assert found(pinned, key) == [*set(ids)]


def test_a_file_comes_back_byte_for_byte(run_id: str, tmp_path: Path) -> None:
    local = tmp_path / "weights.bin"
    local.write_bytes(bytes(range(256)))
    with tracking.fetched(tracking.put(run_id, local, "files")) as path:
        assert path.read_bytes() == local.read_bytes()


def test_a_file_that_changed_in_the_store_is_not_used(run_id: str, tmp_path: Path) -> None:
    local = tmp_path / "weights.bin"
    local.write_bytes(b"good")
    file = tracking.put(run_id, local, "files")
    local.write_bytes(b"evil")
    tracking.put(run_id, local, "files")
    with pytest.raises(OSError, match=r"weights\.bin: expected SHA-256"), tracking.fetched(file):
        pass


@pytest.mark.parametrize("path", ["kept/value.json", "value.json"])
def test_a_value_is_none_until_it_is_stored(run_id: str, path: str) -> None:
    assert tracking.get_json(run_id, path) is None
    tracking.put_json(run_id, path, {"a": [1, None]})
    assert tracking.get_json(run_id, path) == {"a": [1, None]}


def test_a_metric_without_a_value_is_left_out(run_id: str) -> None:
    tracking.log(run_id, {"seen": 1.0, "unseen": None}, step=3, kind="test")
    run = tracking.client().get_run(run_id)
    assert run.data.metrics == {"seen": 1.0}
    assert run.data.tags["secateur.kind"] == "test"
    assert tracking.client().get_metric_history(run_id, "seen")[0].step == 3


def test_the_same_parameters_again_change_nothing(run_id: str) -> None:
    for _ in range(2):
        tracking.log_params(run_id, {"goal.sparsity": "0.5"})
    assert tracking.client().get_run(run_id).data.params == {"goal.sparsity": "0.5"}


def test_an_address_that_holds_a_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret-word@127.0.0.1:5000")
    with pytest.raises(InputError, match=r"^MLFLOW_TRACKING_URI: expected an address without a user") as refused:
        tracking.client()
    assert "secret-word" not in str(refused.value)


def test_a_server_that_is_down_is_a_fault_that_a_retry_may_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.faults import is_io_fault

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(tracking.RegistryDownError, match="MLFLOW_TRACKING_URI") as caught:
        tracking.client()
    assert is_io_fault(caught.value)


def test_a_cycles_model_is_the_measured_file_and_loads_without_pickle(job: Job) -> None:
    import mlflow
    import numpy as np
    from services import examples

    (model,) = mlflow.search_logged_models(
        [job.pinned.experiment_id], f"source_run_id = '{job.cycles[0].run_id}'", output_format="list"
    )
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{model.model_id}"))
    assert tracking.sha256_of(folder / "data" / "model.pt2") == job.cycles[0].program.sha256
    answer = mlflow.pyfunc.load_model(f"models:/{model.model_id}").predict(examples()[0][:5])
    assert np.isfinite(answer).all()
    assert {metric.key for metric in model.metrics} >= {"accuracy", "speedup", "sparsity"}
    assert {metric.step for metric in model.metrics} == {1}


def test_a_retry_does_not_log_a_cycles_model_twice(job: Job) -> None:
    import mlflow

    from secateur import program as programs

    run_id = another_job(job.pinned, "logs a model twice").run_id
    with tracking.fetched(job.cycles[0].program) as path:
        program = programs.load(path)
        for _ in range(2):
            tracking.log_program(run_id, path, program, "cycle-1", 1)
    found = mlflow.search_logged_models([job.pinned.experiment_id], f"source_run_id = '{run_id}'", output_format="list")
    assert len(found) == 1


def test_what_is_written_once_stays_and_a_name_that_mlflow_refuses_is_an_error(pinned: Pinned) -> None:
    for value in ("first", "second"):
        tracking.write_once(pinned.run_id, "once", value)
    assert tracking.client().get_run(pinned.run_id).data.params["once"] == "first"
    with pytest.raises(MlflowException, match="Invalid"):  # and not a reason to believe that somebody was faster
        tracking.write_once(pinned.run_id, "a\nb", "value")
