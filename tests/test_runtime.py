"""ONNX Runtime sessions on a target, and predictions that do not depend on how they are batched."""

from pathlib import Path
from types import SimpleNamespace

import models
import numpy as np
import pytest
import torch
from torch import nn

from secateur import InputError, onnx_export, runtime
from secateur.runtime import Target, open_session, predict, run

WEIGHT = np.random.default_rng(0).normal(size=(models.FEATURES, models.CLASSES)).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.linear_onnx(tmp_path_factory.mktemp("runtime") / "linear.onnx", WEIGHT)


def test_a_run_gives_the_first_output_of_the_batch(path: Path) -> None:
    inputs = models.vectors(5)
    assert np.allclose(run(open_session(path, Target()), inputs), inputs @ WEIGHT, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 7, 256])
def test_outputs_come_in_the_order_of_the_inputs_however_they_are_batched(path: Path, batch: int) -> None:
    inputs = models.vectors(20)
    seen = list(predict(open_session(path, Target()), [inputs], batch))
    assert max(map(len, seen)) == min(batch, 20)
    assert np.allclose(np.concatenate(seen), inputs @ WEIGHT, atol=1e-6)


def test_several_inputs_are_given_in_the_programs_order(tmp_path: Path) -> None:
    class Less(nn.Module):
        def forward(self, zebra: torch.Tensor, ape: torch.Tensor) -> torch.Tensor:
            return zebra - ape

    more, less = models.vectors(6, 1), models.vectors(6, 2)
    program = models.export(Less(), torch.zeros(2, models.FEATURES), torch.zeros(2, models.FEATURES))
    onnx_export.export(program, tmp_path / "less.onnx")
    (seen,) = predict(open_session(tmp_path / "less.onnx", Target()), [more, less])
    assert np.array_equal(seen, more - less)


def test_a_provider_that_is_not_installed_is_refused_with_those_that_are(path: Path) -> None:
    with pytest.raises(InputError, match=r"^target.provider: expected one of .*CPUExecutionProvider.*, got NoProvider"):
        open_session(path, Target(provider="NoProvider"))


def test_a_provider_that_falls_back_to_another_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fallen = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: ["FastProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(runtime.ort, "InferenceSession", lambda *args, **kwargs: fallen)
    with pytest.raises(InputError, match=r"^target.provider: FastProvider fell back to CPUExecutionProvider"):
        open_session(path, Target(provider="FastProvider"))


def test_a_session_uses_the_threads_of_the_target(path: Path) -> None:
    options = open_session(path, Target(threads=2)).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
