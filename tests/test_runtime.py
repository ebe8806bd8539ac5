"""ONNX Runtime sessions on a target, and predictions that do not depend on how they are batched."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from secateur import InputError, onnx_export, runtime
from secateur.runtime import CPU, Target, open_session, pass_on, predict, run

AZURE = "AzureExecutionProvider"  # in the packages for Linux; it calls a service, and leaves every node to the CPU
needs_azure = pytest.mark.skipif(AZURE not in ort.get_available_providers(), reason=f"needs {AZURE}")
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


def test_what_a_run_caches_is_passed_on_to_the_next(tmp_path: Path) -> None:
    path = models.growing_onnx(tmp_path / "growing.onnx")
    inputs = [ort.OrtValue.ortvalue_from_numpy(np.array(values, np.float32)) for values in ([[1]], [[5, 2]])]
    session = open_session(path, Target())
    assert pass_on(session, inputs, 1) == [5 + 2 + 1]
    assert pass_on(session, inputs, 3) == [5 + 2 + 3]  # what was given is as it was


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


@pytest.fixture
def fast_provider(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that FastProvider is installed, and that making a session with it ends like this, try by try."""

    def pretend(*ends: Exception | list[str]) -> None:
        left = list(ends)

        def session(*args: object, **kwargs: object) -> SimpleNamespace:
            end = left.pop(0)
            if isinstance(end, Exception):
                raise end
            return SimpleNamespace(get_providers=lambda: end)

        monkeypatch.setattr(runtime.ort, "get_available_providers", lambda: ["FastProvider", CPU])
        monkeypatch.setattr(runtime.ort, "InferenceSession", session)

    return pretend


def test_a_provider_that_falls_back_to_another_is_refused(path: Path, fast_provider: Callable[..., None]) -> None:
    fast_provider(Exception("FAIL : fallback to CPU EP has been explicitly disabled by the user."), [CPU])
    with pytest.raises(InputError, match=r"^target.provider: FastProvider fell back to CPUExecutionProvider"):
        open_session(path, Target(provider="FastProvider"))


def test_a_provider_that_does_not_start_is_refused_with_its_reason(
    path: Path, fast_provider: Callable[..., None]
) -> None:
    fast_provider(RuntimeError("Please install\nTensorRT libraries"))
    with pytest.raises(InputError, match=r"FastProvider does not start here: Please install TensorRT libraries; mend"):
        open_session(path, Target(provider="FastProvider"))


@needs_azure
def test_a_provider_that_leaves_a_part_to_the_cpu_is_refused_with_what_it_left(path: Path) -> None:
    with pytest.raises(InputError, match=rf"expected {AZURE} to run the whole model, 1 of 1 nodes .* \(MatMul\)"):
        open_session(path, Target(AZURE))


def flattening(path: Path, output: str) -> Path:
    """A file that computes, from the sizes of x [batch, 2, 2], a shape, and gives x that shape."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"], "sizes"),
        helper.make_node("Gather", ["sizes", "first"], ["batch"], "batch"),
        helper.make_node("Concat", ["batch", "rest"], ["shape"], "shape", axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"], "flat"),
    ]
    graph = helper.make_graph(
        nodes if output == "y" else nodes[:-1],
        "flattening",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 2])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT if output == "y" else TensorProto.INT64, None)],
        [
            helper.make_tensor("first", TensorProto.INT64, [1], [0]),
            helper.make_tensor("rest", TensorProto.INT64, [1], [4]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@needs_azure
def test_nodes_that_compute_sizes_may_run_on_the_cpu_and_others_not(tmp_path: Path) -> None:
    target = Target(AZURE, optimisation="none")
    images = np.zeros((3, 2, 2), np.float32)
    assert run(open_session(flattening(tmp_path / "sizes.onnx", "shape"), target), images).tolist() == [3, 4]
    with pytest.raises(InputError, match=r"1 of 4 nodes fell back to the CPU \(Reshape\)"):
        open_session(flattening(tmp_path / "data.onnx", "y"), target)


@needs_azure
def test_a_file_that_is_no_model_is_not_blamed_on_the_provider(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(Exception, match="Protobuf parsing failed"):
        open_session(tmp_path / "bad.onnx", Target(AZURE))


@pytest.mark.parametrize(("level", "expected"), runtime.OPTIMISATIONS.items())
def test_the_graph_is_optimised_as_far_as_the_target_says(path: Path, level: str, expected: object) -> None:
    options = open_session(path, Target(optimisation=level)).get_session_options()
    assert options.graph_optimization_level == expected


def test_an_unknown_optimisation_is_refused_with_the_known_ones(path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^target.optimisation: expected one of all, extended, basic, none, got most$"
    ):
        open_session(path, Target(optimisation="most"))


def test_a_session_uses_the_threads_of_the_target(path: Path) -> None:
    options = open_session(path, Target(threads=2)).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
