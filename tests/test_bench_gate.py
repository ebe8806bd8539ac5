"""The benchmark of the gate: what it simulates lies where it says, and a page with every rule."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gate
from secateur.gate.verdict import Rule

MANY = 200_000


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in gate.CASES
        if name not in ("metric", "metric by document", "slices", "speedup", "p99_ms, memory_mb")
    ],
)
def test_effect_one_lies_at_the_limit(name: str) -> None:
    rule: Rule = gate.CASES[name].judge(1.0, MANY, np.random.default_rng(0))
    limit = rule.limit if rule.name != "confidence_shift" else -(rule.limit or 0)
    assert rule.estimate == pytest.approx(limit, abs=0.0025)


def test_the_page_names_every_rule_and_whatever_passes_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {name: gate.Case(gate.CASES[name].judge, (300, 600), (8, 8)) for name in ("accuracy", "brier")}
    cases |= {name: gate.Case(gate.CASES[name].judge, (6,), (8,), of="rounds") for name in ("speedup",)}
    monkeypatch.setattr(gate, "CASES", cases | {"metric": gate.Case(gate.accuracy, (300,), (8,))})
    monkeypatch.setattr(gate, "ON_CURVE", 4)
    rows = [row for name in gate.CASES for row in gate.simulated(name, 0)]
    late = next(row for row in rows if (row["rule"], row["effect"]) == ("brier", 1.0))
    late["share"] = 0.5
    gate.store(tmp_path, rows, gate.looked(0, series=2, looks=3, free=1), 0, 1.0)
    gate.draw(tmp_path / "gate.png", rows)
    text = (tmp_path / "gate.md").read_text()
    assert "exceeded by brier" in text
    for name in gate.CASES:
        assert f"| {name} |" in text
    assert len(json.loads((tmp_path / "gate.json").read_text())["rows"]) == len(rows)
    assert (tmp_path / "gate.png").stat().st_size > 1000
