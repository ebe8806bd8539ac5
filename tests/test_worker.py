"""A file in a process of its own: it answers in blocks, and what cannot be measured is refused in a sentence."""

import os
import signal
from pathlib import Path

import models
import numpy as np
import pytest

from secateur.errors import InputError
from secateur.runtime import Target
from secateur.worker import cores_of, working

INPUTS = [models.vectors(2)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worker") / "small.onnx"
    return models.linear_onnx(path, np.ones((models.FEATURES, models.CLASSES)))


def test_a_block_has_the_seconds_of_its_requests_and_what_went_on_beside_them(small: Path) -> None:
    with working([small], Target(), INPUTS) as (worker,):
        block = worker.block(7, lead=3)
    assert block.seconds.shape == (7,)
    assert (block.seconds > 0).all()
    assert block.counters.wall >= block.seconds.sum()
    assert block.peak_bytes > 0


def test_a_request_may_be_many_runs_that_pass_on_what_they_cached(tmp_path: Path) -> None:
    path = models.growing_onnx(tmp_path / "growing.onnx")
    once, often = np.ones((1, 1), np.float32), np.ones((1, 400_000), np.float32)
    seconds = {}
    for times in (1, 8):
        with working([path], Target(), [once, often], times) as (worker,):
            seconds[times] = np.median(worker.block(9).seconds)
    assert seconds[8] > 3 * seconds[1]


def test_the_process_is_pinned_to_one_core_for_each_thread(small: Path) -> None:
    target = Target(threads=1)
    with working([small], target, INPUTS) as (worker,):
        assert sorted(os.sched_getaffinity(worker.process.pid)) == cores_of(target)
    assert len(cores_of(target)) == 1


def test_the_process_ends_with_its_context(small: Path) -> None:
    with working([small], Target(), INPUTS) as (worker,):
        assert worker.process.poll() is None
    assert worker.process.poll() == 0


def test_a_process_that_is_killed_is_said(small: Path) -> None:
    with working([small], Target(), INPUTS) as (worker,):
        worker.process.send_signal(signal.SIGKILL)
        with pytest.raises(InputError, match=r"^target: expected the file .* to fit .* status -9.* smaller batch"):
            worker.block(1)


def test_a_file_whose_outputs_are_not_finite_is_refused(tmp_path: Path) -> None:
    path = models.linear_onnx(tmp_path / "broken.onnx", np.full((models.FEATURES, models.CLASSES), np.nan))
    with (
        pytest.raises(InputError, match=r"^model broken.onnx: expected finite outputs, got NaN"),
        working([path], Target(), INPUTS),
    ):
        pass


def test_a_provider_that_is_not_here_is_refused_as_elsewhere(small: Path) -> None:
    target = Target(provider="NoProvider")
    with pytest.raises(InputError, match=r"^target.provider: expected one of"), working([small], target, INPUTS):
        pass
