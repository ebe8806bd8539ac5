"""`secateur load` as a shell sees it: files in, a table or JSON out, and a sentence where it cannot be."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
from rich.console import Console

from secateur.load.rate import Probe, Rate
from secateur.load.scenario import Cores, Run
from secateur.noise import Counters
from secateur.runtime import Target
from tasks.cli import app, loading
from tasks.cli.loading import Load, Loaded

pytestmark = pytest.mark.alone

Command = Callable[..., int]
RUN = Run(
    "server",
    True,
    (),
    3.0,
    6.0,
    9.0,
    None,
    100.0,
    2.5,
    1000,
    1000,
    5.0,
    Cores(((0,),), (1,)),
    Counters(),
    "6.0 @ x",
    "logs",
)
LOAD = Load(Path("pruned.onnx"), Path("dense.onnx"), p99_ms=20.0, price_per_hour=0.36)


@pytest.fixture
def secateur(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command in this process; returns its exit status."""

    def call(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["secateur", "load", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return int(ended.value.code or 0)

    return call


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loading") / "small.onnx"
    return models.linear_onnx(path, np.ones((models.FEATURES, models.CLASSES)))


def rate_of(low: float | None, high: float | None, **more: str) -> Rate:
    probes = () if low is None else (Probe(low, RUN), Probe(2 * low, replace(RUN, valid=False)))
    return Rate(20.0, low, high, 0.05, RUN, probes, 60.0, **more)


def shown(load: Load, seen: Loaded) -> str:
    console = Console(width=100, file=io.StringIO(), record=True)
    for part in loading.told(load, seen):
        console.print(part, soft_wrap=True)
    return console.export_text()


def test_a_scenario_is_printed_as_a_table_and_its_logs_stay(
    small: Path, tmp_path: Path, secateur: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "examples.npz", x=models.vectors(5))
    words = ("--scenario", "single_stream", "--seconds", 0.3, "--inputs", tmp_path / "examples.npz")
    assert secateur(small, *words, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    for part in ("small.onnx", "VALID", "latency p90", "p90, at most (99 % sure)", "in batches of at most 1", "seed 0"):
        assert part in printed
    assert (tmp_path / "out" / "1-small" / "mlperf_log_summary.txt").is_file()


def test_a_run_that_loadgen_calls_invalid_is_inconclusive_with_its_reason(
    small: Path, secateur: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert secateur(small, "--scenario", "multi_stream", "--seconds", 0.001, "--json") == 3
    printed = json.loads(capsys.readouterr().out)
    assert "Need to process at least 662 queries" in printed["doubts"][0]
    assert printed["runs"][0]["valid"] is False


def test_a_budget_without_room_for_a_probe_is_inconclusive(
    small: Path, secateur: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert secateur(small, "--p99-ms", 500, "--seconds", 0.2, "--budget", 0.1) == 3
    assert "small.onnx: the budget of 0 s ended after 0 probes, without a valid rate" in capsys.readouterr().out


def test_two_rates_stand_side_by_side_with_their_gain_and_their_cost() -> None:
    printed = shown(LOAD, Loaded(Target(), rates=(rate_of(100, 104), rate_of(300, 312))))
    for part in (
        "100 to 104",
        "300 to 312",
        "0.9615 to 1.0000",
        "1 of 2 VALID",
        "pruned.onnx answers 3.00 times the requests of dense.onnx; the brackets leave 2.88 to 3.12.",
        "within 20 ms of their arrival",
        "(cores 0 of 2, LoadGen on 1)",
    ):
        assert part in printed


def test_a_gain_whose_bracket_holds_1_is_none() -> None:
    printed = shown(LOAD, Loaded(Target(), rates=(rate_of(100, 104), rate_of(102, 106))))
    assert "The bracket holds 1: neither is shown to answer more." in printed


def test_a_file_without_a_rate_is_said_and_has_no_gain() -> None:
    seen = Loaded(Target(), rates=(rate_of(None, None, too_slow="it is below the latency"), rate_of(300, 312)))
    printed = shown(LOAD, seen)
    assert "dense.onnx: no rate keeps the limit: it is below the latency" in printed
    assert "times the requests" not in printed
    assert loading.as_json(LOAD, seen)["gain"] is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "p99-ms: expected the limit in milliseconds"),
        (("--p99-ms", 0), "p99_ms: expected a number above 0, got 0"),
        (("--p99-ms", 5, "--scenario", "offline"), "p99-ms: expected for the scenario server alone, got offline"),
        (
            ("--scenario", "offline", "--budget", 5, "--tolerance", 0.1),
            "tolerance, budget: expected for the scenario server",
        ),
        (("--p99-ms", 5, "--price-per-hour", -1), "price-per-hour: expected a number above 0, got -1"),
        (("--p99-ms", 5, "--length", 0), "length: expected at least 1, got 0"),
        (("--scenario", "offlin"), "scenario: expected one of single_stream"),
        (("--p99-ms", 5, "--out", Path(__file__).parent), "out: expected a folder that is empty or not there"),
        (("--p99-ms", 5, "--against", Path(__file__)), "model: expected an ONNX file"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    words: tuple[object, ...], sentence: str, small: Path, secateur: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert secateur(small, *words) == 1
    assert f"Error: {sentence}" in capsys.readouterr().err
