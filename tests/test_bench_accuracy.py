"""The accuracy benchmark's files: parts add themselves, what was asked is judged by the mean, the page says what is missing."""

import functools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy import remarks, report
from benchmarks.accuracy.rows import STUDIES
from benchmarks.accuracy.run import as_part, current, read, run_row
from benchmarks.accuracy.scales import CPU, SCALES, Recipe, Scale
from benchmarks.accuracy.study import Ask, Study, Trial
from benchmarks.context import Context, Row, Skipped
from secateur.training import Settings

MADE = {"dense": 0.93, "cut": 0.4, "sparsity": 0.5, "macs": 1000, "macs_ratio": 2.0, "seconds": 120}


def made(recovered: float = 0.925) -> Row:
    return MADE | {"recovered": recovered}


def part(label: str = "2x", recovered: float = 0.925, ask: Ask | None = None, seed: int = 0, **more: Any) -> Row:
    return as_part(Trial(label, seed, {"epochs": 1}, lambda _: {}, ask), made(recovered) | more)


@pytest.mark.parametrize(
    ("ask", "met", "words"),
    [
        (Ask("accuracy", 0.92), True, "at least 92.0%"),
        (Ask("accuracy", 0.926), False, "at least 92.6%"),
        (Ask("drop", 0.005), True, "drop at most 0.5 points"),
        (Ask("drop", 0.004), False, "drop at most 0.4 points"),
        (Ask("share", 0.99), True, "at least 99% of dense"),
        (Ask("share", 0.999), False, "at least 100% of dense"),
    ],
)
def test_what_is_asked_is_an_accuracy_a_drop_or_a_share(ask: Ask, met: bool, words: str) -> None:
    assert ask.met(0.93, 0.925) is met
    assert str(ask) == words


def test_a_verdict_is_that_of_the_mean_and_a_short_protocol_is_not_blamed() -> None:
    ask = Ask("drop", 0.01)
    assert report.verdict([part(recovered=0.93, ask=ask), part(recovered=0.915, ask=ask, seed=1)], "gpu") == "met"
    assert report.verdict([part(recovered=0.915, ask=ask)], "gpu") == "not met"
    assert report.verdict([part(recovered=0.915, ask=ask)], "cpu") == "short protocol: n/a"
    assert report.verdict([part()], "gpu") == ""


