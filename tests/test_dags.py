"""The DAG files: they load, load nothing heavy, load quickly, keep their version, and are wired as the design says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks import DAGS as OURS
from tasks import placement
from tasks.cli import webhook

REPOSITORY = Path(__file__).resolve().parents[1]
DAGS = REPOSITORY / "dags"
HEAVY = ("torch", "mlflow", "onnxruntime", "onnx", "boto3", "sklearn", "scipy")
CYCLES = 5
RUNGS, FINALISTS = 3, 3

LOAD_ALL = f"""
import json
from types import SimpleNamespace
from airflow.dag_processing.dagbag import DagBag
from airflow.task.priority_strategy import validate_and_load_priority_weight_strategy as strategy
bag = DagBag({str(DAGS)!r})
dags = {{
    dag.dag_id: {{
        "params": {{name: dag.params.get_param(name).description for name in dag.params}},
        "patterns": {{name: dag.params.get_param(name).schema.get("pattern") for name in dag.params}},
        "doc": dag.doc_md or "",
        "assets": [asset.name for asset in dag.schedule or [] if not isinstance(asset, str)],
        "schedule": dag.schedule if isinstance(dag.schedule, str) else None,
        "max_active_runs": dag.max_active_runs,
        "tasks": {{
            task.task_id: {{
                "upstream": sorted(task.upstream_task_ids), "pool": task.pool, "rule": str(task.trigger_rule), "mapped": task.is_mapped,
                "retries": task.retries, "weight": strategy(task.weight_rule).get_weight(SimpleNamespace(task=task)), "policy": type(task.retry_policy).__name__,
                "links": [link.name for link in task.operator_extra_links], "at_once": task.max_active_tis_per_dagrun,
            }} for task in dag.tasks
        }},
    }} for dag in bag.dags.values()
}}
print("RESULT" + json.dumps({{"errors": bag.import_errors, "dags": dags}}, default=str))
"""

IMPORT_ALL = f"""
import json, runpy, sys, time
import airflow.sdk, airflow.sdk.exceptions, airflow.sdk.definitions.retry_policy, airflow.providers.standard.decorators.python
begun = time.perf_counter()
for path in {[str(path) for path in sorted(DAGS.glob("*.py"))]!r}:
    runpy.run_path(path)
seconds = time.perf_counter() - begun
print("RESULT" + json.dumps({{"seconds": seconds, "heavy": [name for name in {HEAVY!r} if name in sys.modules]}}))
"""


def in_fresh_python(script: str, home: Path) -> Any:
    """What `script` prints after RESULT, run by a Python of its own with an Airflow of its own."""
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("RESULT")[2])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every DAG of the folder, as Airflow loads it."""
    found: dict[str, Any] = in_fresh_python(LOAD_ALL, tmp_path_factory.mktemp("airflow"))
    return found


def test_every_dag_file_loads(loaded: dict[str, Any]) -> None:
    assert loaded["errors"] == {}
    assert set(loaded["dags"]) >= {"prune_model", "sweep_model", "rollback_model", "watch_registry", "monitor_model"}


def test_every_dag_has_documentation_and_described_params(loaded: dict[str, Any]) -> None:
    for dag in loaded["dags"].values():
        assert dag["doc"].strip()
        assert all(dag["params"].values())


@pytest.mark.parametrize("dag", ["prune_model", "sweep_model", "rollback_model", "monitor_model"])
def test_a_name_that_a_step_would_refuse_starts_no_run(loaded: dict[str, Any], dag: str) -> None:
    patterns = loaded["dags"][dag]["patterns"]
    good = {"model": "Digits-cnn_2.b", "recipe": "digits", "sweep": "digits-sweep", "version": "12", "to": "12"}
    for name, pattern in patterns.items():
        if name not in good:
            continue
        assert re.search(pattern, good[name]), name
        for bad in ("", "../up", "a/b", "1\n", "a\n", "a\nb", "modèle", "$(id)", "-rf", "a b", "1" * 10_000):
            assert not re.search(pattern, bad), (name, bad)
    candidates = ("digits-sweep:l2-0.5", "digits-sweep:l2-0.5:2")
    assert all(re.search(patterns["recipe"], name) for name in candidates if "recipe" in patterns)
    assert all(re.search(patterns["to"], word) for word in ("previous", "dense") if "to" in patterns)


