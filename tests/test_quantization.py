"""INT8 files: what runs in integers, what stays in floating point, how weights and ranges are rounded, what is refused."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from services import write_onnx
from torch import nn

from secateur import compare, onnx_export, requests, runtime
from secateur.errors import InputError
from secateur.machine import Machine
from secateur.quantization import METHODS, Quantised, Scheme, quantise, scheme_of
from secateur.runtime import Target

X86 = Scheme(signed=False, reduced=True)
EXAMPLES = 100
BATCH, WIDTH = 4, 5
NEAR = 0.05  # of the largest output: what 8 bits may cost a network of three layers


def ran(path: Path, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime executes, after all of its fusions."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=[runtime.CPU])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def answers(path: Path, *inputs: np.ndarray) -> np.ndarray:
    """What a file answers."""
    return runtime.run(runtime.open_session(path, Target()), *inputs)


def integer_weights(path: Path) -> list[np.ndarray]:
    """The 8-bit tensors of a file with more than one dimension."""
    stored = map(numpy_helper.to_array, onnx.load(path).graph.initializer)
    return [array for array in stored if array.dtype == np.int8 and array.ndim > 1]


def multiplies(path: Path, weight: np.ndarray, *, batch: int | None = None, opset: int = 20) -> Path:
    """An ONNX file of one product with a weight [in, out], its batch fixed or dynamic."""
    sizes = [batch or "batch", weight.shape[0]], [batch or "batch", weight.shape[1]]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip("xy", sizes, strict=True)]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def vectors(count: int, width: int = WIDTH) -> np.ndarray:
    """Normal numbers [count, width]."""
    return np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)


@pytest.fixture(scope="module")
def encoder_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformer layer as ONNX."""
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    onnx_export.export(models.exported("encoder"), path)
    return path


def of_residual(residual_onnx: Path, folder: Path, method: str = "minmax", scheme: Scheme = X86) -> Quantised:
    """The residual network in INT8."""
    return quantise(
        residual_onnx, folder / "int8.onnx", [models.images(EXAMPLES)], Target(), method=method, scheme=scheme
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_convolutional_network_runs_in_integers_from_end_to_end_and_answers_alike(
    residual_onnx: Path, tmp_path: Path, method: str
) -> None:
    made = of_residual(residual_onnx, tmp_path, method)
    assert made.nodes == {"Add": 1, "AveragePool": 1, "Conv": 3, "Gemm": 1, "Reshape": 1}
    executed = ran(made.path, tmp_path)
    assert executed.items() >= {"QLinearConv": 3, "QLinearAdd": 1, "QLinearAveragePool": 1, "QGemm": 1}.items()
    assert not {"Conv", "Add", "AveragePool", "Gemm", "Relu", "DequantizeLinear"} & executed.keys()
    exact, rounded = (answers(path, models.images(8, seed=1)) for path in (residual_onnx, made.path))
    assert 0 < np.abs(rounded - exact).max() < NEAR * np.abs(exact).max()


def test_in_a_transformer_only_products_with_weights_are_rounded(encoder_onnx: Path, tmp_path: Path) -> None:
    made = quantise(encoder_onnx, tmp_path / "int8.onnx", [models.tokens(EXAMPLES)], Target(), scheme=X86)
    assert made.nodes == {"Gemm": 1, "MatMul": 6}
    executed = ran(made.path, tmp_path)
    assert executed["MatMulIntegerToFloat"] == 6
    assert executed["QGemm"] == 1
    assert executed["Softmax"] == executed["LayerNormalization"] == 1
    assert executed["DequantizeLinear"] == 0, "what computes in floats reads integers"
    exact, rounded = (answers(path, models.tokens(8, seed=1)) for path in (encoder_onnx, made.path))
    assert np.abs(rounded - exact).max() < NEAR * np.abs(exact).max()


def test_embeddings_that_are_tied_to_a_layer_are_still_looked_up_as_floats(tmp_path: Path) -> None:
    onnx_export.export(models.exported("tied"), tmp_path / "tied.onnx")
    made = quantise(tmp_path / "tied.onnx", tmp_path / "int8.onnx", [models.tokens(EXAMPLES)], Target(), scheme=X86)
    executed = ran(made.path, tmp_path)
    assert executed["MatMulIntegerToFloat"] == 1
    assert executed["DequantizeLinear"] == 0


def test_each_output_channel_has_a_scale_of_its_own_and_no_zero_point(residual_onnx: Path, tmp_path: Path) -> None:
    graph = onnx.load(of_residual(residual_onnx, tmp_path).path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [
        [stored[name] for name in node.input]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and stored.get(node.input[0], np.zeros(1)).ndim > 1
    ]
    assert len(weights) == 4
    for weight, scale, zero in weights:
        assert scale.shape == zero.shape == weight.shape[:1]
        assert not zero.any()


@pytest.mark.parametrize("scheme", [X86, Scheme(False, False), Scheme(True, False)], ids=str)
def test_weights_keep_to_the_bits_of_the_scheme_and_use_them(
    residual_onnx: Path, tmp_path: Path, scheme: Scheme
) -> None:
    made = of_residual(residual_onnx, tmp_path, scheme=scheme)
    largest = [int(np.abs(weight.astype(int)).max()) for weight in integer_weights(made.path)]
    assert len(largest) == 4
    assert set(largest) == {scheme.largest} <= {64, 127}
    quantises = next(node for node in onnx.load(made.path).graph.node if node.op_type == "QuantizeLinear")
    (zero,) = (tensor for tensor in onnx.load(made.path).graph.initializer if tensor.name == quantises.input[2])
    assert zero.data_type == (TensorProto.INT8 if scheme.signed else TensorProto.UINT8)


@pytest.mark.parametrize(
    ("sets", "scheme"),
    [
        (("AVX2", "FMA"), Scheme(signed=False, reduced=True)),
        (("AVX2", "AVX-VNNI"), Scheme(signed=False, reduced=False)),
        (("AVX-512F", "AVX-512 VNNI"), Scheme(signed=False, reduced=False)),
        (("NEON",), Scheme(signed=True, reduced=False)),
        (("NEON", "dotprod"), Scheme(signed=True, reduced=False)),
    ],
)
def test_the_scheme_follows_from_the_instruction_sets(sets: tuple[str, ...], scheme: Scheme) -> None:
    assert scheme_of(Machine("", 1, sets, None)) == scheme


def test_the_command_in_another_process_writes_the_same_bytes(residual_onnx: Path, tmp_path: Path) -> None:
    examples, output = tmp_path / "examples.npz", tmp_path / "other.onnx"
    np.savez(examples, inputs=models.images(EXAMPLES))
    command = [sys.executable, "-m", "tasks.cli.app", "quantize", residual_onnx, output, "--inputs", examples]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": "1"})
    assert done.returncode == 0, done.stderr
    made = quantise(residual_onnx, tmp_path / "here.onnx", [models.images(EXAMPLES)], Target())
    assert done.stdout == f"{made}\nWritten: {output}\n"
    assert output.read_bytes() == made.path.read_bytes()


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_ranges_are_of_all_batches(
    residual_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    made = of_residual(residual_onnx, tmp_path, method).path.read_bytes()
    calm = quantise(residual_onnx, tmp_path / "calm.onnx", [models.images(32)], Target(), method=method, scheme=X86)
    assert made != calm.path.read_bytes(), "the first batch alone counts"
    if method == "minmax":
        monkeypatch.setattr(requests, "BATCH", EXAMPLES)
        assert made == of_residual(residual_onnx, tmp_path, method).path.read_bytes()


def test_a_file_of_a_fixed_batch_is_calibrated_with_whole_batches(tmp_path: Path) -> None:
    model = multiplies(tmp_path / "fixed.onnx", vectors(WIDTH, 3), batch=BATCH)
    made = quantise(model, tmp_path / "int8.onnx", [vectors(2 * BATCH + 1)], Target(batch=BATCH), scheme=X86)
    assert made.examples == 2 * BATCH
    with pytest.raises(InputError, match=f"^inputs: expected at least {BATCH} examples, got 3"):
        quantise(model, tmp_path / "int8.onnx", [vectors(3)], Target(), scheme=X86)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "inputs: expected examples of x, as many of each, got none"),
        ([vectors(3), vectors(3)], "inputs: expected examples of x, as many of each, got 3, 3"),
        (
            [vectors(3, WIDTH + 1)],
            "model: expected CPUExecutionProvider to run model.onnx on the examples, it does not",
        ),
        ([vectors(0)], "inputs: expected at least 1 examples, got 0"),
        ([vectors(3) + np.float32("inf")], "inputs: expected finite examples, got NaN or infinity in x"),
    ],
)
def test_examples_that_do_not_fit_are_refused(tmp_path: Path, columns: list[np.ndarray], message: str) -> None:
    model = multiplies(tmp_path / "model.onnx", vectors(WIDTH, 3))
    with pytest.raises(InputError) as caught:
        quantise(model, tmp_path / "int8.onnx", columns, Target(), scheme=X86)
    assert str(caught.value).startswith(message)


