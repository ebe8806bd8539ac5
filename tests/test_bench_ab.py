"""The benchmark of comparisons: what counts as right, and a page with every scenario."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks import machine
from benchmarks.ab import SCENARIOS, SIDE, SLOWER, about, as_run, chain, of_this_code, row, store, stored
from secateur.compare import Comparison
from secateur.measure import summarise
from secateur.noise import Noise


def seen(low: float, high: float) -> Comparison:
    latency = summarise(np.full(10, 0.001), 1)
    return Comparison(
        (low * high) ** 0.5, low, high, 0.95, 6, 60, latency, latency, Noise(0, 0, 0, None), 5.0, until=0.01
    )


@pytest.mark.parametrize(("name", "share"), [("A against A", 0.5), ("3% slower", 0.25)])
def test_right_is_an_interval_that_holds_one_or_lies_below_it(name: str, share: float) -> None:
    results = [seen(0.99, 1.01), seen(0.9, 1.1), seen(0.96, 0.98), seen(1.01, 1.02)]
    assert row(name, [as_run(one) for one in results])["share"] == share


def test_the_page_has_a_line_for_every_scenario_and_what_was_run_is_not_run_again(tmp_path: Path) -> None:
    runs = {seed: as_run(seen(1 / 1.01, 1.01)) for seed in range(3)}
    results = {name: about(name, jobs=1) | {"runs": runs} for name in list(SCENARIOS)[:2]}
    store(tmp_path, results)
    text = (tmp_path / "ab.md").read_text()
    for name in results:
        assert f"| {name} | 3 | interval holds 1.0 | 100.0% | 93% | 1.0000 | ±1.00%" in text
    assert stored(tmp_path) == results
    assert [of_this_code(stored(tmp_path).get(name)) for name in SCENARIOS] == [runs, runs, {}]


def test_runs_of_other_code_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said = about("A against A", jobs=1) | {"runs": {0: as_run(seen(0.99, 1.01))}}
    assert of_this_code(said) == said["runs"]
    monkeypatch.setattr(machine, "commit", lambda: "another")
    assert of_this_code(said) == {}


def test_the_slower_file_does_that_much_more(tmp_path: Path) -> None:
    files = [chain(tmp_path / f"{count}.onnx", count) for count in (1, 1 + SLOWER)]
    x = np.eye(1, SIDE, dtype=np.float32)
    outputs = [ort.InferenceSession(str(path)).run(None, {"x0": x})[0] for path in files]
    assert not np.allclose(*outputs)
    assert [len(onnx.load(path).graph.node) for path in files] == [1, 1 + SLOWER]
