"""The benchmark of many prunings at once: what it replays and what it reckons."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster import figures, load, recording, replay
from benchmarks.cluster.servers import Setting
from tasks import cut, evaluate, plan

RUN, OTHER = "a" * 32, "b" * 32


def test_what_differs_at_the_same_place_is_replaced_wherever_it_stands() -> None:
    recorded = {"run_id": RUN, "uri": f"runs:/{RUN}/x", "status": "RUNNING", "n": 3, "list": [{"name": "as-it-was"}]}
    now = {"run_id": OTHER, "uri": f"runs:/{OTHER}/x", "status": "RUNNING", "n": 4, "list": [{"name": "as-it-is"}]}
    names = dict(replay.differences(recorded, now))
    assert names == {RUN: OTHER, f"runs:/{RUN}/x": f"runs:/{OTHER}/x", "as-it-was": "as-it-is"}
    assert replay.replaced(json.dumps({"key": RUN, "of": "as-it-was-onnx"}), names) == json.dumps(
        {"key": OTHER, "of": "as-it-is-onnx"}
    )


def test_a_short_text_is_never_replaced() -> None:
    assert list(replay.differences({"version": "1"}, {"version": "2"})) == []


def test_steps_inside_a_cycle_are_recorded_by_its_number() -> None:
    assert replay.file_name(cut.run, {"cycle": 2, "previous": None}) == "cut_2"
    assert replay.file_name(evaluate.run, {"recovered": {"cycle": 3}}) == "evaluate_3"
    assert replay.file_name(plan.run, {}) == "plan"
    assert [figures.recorded_as(task) for task in ("cycle_2.cut", "plan")] == ["cut_2", "plan"]


def test_a_replayed_step_sends_what_was_recorded_under_the_names_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, str]]
) -> None:
    entry: dict[str, Any] = {
        "given": {"pinned": {"run_id": RUN}, "baseline": {}},
        "requests": [
            {"method": "GET", "path": f"/runs?id={RUN}", "type": "", "body": "", "status": 200, "answer": None}
        ],
        "result": {"method": "structured", "measure": "sparsity", "shares": [0.5], "epochs": [1], "reasons": []},
        "skipped": "",
    }
    (tmp_path / "plan.json").write_text(json.dumps(entry))
    monkeypatch.setenv(replay.RECORDING, str(tmp_path))
    done = replay.replayed(plan.run)({"run_id": OTHER}, {})
    assert asked == [("GET", f"/runs?id={OTHER}")]
    assert done.shares == (0.5,)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server that answers {} and keeps what it was asked; MLflow's address leads to it."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.command, self.path))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")
        yield seen
        server.shutdown()


def test_searches_are_no_writes() -> None:
    assert recording.writes("POST", "/api/2.0/mlflow/runs/log-batch")
    assert recording.writes("PUT", "/api/2.0/mlflow-artifacts/artifacts/x")
    assert not recording.writes("POST", "/api/2.0/mlflow/runs/search")
    assert not recording.writes("GET", "/health")


def test_a_version_s_time_is_in_the_id_of_its_run() -> None:
    assert load.registered_at("registry__a__model__2__19700101T000002.500") == 2.5


def test_a_spread_is_the_median_and_the_value_that_99_percent_do_not_exceed() -> None:
    assert figures.spread([float(n) for n in range(1, 101)]) == {"p50": 50.0, "p99": 99.0, "n": 100}
    assert figures.spread([]) is None


def test_cores_in_use_are_seconds_over_seconds_and_what_ended_used_none() -> None:
    assert figures.used({"a": 1.0, "gone": 5.0, "again": 9.0}, {"a": 3.0, "new": 1.0, "again": 1.0}, 2.0) == {
        "a": 1.0,
        "new": 0.5,
        "again": 0.0,
    }


def test_what_a_run_keeps_is_its_part_of_what_all_wrote_at_their_start_and_of_what_was_done() -> None:
    assert figures.kept_per_run(grown=1000.0, at_start=400.0, started=4, done=2.0) == 100.0 + 300.0


def test_sizing_follows_from_the_costs_of_one_pruning() -> None:
    costs = figures.Costs({"scheduler": 7.0}, 17, 900, {"airflow": 1e5}, 10.0, (5.0, 240.0))
    row = figures.sizing(10_000, costs)
    rate = 10_000 / 86_400 * figures.PEAK
    assert row["tasks_per_min"] == pytest.approx(rate * 17 * 60)
    assert row["cores"] == pytest.approx(rate * 7.0 / figures.FULL)
    assert row["scheduler processes"] == 4
    assert row["airflow GB"] == pytest.approx(30.0)
    assert row["devices"] == 100
    assert row["train_workers"] == [50, 2381]
    assert figures.sizing(1, costs)["scheduler processes"] == 1


def test_a_setting_says_what_was_changed() -> None:
    assert str(Setting()) == "as it starts"
    assert str(Setting(bench_slots=8)) == "bench slots 8"
    assert Setting(parallelism=8).airflow["AIRFLOW__CORE__PARALLELISM"] == "8"
