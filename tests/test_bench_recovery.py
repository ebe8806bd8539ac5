"""The recovery benchmark's numbers: ratios with intervals, what of the asked they hold, and the page."""

from typing import Any

import pytest

from benchmarks.recovery import report
from benchmarks.recovery.__main__ import place_of, store
from benchmarks.recovery.rows import TASKS

SAID = {
    "where": "CPU, float32",
    "settings": "batch 10, sgd",
    "batch": 10,
    "rounds": 4,
    "command": "make bench-recovery",
    "date": "2026-11-01",
    "seed": 0,
    "code": "abc",
    "machine": "a machine, 2 cores",
    "versions": {"torch": "2.13.0"},
}


def contender(*seconds: float, peak: int = 100, aside: int = 0) -> dict[str, Any]:
    """The seconds of a round in each process."""
    return {"seconds": [[s] for s in seconds], "waiting": 0.01, "peak_bytes": peak, "aside_bytes": aside}


def row(name: str = "resnet20") -> dict[str, Any]:
    contenders = {
        "ours": contender(1.0, 1.1, 0.9, 1.0, 1.0, 1.0, peak=130, aside=25),
        "plain": contender(1.0, 1.1, 0.9, 1.0, 1.0, 1.0),
        "lightning": contender(2.0, 2.2, 1.8, 2.0, 2.0, 2.0),
    }
    return report.compared({"name": name, "contenders": contenders} | SAID)


def test_what_slows_a_whole_round_changes_neither_the_ratio_nor_its_interval() -> None:
    ours = [[1.0, 5.0], [3.0, 1.0]] * 3
    assert report.ratio(ours, [[2 * s for s in heat] for heat in ours]) == pytest.approx((2.0, 2.0, 2.0))


def test_processes_and_not_rounds_make_the_interval() -> None:
    lucky = [[1.0] * 9, [1.2] * 9, [0.9] * 9, [1.1] * 9, [1.0] * 9, [0.8] * 9]
    point, low, high = report.ratio([[1.0] * 9] * 6, lucky)
    assert (low, high) == pytest.approx((0.8, 1.2))
    assert low < point < high


def test_a_row_has_examples_per_second_speeds_and_memory_without_the_teacher() -> None:
    seen = row()
    assert seen["per_second"] == {"ours": 100.0, "plain": 100.0, "lightning": 50.0}
    assert seen["speed"]["lightning"] == [2.0, 2.0, 2.0]
    assert seen["memory"]["plain"] == 1.05


@pytest.mark.parametrize(
    ("low", "high", "memory", "told"),
    [(0.99, 1.2, 1.1, "plain loop: held"), (0.9, 0.97, 1.1, "plain loop: missed"), (0.9, 1.1, 1.2, "plain loop: open")],
)
def test_a_speed_is_held_missed_or_open(low: float, high: float, memory: float, told: str) -> None:
    changed = row() | {"speed": {"plain": [1.0, low, high], "lightning": [2.0, 2.0, 2.0]}, "memory": {"plain": memory}}
    assert told in report.verdict(changed)
    assert ("memory: held" in report.verdict(changed)) == (memory <= 1.1)


def test_the_page_has_a_line_for_each_row_and_says_why_one_was_skipped() -> None:
    text = report.markdown([row(), {"name": "minilm", "skipped": "needs sst2/ in the data folder"} | SAID])
    assert "| resnet20 | CPU, float32 | 100 | 100 | 50 | 1.000 (1.000 to 1.000) | 2.000 (2.000 to 2.000) |" in text
    assert "minilm, CPU, float32: skipped: needs sst2/ in the data folder." in text


def test_rows_are_kept_in_their_order_and_a_skipped_one_replaces_none(tmp_path: Any) -> None:
    for name in reversed(TASKS):
        store(tmp_path, row(name))
    store(tmp_path, {"name": "minilm", "skipped": "no data"} | SAID)
    text = (tmp_path / "recovery.md").read_text()
    assert "skipped" not in text
    assert [text.index(f"| {name} |") for name in TASKS] == sorted(text.index(f"| {name} |") for name in TASKS)
    assert place_of(row()) == ("resnet20", "CPU, float32")