def study(run: Any, labels: tuple[str, ...] = ("a", "b"), epochs: int = 1) -> Study:
    def trials(scale: Scale) -> list[Trial]:
        recipe = Recipe(Settings(learning_rate=0.1), last=epochs).told()
        return [Trial(label, 0, {"recipe": recipe}, functools.partial(run, label=label)) for label in labels]

    return Study("Title", "About.", trials, minutes=1)


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a study in the place of a row, and gives its name."""

    def put(made: Study) -> str:
        monkeypatch.setitem(STUDIES, "stories260k", made)
        return "stories260k"

    return put


def test_parts_add_themselves_and_are_not_done_twice(row: Any, tmp_path: Path) -> None:
    ran: list[str] = []

    def run(_: Context, label: str) -> Row:
        if label == "b" and not ran.count("b"):
            ran.append("b")
            raise KeyboardInterrupt
        ran.append(label)
        return made()

    context, name = Context(None, tmp_path), row(study(run))
    with pytest.raises(KeyboardInterrupt):
        run_row(name, CPU, context, tmp_path)
    assert [stored["label"] for stored in read(tmp_path, CPU)[name]["parts"]] == ["a"]
    assert "1 of 2 parts are missing." in (tmp_path / "accuracy-cpu.md").read_text()
    run_row(name, CPU, context, tmp_path)
    assert ran == ["a", "b", "b"]
    assert "missing" not in (tmp_path / "accuracy-cpu.md").read_text()


def test_parts_of_other_settings_are_done_again(row: Any, tmp_path: Path) -> None:
    context = Context(None, tmp_path)
    run_row(row(study(lambda _, label: made(0.9))), CPU, context, tmp_path)
    name = row(study(lambda _, label: made(0.8), epochs=2))
    run_row(name, CPU, context, tmp_path)
    assert [stored["recovered"] for stored in read(tmp_path, CPU)[name]["parts"]] == [0.8, 0.8]


def test_a_row_without_its_data_says_so_and_loses_nothing(row: Any, tmp_path: Path) -> None:
    def skipped(_: Context, label: str) -> Row:
        raise Skipped("needs x/ in the data folder")

    context, name = Context(None, tmp_path), row(study(skipped))
    run_row(name, CPU, context, tmp_path)
    assert "Skipped: needs x/ in the data folder." in (tmp_path / "accuracy-cpu.md").read_text()
    run_row(row(study(lambda _, label: made(), ("a",))), CPU, context, tmp_path)
    run_row(row(study(skipped)), CPU, context, tmp_path)
    assert len(read(tmp_path, CPU)[name]["parts"]) == 1


def test_several_parts_at_a_time_run_in_processes_of_their_own(tmp_path: Path) -> None:
    places = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "benchmarks.accuracy", "--rows", "stories260k", "--jobs", "2", *places]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "stories260k: skipped" in done.stdout + done.stderr
    assert "Skipped: " in (tmp_path / "out" / "accuracy-cpu.md").read_text()


def test_parts_stand_in_the_order_of_the_row() -> None:
    trials = [Trial(label, 0, {"epochs": 1}, lambda _: {}) for label in ("1.5x", "2x")]
    assert [stored["label"] for stored in current(trials, [part("2x"), part("gone"), part("1.5x")])] == ["1.5x", "2x"]


def test_the_page_shows_accuracies_as_percents_and_seeds_as_spread() -> None:
    rows = {"criteria": {"parts": [part("l2", 0.92, seed=0), part("l2", 0.93, seed=1)], "asked": 2}}
    text = report.markdown(rows, STUDIES, "gpu")
    assert "| l2 | reported | 93.00 ± 0.00% | 40.00 ± 0.00% | 92.50 ± 0.71% | -0.50 ± 0.71 | 50.0% |" in text


def test_log_likelihoods_are_shown_as_perplexities() -> None:
    stored = part("2:4", -math.log(5), criterion="wanda", pattern="2:4", dense=-math.log(4), cut=-math.log(8))
    text = report.markdown({"stories260k": {"parts": [stored], "asked": 1}}, STUDIES, "cpu")
    assert "| 2:4 | reported | 4.00 | 8.00 | 5.00 | +25.0% |" in text


def test_remarks_say_what_the_rows_show() -> None:
    flipped = [part("l2", 0.91), part("random", 0.92, cut=0.2)]
    assert "l2 > random; after recovery random > l2: 1 of 1 pairs change places" in remarks.ranking(flipped)
    ways = [part(way, accuracy, way=way, share=0.9) for way, accuracy in (("oneshot", 0.8), ("iterative", 0.85))]
    assert remarks.boundary(ways) == "Iterative less one-shot: +5.00 points at 90%."
    orders = [
        part(c, score, criterion=c, pattern="2:4", cut=-score) for c, score in (("wanda", -1.0), ("random", -2.0))
    ]
    assert "2:4: random < wanda right after the cut, wanda < random after recovery" in remarks.order_of_criteria(orders)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_every_row_has_parts_whose_settings_can_be_told_apart(scale: Scale) -> None:
    for name, each in STUDIES.items():
        trials = each.trials(scale)
        assert trials, name
        assert len({(trial.label, trial.seed) for trial in trials}) == len(trials)
        other = replace(
            scale, recipes={key: replace(recipe, last=recipe.last + 1) for key, recipe in scale.recipes.items()}
        )
        assert all(a.settings != b.settings for a, b in zip(trials, each.trials(other), strict=True)), name
