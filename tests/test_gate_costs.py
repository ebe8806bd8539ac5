"""What a file costs by itself: an interval over fresh processes."""

from pathlib import Path

import numpy as np
import pytest
from services import write_onnx

from secateur import compare
from secateur.gate import costs
from secateur.load import rate
from secateur.load.scenario import Arrivals
from secateur.runtime import Target

ROWS = [np.ones((4, 2), np.float32)]


def test_the_tail_of_latency_and_the_memory_of_a_file_have_intervals_over_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "fewest_rounds", lambda confidence: 2)  # processes start in half a second each
    path = write_onnx(tmp_path / "adds.onnx", 1.0)
    for estimate, low, high in costs.costs(path, Target(), ROWS, 0.5):
        assert 0 < low <= estimate <= high


@pytest.mark.alone
@pytest.mark.slow
def test_loadgen_is_asked_at_one_rate_as_often_as_it_takes(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "adds.onnx", 1.0)
    easy, hard = (
        rate.runs_at(path, Target(), ROWS, Arrivals(500.0, limit), count=count, seconds=1.0)
        for limit, count in ((200.0, 2), (0.001, 1))
    )
    assert [run.valid for run in (*easy, *hard)] == [True, True, False]
