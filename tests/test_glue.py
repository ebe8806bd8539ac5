"""The glue between steps and Airflow: types at the border, skips, and which failures are tried again."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from secateur.errors import InputError, NothingToDo
from tasks.faults import is_io_fault
from tasks.references import Pinned

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Thing:
    """A stand-in for what steps hand to each other."""

    name: str
    share: float
    parts: tuple[int, ...] = ()


def make(name: str, share: float) -> Thing:
    """Make a thing."""
    return Thing(name, share, (1, 2))


def combine(thing: Thing, previous: Thing | None, all_of_them: list[Thing | None], again: bool) -> str:
    """Say what arrived."""
    return f"{thing} {previous} {len(all_of_them)} {all_of_them[-1]} {again}"


def count(things: list[Thing]) -> int:
    """Count what arrived."""
    return len(things)


def stop_here() -> Thing:
    """Have nothing to do."""
    raise NothingToDo("The goal is met.")


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module under test, with an Airflow home that is nobody's."""
    os.environ.setdefault("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
    return importlib.import_module("tasks.airflow_glue")


def test_a_result_travels_as_plain_json(glue: ModuleType) -> None:
    assert glue.call(make, "a", 0.5) == {"name": "a", "share": 0.5, "parts": [1, 2]}


def test_plain_json_arrives_as_the_annotated_types(glue: ModuleType) -> None:
    plain = {"name": "a", "share": 0.5, "parts": [1, 2]}
    assert glue.call(combine, plain, None, [plain, None], "False") == f"{Thing('a', 0.5, (1, 2))} None 2 None False"


def test_a_value_that_does_not_fit_its_type_is_refused(glue: ModuleType) -> None:
    with pytest.raises(ValueError, match="share"):
        glue.call(combine, {"name": "a"}, None, [], True)


def look(pinned: Pinned) -> str:
    """Say what it is about."""
    return pinned.model


def test_what_another_release_handed_on_and_this_one_cannot_read_fails_the_step_at_once(glue: ModuleType) -> None:
    with pytest.raises(InputError, match=r"^pinned\.version: .* another release of Secateur began this run") as refused:
        glue.call(look, {"model": "m"})
    assert glue.StepRetries().evaluate(refused.value, try_number=1, max_tries=3).action.value == "fail"


def test_nothing_to_do_skips_the_task_and_keeps_the_reason(glue: ModuleType) -> None:
    from airflow.sdk.exceptions import AirflowSkipException

    with pytest.raises(AirflowSkipException, match="The goal is met"):
        glue.call(stop_here)


def test_what_a_mapped_task_returned_arrives_as_a_list(glue: ModuleType) -> None:
    class OneByOne(Sequence[Any]):
        """As Airflow hands it over: read when it is asked for."""

        def __getitem__(self, index: Any) -> Any:
            return [{"name": "a", "share": 0.5}][index]

        def __len__(self) -> int:
            return 1

    assert glue.call(count, OneByOne()) == 1


def test_a_long_result_is_logged_in_one_short_line(glue: ModuleType) -> None:
    line = glue._one_line({"values": list(range(10_000))})
    assert len(line) < 600
    assert "\n" not in line


def wrapped(outer: Exception, inner: Exception) -> Exception:
    """`outer`, raised because of `inner`."""
    try:
        raise outer from inner
    except Exception as error:
        return error


def api_server(status: int | None) -> Exception:
    """Airflow's API server answered a task's supervisor so, or not at all."""
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    detail: dict[str, Any] = {"status_code": status} if status else {"error": "ConnectError"}
    return AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))


def kubernetes(status: int) -> Exception:
    """Kubernetes answered so; 0: not at all."""
    from kubernetes.client import ApiException

    return ApiException(status=status)


class Refused(ConnectionError):
    """A child of an I/O fault."""


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (InputError("version: expected a number"), False),
        (wrapped(InputError("no such host"), ConnectionError("refused")), False),
        (ConnectionError("refused"), True),
        (Refused("refused"), True),
        (TimeoutError("too late"), True),
        (wrapped(RuntimeError("MLflow: request failed"), ConnectionError("refused")), True),
        (FileNotFoundError("model.onnx"), False),
        (KeyError("a bug"), False),
        (MemoryError("too large"), False),
        (api_server(None), True),
        (api_server(503), True),
        (api_server(404), False),
        (kubernetes(0), True),
        (kubernetes(429), True),
        (kubernetes(500), True),
        (kubernetes(403), False),
    ],
    ids=lambda value: value if isinstance(value, bool) else f"{type(value).__name__} {value}".split("\n")[0],
)
def test_only_faults_of_the_wire_are_tried_again(glue: ModuleType, error: Exception, again: bool) -> None:
    decision = glue.StepRetries().evaluate(error, try_number=1, max_tries=3)
    assert is_io_fault(error) is again
    assert decision.action.value == ("retry" if again else "fail")


