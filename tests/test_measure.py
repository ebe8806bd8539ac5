"""Latency and memory of a real file in a process of its own, and percentiles only where samples allow them."""

from pathlib import Path

import models
import numpy as np
import pytest

from secateur.errors import InputError
from secateur.measure import FEWEST, MOST, latency, peak_memory, request_of, sizes, summarise
from secateur.runtime import Target

INPUTS = models.vectors(8)
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measure") / "small.onnx"
    return models.linear_onnx(path, np.ones((models.FEATURES, models.CLASSES)))


def test_percentiles_and_throughput_are_those_of_the_samples() -> None:
    seen = summarise(np.arange(1, 2001) / 1e3, batch=4)
    assert (seen.p50_ms, seen.p90_ms, seen.p99_ms) == pytest.approx((1000.5, 1800.1, 1980.01))
    assert seen.throughput == pytest.approx(4 / 1.0005)
    assert seen.samples == 2000


@pytest.mark.parametrize(("samples", "ends"), [(15, []), (100, [10, 90]), (1000, [1, 99])])
def test_a_distribution_is_drawn_as_far_as_ten_samples_lie_beyond_it(samples: int, ends: list[int]) -> None:
    curve = summarise(np.arange(1, samples + 1) / 1e3, batch=1).curve
    assert [percent for percent, _ in curve][:: max(len(curve) - 1, 1)] == ends
    assert all(ms == pytest.approx(percent * samples / 100, rel=0.1, abs=1) for percent, ms in curve)


@pytest.mark.parametrize(("samples", "reported"), [(30, False), (999, False), (1000, True)])
def test_p99_is_given_only_when_ten_samples_lie_beyond_it(samples: int, reported: bool) -> None:
    assert (summarise(np.full(samples, 0.001), batch=1).p99_ms is not None) == reported


@pytest.mark.alone
def test_a_fast_file_is_asked_often_enough_for_p99(small: Path) -> None:
    seen = latency(small, Target(), [INPUTS], budget_s=0.5)
    assert seen.samples == MOST
    assert seen.p99_ms is not None
    assert 0 < seen.p50_ms <= seen.p90_ms <= seen.p99_ms


@pytest.mark.alone
def test_a_file_that_is_slow_for_its_budget_is_asked_often_enough_for_a_median(small: Path) -> None:
    assert latency(small, Target(), [INPUTS], budget_s=1e-6).samples == FEWEST


@pytest.mark.parametrize("batch", [1, 8, 20])
def test_a_request_has_the_targets_batch_even_where_there_are_fewer_examples(batch: int) -> None:
    (column,) = request_of([INPUTS], Target(batch=batch))
    assert len(column) == batch
    assert np.array_equal(column[0], INPUTS[0])


def test_a_request_is_cut_to_the_length_of_the_target() -> None:
    tokens, mask = models.tokens(3), np.ones((3, models.LENGTH), np.int64)
    request = request_of([tokens, mask], Target(batch=2, length=3))
    assert [column.shape for column in request] == [(2, 3), (2, 3)]
    assert np.array_equal(request[0], tokens[:2, :3])


@pytest.mark.parametrize("column", [models.tokens(3), np.zeros(3)], ids=["short", "no-positions"])
def test_examples_shorter_than_the_length_of_the_target_are_refused(column: np.ndarray) -> None:
    with pytest.raises(
        InputError, match=rf"^target.length: expected at most the \d positions .*, got {models.LENGTH + 1}"
    ):
        request_of([models.vectors(3).repeat(3, 1), column], Target(length=models.LENGTH + 1))


def test_peak_memory_grows_with_the_weights(small: Path, tmp_path: Path) -> None:
    side = 2048  # 16 MiB of weights
    large = models.linear_onnx(tmp_path / "large.onnx", np.ones((side, side)))
    few = peak_memory(small, Target(), [np.zeros((1, models.FEATURES), np.float32)])
    many = peak_memory(large, Target(), [np.zeros((1, side), np.float32)])
    assert few > 0
    assert many - few > 10 * MEGABYTE


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model nowhere.onnx: .*(exist|File)"):
        peak_memory(tmp_path / "nowhere.onnx", Target(), [np.zeros((1, 4), np.float32)])


def test_sizes_are_of_the_file_of_its_weights_and_of_what_gzip_leaves(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(200, 300)).astype(np.float32)
    dense = sizes(models.linear_onnx(tmp_path / "dense.onnx", weight))
    weight[:, 30:] = 0
    sparse = sizes(models.linear_onnx(tmp_path / "sparse.onnx", weight))
    assert dense.weights == sparse.weights == 200 * 300 * 4
    assert dense.weights < dense.file == sparse.file < dense.weights + 1000
    assert dense.gzip > 0.8 * dense.file
    assert sparse.gzip < 0.15 * sparse.file
