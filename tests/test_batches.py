"""Two files at several batch sizes: each size has its own ratio, and memory that grows with it."""

from pathlib import Path

import models
import numpy as np
import pytest

from secateur.batches import at_batches
from secateur.errors import InputError
from secateur.runtime import Target

SIDE = 256


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Dense and a quarter of it."""
    folder = tmp_path_factory.mktemp("linear")
    return [models.linear_onnx(folder / f"{columns}.onnx", np.ones((SIDE, columns))) for columns in (SIDE, SIDE // 4)]


def test_every_size_is_measured_and_memory_grows_with_it(files: list[Path]) -> None:
    few, many = 1, 32_768  # outputs of 1 KiB an example
    seen = at_batches(*files, Target(), [few, many], [np.ones((4, SIDE), np.float32)], budget_s=0.1)
    assert [at.batch for at in seen] == [few, many]
    assert all(at.compared.low <= at.compared.speedup <= at.compared.high for at in seen)
    assert seen[1].first_memory > seen[0].first_memory + many * SIDE * 4 / 2
    assert seen[1].first_memory > seen[1].second_memory
    assert "peak memory" in str(seen[1])


@pytest.mark.parametrize("sizes", [[], [0], [1, 1]])
def test_sizes_that_cannot_be_are_refused(files: list[Path], sizes: list[int]) -> None:
    with pytest.raises(InputError, match=r"^batches: expected different numbers of examples, each at least 1"):
        at_batches(*files, Target(), sizes, [np.ones((4, SIDE), np.float32)])


def test_a_size_that_fits_no_memory_is_refused_and_says_so(files: list[Path]) -> None:
    with pytest.raises(InputError, match="batch"):
        at_batches(*files, Target(), [2**40], [np.ones((1, SIDE), np.float32)])