def test_what_needs_another_branch_too_is_left_to_the_scheduler(glue: ModuleType) -> None:
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG

    with DAG("diamond", schedule=None):
        first, skipped, other, after, both = (
            EmptyOperator(task_id=name) for name in ("first", "skipped", "other", "after", "both")
        )
        collected = EmptyOperator(task_id="collected", trigger_rule="none_failed")
        first >> [skipped, other]
        [first, skipped] >> after >> both >> collected
        other >> both
    assert glue.only_after(skipped) == ["after"]
    assert glue.only_after(first) == ["after", "both", "other", "skipped"]


def test_a_skip_stays_one_where_airflow_does_not_skip_what_follows(
    glue: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG
    from airflow.sdk.exceptions import AirflowRuntimeError, AirflowSkipException, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    class Refusing:
        def send(self, message: object) -> None:
            asked.append(message)
            raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR))

    asked: list[object] = []
    with DAG("one", schedule=None):
        task = EmptyOperator(task_id="task")
        task >> EmptyOperator(task_id="after")
    monkeypatch.setattr("airflow.sdk.get_current_context", lambda: {"task": task})
    monkeypatch.setattr("airflow.sdk.execution_time.task_runner.SUPERVISOR_COMMS", Refusing(), raising=False)
    with DAG("two", schedule=None):
        stopping = glue.step(stop_here)().operator.python_callable
    with pytest.raises(AirflowSkipException, match="The goal is met"):
        stopping()
    assert [message.tasks for message in asked] == [["after"]]  # type: ignore[attr-defined]


def test_faults_of_other_libraries_are_known_by_name() -> None:
    import botocore.exceptions
    import httpx

    assert is_io_fault(botocore.exceptions.EndpointConnectionError(endpoint_url="http://nowhere"))
    assert is_io_fault(httpx.ConnectTimeout("too late"))


def test_the_pause_doubles_up_to_a_limit(glue: ModuleType) -> None:
    assert [glue.delay_before(attempt).total_seconds() for attempt in (2, 3, 4)] == [5, 10, 20]
    assert glue.delay_before(30) == timedelta(minutes=2)


STAND_INS = """
from dataclasses import dataclass
from secateur.errors import InputError, NothingToDo

@dataclass(frozen=True)
class Cycle:
    number: int

def run(cycle: int, previous: Cycle | None) -> Cycle:
    '''One cycle.'''
    if cycle > 2:
        raise NothingToDo('The plan has two cycles.')
    assert (previous is None) == (cycle == 1), previous
    return Cycle(cycle)

def choose(cycles: list[Cycle | None]) -> Cycle:
    '''Choose.'''
    return [cycle for cycle in cycles if cycle][-1]

@dataclass(frozen=True)
class Told:
    address: str

def tell(cycle: Cycle) -> Told:
    '''Tell of it.'''
    return Told(f"http://mlflow/{cycle.number}")

def refuse() -> Told:
    '''Refuse it.'''
    raise InputError("share: expected a number, got 'half'")
"""

RUN_A_DAG = """
import json
from airflow.models.xcom import XComModel
from airflow.sdk import chain, dag
from airflow.utils.session import create_session
import stand_ins
from tasks.airflow_glue import linked, step

@dag(schedule=None)
def cycles():
    done = []
    for number in range(1, 7):
        done.append(step(stand_ins.run, task_id=f"cycle_{number}")(number, done[-1] if done else None))
    chosen = step(stand_ins.choose, task_id="choose", trigger_rule="none_failed_min_one_success")(done)
    told = linked(step(stand_ins.tell, task_id="tell", trigger_rule="none_failed")(chosen), "Report")
    chain(done[-1], told)  # which is skipped
    step(stand_ins.refuse, task_id="refuse")()

prune = cycles()
if __name__ == "__main__":
    run = prune.test()
    found = run.get_task_instances()
    states = {task.task_id: str(task.state) for task in found}
    moments = {str(task.end_date) for task in found if task.task_id in ("cycle_4", "cycle_5", "cycle_6")}
    with create_session() as session:
        links = [found.value for found in session.query(XComModel).filter(XComModel.key.startswith("_link"))]
        why = [found.value for found in session.query(XComModel).filter(XComModel.key == "why")]
    print("RESULT" + json.dumps({"states": states, "links": links, "moments": len(moments), "why": why}))
"""


def test_in_a_real_run_skipped_cycles_arrive_as_none_and_the_last_task_leads_to_what_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "stand_ins.py").write_text(STAND_INS)
    (tmp_path / "dags" / "cycles.py").write_text(RUN_A_DAG)
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"),
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path / 'dags'}",
    }

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python("-m", "airflow", "db", "migrate")
    ended: dict[str, Any] = json.loads(python(str(tmp_path / "dags" / "cycles.py")).rpartition("RESULT")[2])
    assert ended["states"] == {
        "cycle_1": "success",
        "cycle_2": "success",
        "cycle_3": "skipped",
        "cycle_4": "skipped",
        "cycle_5": "skipped",
        "cycle_6": "skipped",
        "choose": "success",
        "tell": "success",
        "refuse": "failed",
    }
    assert ended["why"] == ["share: expected a number, got 'half'"]
    assert ended["moments"] == 1  # none waited for its turn
    assert ended["links"] == ["http://mlflow/2"]