def test_every_step_is_retried_by_the_same_policy(loaded: dict[str, Any]) -> None:
    for dag in loaded["dags"].values():
        assert {(task["retries"], task["policy"]) for task in dag["tasks"].values()} == {(3, "StepRetries")}


def test_the_cycles_are_unrolled_and_chained(loaded: dict[str, Any]) -> None:
    tasks = loaded["dags"]["prune_model"]["tasks"]
    for cycle in range(1, CYCLES + 1):
        before = [f"cycle_{cycle - 1}.evaluate"] if cycle > 1 else []
        assert tasks[f"cycle_{cycle}.cut"]["upstream"] == sorted([*before, "baseline", "plan", "resolve"])
        assert f"cycle_{cycle}.cut" in tasks[f"cycle_{cycle}.recover"]["upstream"]
        assert f"cycle_{cycle}.recover" in tasks[f"cycle_{cycle}.evaluate"]["upstream"]
    assert f"cycle_{CYCLES + 1}.cut" not in tasks


def test_selection_goes_on_when_cycles_were_skipped(loaded: dict[str, Any]) -> None:
    select = loaded["dags"]["prune_model"]["tasks"]["select"]
    assert select["rule"].lower().endswith("none_failed_min_one_success")
    assert set(select["upstream"]) >= {f"cycle_{cycle}.evaluate" for cycle in range(1, CYCLES + 1)}


def test_the_report_is_written_whether_or_not_anything_was_promoted(loaded: dict[str, Any]) -> None:
    report = loaded["dags"]["prune_model"]["tasks"]["report"]
    assert report["rule"].lower().endswith("none_failed")
    assert set(report["upstream"]) == {"promote", "resolve"}
    assert report["links"] == ["Report"]


def test_a_person_is_asked_between_gate_and_promotion_which_happens_also_where_nobody_was(
    loaded: dict[str, Any],
) -> None:
    tasks = loaded["dags"]["prune_model"]["tasks"]
    assert "gate" in tasks["ask"]["upstream"]
    assert tasks["approve"]["upstream"] == ["ask"]
    assert set(tasks["promote"]["upstream"]) == {"resolve", "export", "gate", "approve"}
    assert tasks["promote"]["rule"].lower().endswith("none_failed")


def test_the_registry_is_watched_by_one_dag_one_run_at_a_time(loaded: dict[str, Any]) -> None:
    watch = loaded["dags"]["watch_registry"]
    assert watch["assets"] == [webhook.ASSET]
    assert watch["max_active_runs"] == 1


def test_steps_that_measure_take_the_bench(loaded: dict[str, Any]) -> None:
    tasks = loaded["dags"]["prune_model"]["tasks"]
    on_bench = {name for name, task in tasks.items() if task["pool"] == "bench"}
    cycles = {f"cycle_{cycle}.{step}" for cycle in range(1, CYCLES + 1) for step in ("cut", "evaluate")}
    assert on_bench == {"baseline", "validate", "validate_on", "gate", *cycles}
    measure = {name for name in tasks if placement.NEEDS.get(name.rpartition(".")[2]) == "bench"}
    assert measure == on_bench
    assert {name.rpartition(".")[2] for name in tasks} >= set(placement.NEEDS)  # none of them is a step that was


def test_no_step_of_our_other_dags_has_the_name_of_one_that_measures_or_trains(loaded: dict[str, Any]) -> None:
    assert set(loaded["dags"]) == set(OURS)
    others = [loaded["dags"][dag]["tasks"] for dag in OURS if dag != "prune_model"]
    assert not placement.NEEDS.keys() & {name.rpartition(".")[2] for steps in others for name in steps}


