"""The threads that answer LoadGen: what waits is computed together, and every sample gets its own row."""

import queue
import threading
from pathlib import Path

import models
import numpy as np
import pytest

from secateur.load.process import Server, compute, settings_of, warm_up
from secateur.runtime import Target, open_session

EXAMPLES = models.vectors(5)
WEIGHT = np.random.default_rng(0).normal(size=(models.FEATURES, models.CLASSES)).astype(np.float32)
ORDER = {"scenario": "server", "mode": "performance", "seconds": 2.0, "queries": 1000, "seed": 1, "parallel": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.linear_onnx(tmp_path_factory.mktemp("process") / "small.onnx", WEIGHT)


@pytest.mark.parametrize(("gathers", "together"), [(True, [[7, 8], [9]]), (False, [[7], [8], [9]])])
def test_samples_that_wait_are_computed_together_up_to_the_batch(
    small: Path, gathers: bool, together: list[list[int]]
) -> None:
    answers: queue.SimpleQueue[tuple[list[int], np.ndarray]] = queue.SimpleQueue()
    server = Server([EXAMPLES], 2, gathers, lambda numbers, rows: answers.put((numbers, rows)))
    for number, index in ((7, 4), (8, 0), (9, 2)):
        server.waiting.put(([number], [index]))
    threading.Thread(target=server.serve, args=(open_session(small, Target()),), daemon=True).start()
    seen = [answers.get(timeout=30) for _ in together]
    assert [numbers for numbers, _ in seen] == together
    np.testing.assert_allclose(np.concatenate([rows for _, rows in seen]), EXAMPLES[[4, 0, 2]] @ WEIGHT, rtol=1e-5)
    assert server.problems == []


def test_a_sample_that_cannot_be_computed_is_answered_and_its_problem_kept(small: Path) -> None:
    answers: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    server = Server([EXAMPLES], 1, False, lambda numbers, rows: answers.put(numbers))
    server.waiting.put(([1], [len(EXAMPLES)]))
    threading.Thread(target=server.serve, args=(open_session(small, Target()),), daemon=True).start()
    assert answers.get(timeout=30) == [1]
    assert "out of bounds" in server.problems[0]


def test_a_request_takes_the_examples_that_it_names(small: Path) -> None:
    session = open_session(small, Target())
    np.testing.assert_allclose(compute(session, [EXAMPLES], [3, 3, 1], 4), EXAMPLES[[3, 3, 1]] @ WEIGHT, rtol=1e-5)
    assert warm_up(session, [EXAMPLES], 4, 4) > 0


def test_a_run_is_given_up_only_when_more_wait_than_may_be_late() -> None:
    """20 ms are 20 requests of 1 ms; twice as many, and one in a hundred of the 1000, may wait on a machine that keeps up."""
    order = ORDER | {"p99_ms": 20.0, "rate": 400.0, "target": {"batch": 1}}
    assert settings_of(order, 1e-3, 1).server_max_async_queries == pytest.approx(40 + 10 + 1, abs=1)
    assert settings_of(order | {"rate": 5000.0}, 1e-3, 1).server_max_async_queries == pytest.approx(40 + 100 + 1, abs=1)