def test_nothing_to_quantise_is_an_error_that_names_what_there_is(tmp_path: Path) -> None:
    model = write_onnx(tmp_path / "adds.onnx", 1.0)
    with pytest.raises(
        InputError, match=r"expected an operator of Conv, Gemm, MatMul with a constant weight .*, found Add;"
    ):
        quantise(model, tmp_path / "int8.onnx", [vectors(3, 2)], Target(), scheme=X86)
    assert not (tmp_path / "int8.onnx").exists()


def test_a_model_whose_answers_are_not_finite_is_refused(tmp_path: Path) -> None:
    weight = vectors(WIDTH, 3)
    weight[0, 0] = np.nan
    model = multiplies(tmp_path / "model.onnx", weight)
    with pytest.raises(InputError, match=r"^model: expected finite outputs of model\.onnx, got NaN or infinity"):
        quantise(model, tmp_path / "int8.onnx", [vectors(3)], Target(), scheme=X86)
    assert not (tmp_path / "int8.onnx").exists()


def test_a_file_of_an_opset_without_channels_is_refused(tmp_path: Path) -> None:
    model = multiplies(tmp_path / "old.onnx", vectors(WIDTH, 3), opset=12)
    with pytest.raises(InputError, match=r"^model: expected opset 13 or later in old\.onnx, got 12; export it again"):
        quantise(model, tmp_path / "int8.onnx", [vectors(3)], Target(), scheme=X86)


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    model = multiplies(tmp_path / "model.onnx", vectors(WIDTH, 3))
    with pytest.raises(InputError, match=r"^method: expected one of minmax, entropy, percentile, got 'mean'$"):
        quantise(model, tmp_path / "int8.onnx", [vectors(3)], Target(), method="mean")


@pytest.mark.alone
@pytest.mark.slow
def test_wide_convolutions_are_faster_in_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()) for _ in range(4)]
    images = np.random.default_rng(0).normal(size=(32, 64, 32, 32)).astype(np.float32)
    dense = tmp_path / "dense.onnx"
    onnx_export.export(models.export(nn.Sequential(*layers), torch.from_numpy(images[:2])), dense)
    made = quantise(dense, tmp_path / "int8.onnx", [images], Target())
    assert compare.compare(dense, made.path, Target(), [images], until=0.1, budget_s=60).low > 1
