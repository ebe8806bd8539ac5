"""The engine's benchmark page holds every part's table, what it was measured with, and who is ahead."""

from typing import Any

import pytest

from benchmarks.engine import report

SAID = {
    "command": "make bench-engine PARTS=x",
    "date": "2026-11-01",
    "seed": 0,
    "code": "abc",
    "machine": "a machine, 2 cores",
    "versions": {"torch": "2.13.0"},
    "seconds": 90,
}


def page(name: str, rows: list[dict[str, Any]]) -> str:
    return report.markdown({name: SAID | {"rows": rows}})


def test_coverage_counts_each_kind_and_lists_what_went_wrong() -> None:
    row = {"kind": "head", "ours": "worked", "ours_note": "", "peer_note": ""}
    rows = [
        row | {"architecture": "bert", "peer": "worked"},
        row | {"architecture": "gpt2", "peer": "silent no-op", "peer_note": "0 of 2 axes got smaller"},
    ]
    text = page("coverage", rows)
    assert "| head | 2 worked | 1 worked, 1 silent no-op |" in text
    assert "| gpt2 | worked / silent no-op |" in text
    assert "| peer | silent no-op | 0 of 2 axes got smaller | 1 |" in text


def test_a_cut_shows_its_distance_to_the_peer_and_the_sum_counts_errors_of_measurement() -> None:
    dense = {"tool": "dense", "macs": 100, "accuracy": 0.9}
    cut = {"criterion": "l2", "allocation": "global", "faster": 2.0, "scope": "inside", "macs_ratio": 2.0}
    peer = cut | {"tool": "peer", "accuracy": 0.5, "accuracy_normed": 0.6}
    ours = cut | {
        "tool": "ours",
        "accuracy": 0.6,
        "accuracy_normed": 0.599,
        "ahead": [0.1, 0.01],
        "ahead_normed": [-0.001, 0.002],
    }
    text = page("resnet20", [dense, {"tool": "peer", "outcome": "error: IndexError"}, peer, ours])
    assert "| Secateur | inside | 2.000x | 60.00% | 59.90% | +10.00 ± 1.00 | -0.10 ± 0.20 |" in text
    assert "1 ahead by more, 1 level within two standard errors" in text
    assert "error: IndexError" in text


@pytest.mark.parametrize(("name", "best"), [("minilm", "**80.00%**"), ("stories", "**0.7000**")])
def test_the_best_criterion_of_a_column_stands_out(name: str, best: str) -> None:
    rows = [{"what": "dense", "value": 0.9}]
    rows += [{"what": "head", "share": 0.2, "criterion": c, "value": v} for c, v in (("l2", 0.7), ("taylor", 0.8))]
    rows += [{"what": "head", "share": 0.2, "criterion": "norm_scale", "refused": "no batch norm"}]
    rows += [{"what": "layer", "share": 0.5, "layers": 3, "criterion": "last", "value": 0.5}]
    text = page(name, rows)
    assert best in text
    assert text.count("**") == 4  # one of each table
    assert "norm_scale" not in text


def test_every_part_says_what_it_was_measured_with_and_a_skipped_one_why() -> None:
    text = report.markdown({"coverage": SAID | {"rows": []}, "minilm": SAID | {"rows": [], "skipped": "needs sst2/"}})
    assert text.count("a machine, 2 cores; torch 2.13.0.") == 2
    assert "Skipped: needs sst2/." in text