def test_later_steps_go_before_earlier_ones_and_short_dags_before_long_ones(loaded: dict[str, Any]) -> None:
    weights = {
        dag: {name: task["weight"] for name, task in made["tasks"].items()} for dag, made in loaded["dags"].items()
    }
    late = {"validate", *(f"cycle_{cycle}.evaluate" for cycle in range(1, CYCLES + 1))}
    for dag, made in loaded["dags"].items():
        for name in made["tasks"].keys() - late:
            assert all(weights[dag][before] < weights[dag][name] for before in made["tasks"][name]["upstream"])
    pruning = weights["prune_model"]
    cuts = [pruning[f"cycle_{cycle}.cut"] for cycle in range(1, CYCLES + 1)]
    assert {pruning["baseline"] < pruning[name] < min(cuts) for name in late} == {True}  # a recovery waits for a cut
    long = max(max(weights[dag].values()) for dag in ("prune_model", "sweep_model"))
    for dag in ("monitor_model", "rollback_model", "watch_registry"):
        assert min(weights[dag].values()) > long


def test_dag_files_load_nothing_heavy_and_load_in_under_a_second(tmp_path: Path) -> None:
    measured = min((in_fresh_python(IMPORT_ALL, tmp_path) for _ in range(2)), key=lambda one: float(one["seconds"]))
    assert measured["heavy"] == []
    assert measured["seconds"] < 1.0


def test_dag_files_are_short() -> None:
    for path in DAGS.glob("*.py"):
        assert len(path.read_text().splitlines()) < 100, f"{path.name}: wiring only"


@pytest.mark.parametrize("path", sorted(DAGS.glob("*.py")), ids=lambda path: path.name)
def test_dag_files_do_not_make_a_new_version_at_each_parse(path: Path, tmp_path: Path) -> None:
    script = (
        "import json\n"
        "from airflow.utils.dag_version_inflation_checker import check_dag_file_stability\n"
        f"found = check_dag_file_stability({str(path)!r})\n"
        "print('RESULT' + json.dumps([str(warning) for warning in found.warnings.values()]))"
    )
    assert in_fresh_python(script, tmp_path) == []


def test_what_serves_is_looked_at_hourly_one_run_at_a_time_each_model_by_itself(loaded: dict[str, Any]) -> None:
    dag = loaded["dags"]["monitor_model"]
    assert (dag["schedule"], dag["max_active_runs"]) == ("@hourly", 1)
    assert dag["tasks"]["look"]["mapped"]
    assert dag["tasks"]["look"]["upstream"] == ["models"]
    assert set(dag["tasks"]["follow"]["upstream"]) == {"look", "approve"}
    for task in ("ask", "follow", "tell"):  # one model that cannot be looked at keeps nothing from the others
        assert dag["tasks"][task]["rule"].lower().endswith("all_done")


def test_a_sweep_runs_several_candidates_at_once_in_each_rung_and_one_finalist_after_the_other(
    loaded: dict[str, Any],
) -> None:
    tasks = loaded["dags"]["sweep_model"]["tasks"]
    for rung in range(1, RUNGS + 1):
        assert tasks[f"rung_{rung}"]["mapped"]
        assert tasks[f"rung_{rung}"]["at_once"] > 1
        assert tasks[f"rung_{rung}"]["upstream"] == [f"start_{rung}"]
        assert f"rung_{rung}" in tasks[f"compare_{rung}"]["upstream"]
    for place in range(1, FINALISTS + 1):
        assert tasks[f"final_{place}"]["at_once"] == 1
        before = f"final_{place - 1}" if place > 1 else f"compare_{RUNGS}"
        assert before in tasks[f"finalist_{place}"]["upstream"]
    assert f"final_{FINALISTS}" in tasks["report"]["upstream"]
    assert tasks["report"]["links"] == ["Report"]


def test_a_sweep_goes_on_where_rungs_or_finalists_are_skipped(loaded: dict[str, Any]) -> None:
    tasks = loaded["dags"]["sweep_model"]["tasks"]
    for name in ("compare_1", f"compare_{RUNGS}", "finalist_1", f"finalist_{FINALISTS}", "report"):
        assert tasks[name]["rule"].lower().endswith("none_failed")
