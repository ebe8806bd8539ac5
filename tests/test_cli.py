"""The command `secateur` against servers that answer as Airflow and MLflow do: what it prints and how it ends."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from rich.console import Console

from tasks.cli import airflow_api, app, show
from tasks.cli.airflow_api import Task

RUN = "manual__2026-11-23T18:50:06+00:00"
PASS = {
    "outcome": "pass",
    "reason": "All rules hold.",
    "rules": [{"name": "speedup", "outcome": "pass", "sentence": "1.9 >= 1.3"}],
}
FAIL = {"outcome": "fail", "reason": "The speedup's lower bound 1.9 is below 3.", "rules": []}
PROMOTION = {
    "model": "digits-cnn",
    "version": "2",
    "previous": "1",
    "uri": "s3://secateur/digits-cnn-onnx/2/model.onnx",
}
DENSE = {
    "accuracy": 0.98,
    "latency_p50_ms": 1.2,
    "latency_p99_ms": 2.5,
    "size_bytes": 400_000,
    "params": 100_000,
    "macs": 5_000_000,
}
PRUNED = {name: value / 2 for name, value in DENSE.items()} | {"accuracy": 0.975}
SPEEDUP = {"speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1, "theoretical_speedup": 2.4}


@dataclass
class Servers:
    """What the stand-in servers answer, by path, and what was sent to them."""

    state: str = "success"
    xcoms: dict[str, Any] = field(default_factory=dict)
    why: dict[str, Any] = field(default_factory=dict)  # what steps failed of
    tasks: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    log_of: int = -1  # the task's index, where it was mapped
    refuse_trigger: tuple[int, str] | None = None
    lost_answers: int = 0  # so many runs start and their answer is an error
    password: str = "right"
    sent: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """The status and the JSON of one request."""
        routes: list[tuple[str, Callable[[], tuple[int, Any]]]] = [
            ("/auth/token", lambda: self._token(body)),
            ("/xcomEntries/return_value", lambda: self._xcom(path, self.xcoms)),
            ("/xcomEntries/why", lambda: self._xcom(path, self.why)),
            (f"map_index={self.log_of}&", lambda: (200, {"content": self.log})),
            ("/taskInstances", lambda: (200, {"task_instances": self.tasks})),
            ("/dagRuns/manual__", lambda: (200, {"state": self.state})),
            ("/dagRuns", lambda: self._trigger(body)),
            ("/api/2.0/mlflow/runs/get", lambda: (200, self._mlflow_run())),
        ]
        return next((respond() for part, respond in routes if part in path), (404, {"detail": "no such page"}))

    def _token(self, body: dict[str, Any]) -> tuple[int, Any]:
        return (
            (201, {"access_token": "t"})
            if body["password"] == self.password
            else (401, {"detail": "Invalid credentials"})
        )

    def _trigger(self, body: dict[str, Any]) -> tuple[int, Any]:
        started = body["dag_run_id"] in {sent["dag_run_id"] for sent in self.sent}
        self.sent.append(body)
        if started and not self.refuse_trigger:
            return 409, {"detail": "Unique constraint violation"}
        if len(self.sent) <= self.lost_answers:
            return 500, {"detail": "Database error"}
        if self.refuse_trigger:
            return self.refuse_trigger[0], {"detail": self.refuse_trigger[1]}
        return 200, {"dag_run_id": body["dag_run_id"]}

    def _xcom(self, path: str, kept: dict[str, Any]) -> tuple[int, Any]:
        name = path.split("/taskInstances/")[1].split("/")[0]
        return (200, {"value": kept[name]}) if name in kept else (404, {"detail": "XCom not found"})

    def _mlflow_run(self) -> dict[str, Any]:
        metrics = {f"dense.{name}": value for name, value in DENSE.items()}
        metrics |= {f"pruned.{name}": value for name, value in PRUNED.items()} | SPEEDUP
        data = {"metrics": [{"key": name, "value": value} for name, value in metrics.items()]}
        return {"run": {"info": {"experiment_id": "7"}, "data": data}}


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    """One server that stands in for both, and settings that lead to it."""
    answers = Servers()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond()

        def do_POST(self) -> None:
            self._respond()

        def _respond(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            status, content = answers.answer(unquote(self.path), body)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    for name, value in {"URL": address, "USERNAME": "admin", "PASSWORD": "right"}.items():
        monkeypatch.setenv(f"SECATEUR_AIRFLOW_{name}", value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    yield answers
    server.shutdown()
    server.server_close()


@pytest.fixture
def secateur(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command in this process; returns its exit status."""

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["secateur", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return int(ended.value.code or 0)

    return call


RUN_DIGITS = ("run", "digits-cnn", "--version", "3", "--recipe", "digits")


def test_a_promoted_run_ends_with_the_table_and_status_0(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    reported = {"address": "http://mlflow/#/experiments/7/runs/r1/artifacts/report/report.html"}
    servers.xcoms = {"resolve": {"run_id": "r1"}, "gate": PASS, "promote": PROMOTION, "report": reported}
    assert secateur(*RUN_DIGITS, "--fresh") == 0
    assert servers.sent[0]["conf"] == {"model": "digits-cnn", "version": "3", "recipe": "digits", "fresh": True}
    shown = capsys.readouterr().out
    for part in ("98.00%", "97.50%", "-0.50 points", "1.200 ms", "-50%", "Speedup 2.00x (interval 1.90x to 2.10x)"):
        assert part in shown
    assert "Verdict: pass" in shown
    assert "1.9 >= 1.3" in shown
    assert "Champion is version 2 (before: 1)." in shown
    assert "/#/experiments/7/runs/r1" in shown
    assert reported["address"] in shown


MEASURED = {
    "name": "l2-0.5",
    "rung": 2,
    "state": "measured",
    "reason": "All hold.",
    "outcome": "pass",
    "change": [-0.01, -0.02, 0.0],
    "speedup": [2.0, 1.9, 2.1],
    "p50_ms": 0.5,
    "size_bytes": 2048.0,
    "sparsity": 0.5,
}
SWEPT = {
    "winner": "l2-0.5",
    "reason": "of 2 candidates, 1 measured: the first",
    "judged": {"l2-0.5": PASS},
    "candidates": [MEASURED, {"name": "l2-0.9", "rung": 1, "state": "failed", "reason": "goal: out of reach"}],
    "metric": "accuracy",
    "run_id": "s1",
    "address": "http://mlflow/report.html",
}
SWEEP_DIGITS = ("sweep", "digits-cnn", "--sweep", "digits-sweep")


def test_a_sweep_ends_with_all_candidates_side_by_side_and_status_0(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    servers.xcoms = {"report": SWEPT}
    assert secateur(*SWEEP_DIGITS) == 0
    conf = {"model": "digits-cnn", "version": "latest", "sweep": "digits-sweep", "fresh": False}
    assert servers.sent[0]["conf"] == conf
    shown = capsys.readouterr().out
    for part in ("l2-0.5", "50%", "-1.00", "2.00x (1.90 to 2.10)", "0.500", "pass"):
        assert part in shown
    assert "l2-0.9 failed: goal: out of reach" in shown
    assert "Winner: l2-0.5, of 2 candidates, 1 measured: the first" in shown
    assert "http://mlflow/report.html" in shown


def test_a_sweep_that_nobody_wins_says_why_and_ends_with_status_3(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    servers.xcoms = {"report": SWEPT | {"winner": None, "judged": {}, "reason": "all break a bound"}}
    assert secateur(*SWEEP_DIGITS) == 3
    assert "No winner: all break a bound" in capsys.readouterr().out


def test_a_refused_run_opens_with_the_reason_and_ends_with_status_3(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    servers.xcoms = {"resolve": {"run_id": "r1"}, "gate": FAIL}
    assert secateur(*RUN_DIGITS) == 3
    assert capsys.readouterr().out.startswith("Not promoted: The speedup's lower bound 1.9 is below 3.")


def test_a_run_that_the_plan_ends_opens_with_the_reason_and_its_numbers_and_ends_with_status_3(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = [{"choice": "method", "chosen": "none", "because": "It is fast enough.", "numbers": "size_mb 3: 0.80x"}]
    servers.xcoms = {"resolve": {"run_id": "r1"}, "plan": {"method": "none", "reasons": reasons}}
    assert secateur(*RUN_DIGITS) == 3
    shown = capsys.readouterr().out
    assert shown.startswith("Not pruned: It is fast enough.")
    assert "size_mb 3: 0.80x" in shown
    assert "Speedup" not in shown, "there is nothing to compare"


def test_zeros_and_the_method_that_makes_them_are_shown_where_there_are_any() -> None:
    metrics = {f"pruned.{name}": value for name, value in PRUNED.items()} | {"pruned.zeros": 1234.0}
    console = Console(width=100)
    with console.capture() as captured:
        console.print(show.comparison(metrics))
    assert "1,234" in captured.get()
    why = {"choice": "method", "chosen": "unstructured", "because": "set in the recipe", "numbers": ""}
    assert show.plan_sentence({"reasons": [why]}) == "Method unstructured: set in the recipe."


def test_what_a_person_said_is_the_reason_of_a_refusal_and_stands_beside_a_promotion(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {
        "chosen_options": ["Reject"],
        "params_input": {"words": "not now"},
        "responded_by_user": {"id": "1", "name": "Ann"},
    }
    close = FAIL | {"outcome": "inconclusive"}
    servers.xcoms = {"resolve": {"run_id": "r1"}, "gate": close, "approve": answer}
    assert secateur(*RUN_DIGITS) == 3
    assert capsys.readouterr().out.startswith("Not promoted: Rejected by Ann: not now")
    servers.xcoms |= {"approve": answer | {"chosen_options": ["Approve"]}, "promote": PROMOTION}
    assert secateur(*RUN_DIGITS) == 0
    assert "Approved by Ann: not now\nChampion is version 2" in capsys.readouterr().out


def test_a_run_that_waits_for_a_person_says_so() -> None:
    console = Console(width=120)
    with console.capture() as captured, show.progress(console) as report:
        report("running", [task("gate", "success"), task("approve", "awaiting_input")])
    assert "approve            waits for a person to answer in Airflow" in captured.get()


def test_a_failed_run_opens_with_the_step_s_own_sentence_and_ends_with_status_1(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    servers.state = "failed"
    servers.tasks = [task_json("resolve", "failed"), task_json("baseline", "upstream_failed")]
    servers.log = [
        {"event": "x", "error_detail": [{"exc_type": "InputError", "exc_value": "recipe: no recipe 'digitz'"}]}
    ]
    assert secateur(*RUN_DIGITS) == 1
    assert capsys.readouterr().out.startswith("Error: Step resolve failed: recipe: no recipe 'digitz'")


def test_a_step_that_left_its_reason_needs_no_log(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    servers.state, servers.why = "failed", {"recover": "data.path: expected a file, got none"}
    servers.tasks = [task_json("recover", "failed")]
    assert secateur(*RUN_DIGITS) == 1
    assert capsys.readouterr().out.startswith("Error: Step recover failed: data.path: expected a file, got none")


def test_of_a_mapped_step_the_log_of_the_one_that_failed_is_read(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    servers.state, servers.log_of = "failed", 1
    servers.tasks = [task_json("validate_on", "success", index=0), task_json("validate_on", "failed", index=1)]
    servers.log = [{"event": "x", "error_detail": [{"exc_type": "InputError", "exc_value": "target.name: wrong"}]}]
    assert secateur(*RUN_DIGITS) == 1
    assert capsys.readouterr().out.startswith("Error: Step validate_on failed: target.name: wrong")


def test_a_step_that_was_killed_too_often_is_named(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    servers.state = "failed"
    servers.tasks = [task_json("recover", "failed", tries=4)]
    assert secateur(*RUN_DIGITS) == 1
    assert (
        "Step recover failed after 4 tries and left no exception: its process was killed, or its log is gone"
        in capsys.readouterr().out
    )


def test_json_is_all_there_is_on_standard_output(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    servers.xcoms = {"resolve": {"run_id": "r1"}, "gate": FAIL}
    assert secateur(*RUN_DIGITS, "--json") == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["ending"] == "refused"
    assert printed["exit_code"] == 3
    assert printed["metrics"]["dense.accuracy"] == 0.98


def test_a_rollback_says_what_serves_now(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    servers.xcoms = {"rollback": {**PROMOTION, "previous": "2", "version": "1"}}
    assert secateur("rollback", "digits-cnn", "--to", "previous", "--reason", "worse on Mondays") == 0
    assert servers.sent[0]["conf"] == {"model": "digits-cnn", "to": "previous", "reason": "worse on Mondays"}
    assert "Champion is version 1 (before: 2)." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (
            (400, "Invalid input for param version: 'x' does not match\n\nFailed validating"),
            "Error: Invalid input for param version",
        ),
        ((404, "Dag not found"), "does not know DAG 'prune_model'"),
        ((403, "Forbidden"), "refuses POST of DAG 'prune_model': it takes a higher role there"),
        ((500, "broken"), "answered 500 to DAG 'prune_model': broken. Run manual__"),
    ],
)
def test_what_airflow_refuses_is_one_sentence(
    servers: Servers,
    secateur: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    refusal: tuple[int, str],
    sentence: str,
) -> None:
    servers.refuse_trigger = refusal
    assert secateur(*RUN_DIGITS) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.strip().splitlines()) == 1


def test_a_run_whose_answer_was_lost_starts_once(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    servers.xcoms = {"rollback": {**PROMOTION, "previous": "2", "version": "1"}}
    servers.lost_answers = 1
    assert secateur("rollback", "digits-cnn", "--to", "previous", "--reason", "worse on Mondays") == 0
    assert [sent["dag_run_id"] for sent in servers.sent] == [servers.sent[0]["dag_run_id"]] * 2
    assert "Champion is version 1" in capsys.readouterr().out


def test_a_wrong_password_is_named(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_AIRFLOW_PASSWORD", "wrong")
    assert secateur(*RUN_DIGITS) == 1
    said = capsys.readouterr().err
    assert "check SECATEUR_AIRFLOW_USERNAME and SECATEUR_AIRFLOW_PASSWORD" in said
    assert "wrong" not in said


def test_a_server_that_is_down_is_named(
    servers: Servers, secateur: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_AIRFLOW_URL", "http://127.0.0.1:1")
    assert secateur(*RUN_DIGITS) == 1
    assert "Airflow at http://127.0.0.1:1 does not answer" in capsys.readouterr().err


def test_no_stack_and_no_settings_says_what_to_do(
    secateur: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SECATEUR_AIRFLOW_URL", raising=False)
    monkeypatch.setenv("SECATEUR_STACK_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert secateur(*RUN_DIGITS) == 1
    assert "start the stack with `make up`" in capsys.readouterr().err


def test_the_command_starts_without_the_heavy_libraries() -> None:
    script = "import sys, tasks.cli.app; print([name for name in ('torch', 'mlflow', 'airflow', 'boto3') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_progress_shows_a_row_per_cycle_in_the_order_of_the_pipeline() -> None:
    tasks = [
        task("promote", None),
        task("cycle_2.cut", "skipped"),
        task("cycle_1.evaluate", "running"),
        task("cycle_1.cut", "success"),
        task("cycle_1.recover", "success", tries=2),
        task("resolve", "success"),
    ]
    console = Console(width=120, record=True, file=None)
    with console.capture() as captured:
        console.print(show.picture("running", tasks))
    lines = [line.split() for line in captured.get().splitlines()]
    assert [line[0] for line in lines] == ["resolve", "cycle", "cycle", "promote"]
    first_cycle = " ".join(lines[1])
    assert first_cycle.index("cut done") < first_cycle.index("recover done") < first_cycle.index("evaluate running")
    assert "(try 2)" in first_cycle


def test_a_metric_that_is_missing_shows_as_a_dash() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(show.comparison({"dense.accuracy": 0.98}))
    row = next(line for line in captured.get().splitlines() if "accuracy" in line)
    assert row.count(" - ") == 2


def test_the_table_is_of_the_file_that_ships() -> None:
    console = Console(width=120)
    metrics = {"dense.accuracy": 0.98, "pruned.accuracy": 0.9, "pruned_int8.accuracy": 0.97}
    with console.capture() as captured:
        console.print(show.comparison(metrics, ships="pruned_int8"))
    assert "pruned, INT8" in captured.get()
    row = next(line for line in captured.get().splitlines() if "accuracy" in line)
    assert "97.00%" in row
    assert "-1.00 points" in row


def test_the_history_says_who_moved_what_when_and_why() -> None:
    entry = {
        "number": 1,
        "when": "2026-11-23T19:34:21+00:00",
        "who": "admin",
        "action": "rollback",
        "from_version": "2",
        "to_version": "1",
        "reason": "worse [on] Mondays",
        "outcome": "undone",
    }
    console = Console(width=120)
    with console.capture() as captured:
        console.print(show.history("digits-cnn", [entry]))
    row = captured.get().splitlines()[-2]
    for part in ("2026-11-23 19:34", "admin", "rollback (undone)", "2 -> 1", "worse [on] Mondays"):
        assert part in row


def test_the_history_of_a_model_that_was_never_promoted_is_a_sentence() -> None:
    assert "Nothing was ever promoted" in str(show.history("digits-cnn", []))


def task(name: str, state: str | None, tries: int = 1) -> Task:
    """A task instance."""
    return Task(name, -1, state, tries, queued=0.0, started=1.0 if state else None, ended=2.0, scheduled=0.0)


def task_json(name: str, state: str, tries: int = 1, index: int = -1) -> dict[str, Any]:
    """A task instance as Airflow writes it."""
    moment = "2026-11-23T18:50:07Z"
    told = {"task_id": name, "map_index": index, "state": state, "try_number": tries}
    return {**told, "start_date": moment, "end_date": moment}


def test_a_task_s_times_are_read(servers: Servers) -> None:
    servers.tasks = [task_json("resolve", "success")]
    with airflow_api.connect() as client:
        (read,) = airflow_api.tasks(client, "prune_model", RUN)
    assert read.ended is not None
    assert read.ended == read.started
