"""ONNX files hold every weight and give the outputs of the program they came from, at any batch size."""

from pathlib import Path

import models
import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.export import Dim

from secateur import Ratio, onnx_export, prune, runtime
from secateur import program as programs
from secateur.onnx_export import OPSET, Parity, export, parity

TOLERANCE = 1e-5


class Sequences(nn.Module):
    """Sequences of vectors [N, 5, 4] to logits: linear layers over three dimensions, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x))).mean(1)


def test_outputs_agree_at_batches_of_one_and_of_many(residual_onnx: Path) -> None:
    seen = parity(models.exported("residual"), residual_onnx, [models.images(8)])
    assert set(seen.errors) == {1, 8}
    assert seen.worst == max(seen.errors.values()) < TOLERANCE


def test_the_file_has_a_dynamic_batch_the_pinned_opset_and_its_weights_inside(residual_onnx: Path) -> None:
    model = onnx.load(residual_onnx, load_external_data=False)
    assert {o.domain: o.version for o in model.opset_import}[""] == OPSET
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [p.name for p in residual_onnx.parent.iterdir()] == [residual_onnx.name]


def test_a_pruned_program_is_exported_for_inference_even_if_it_came_in_training_mode(tmp_path: Path) -> None:
    inputs = torch.from_numpy(models.images(2))
    module = programs.graph_module(prune(models.exported("residual"), goal=Ratio(0.5))[0])
    programs.set_training(module, True)
    pruned = torch.export.export(module, (inputs,), dynamic_shapes=({0: Dim.AUTO},))
    path = tmp_path / "pruned.onnx"
    export(pruned, path)
    assert parity(pruned, path, [models.images(8)]).worst < TOLERANCE
    graph = onnx.load(path).graph
    assert not {node.op_type for node in graph.node} & {"Dropout", "BatchNormalization"}
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    assert stored["outer.weight"] == (models.CHANNELS // 2, models.HIDDEN // 2, 3, 3)
    assert stored["head.weight"] == (models.CLASSES, models.CHANNELS // 2 * 4)


def test_weights_that_the_exporter_needs_no_place_for_are_not_missed(tmp_path: Path) -> None:
    """Of norms that were never trained it stores one, and a bias of zeros it leaves out."""
    norms = [nn.LayerNorm(models.FEATURES) for _ in range(3)]
    last = nn.Linear(models.FEATURES, models.CLASSES)
    nn.init.zeros_(last.bias)
    program = models.export(nn.Sequential(*norms, last), torch.zeros(2, models.FEATURES))
    export(program, tmp_path / "fresh.onnx")
    assert parity(program, tmp_path / "fresh.onnx", [models.vectors(8)]).worst < TOLERANCE


@pytest.mark.parametrize("name", ["head.weight", "inner.weight"])
def test_a_file_without_one_of_the_weights_is_refused(
    residual_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    model = onnx.load(residual_onnx)
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: _Written(model))
    with pytest.raises(RuntimeError, match=rf"does not hold the program's weights: {name} \(.*\(file: None\)"):
        export(models.exported("residual"), tmp_path / "lacking.onnx")


def test_a_file_with_a_weight_of_another_shape_is_refused(
    residual_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(residual_onnx)
    (head,) = [tensor for tensor in model.graph.initializer if tensor.name == "head.weight"]
    head.CopyFrom(onnx.numpy_helper.from_array(np.zeros((models.CLASSES, 4), np.float32), "head.weight"))
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: _Written(model))
    with pytest.raises(RuntimeError, match=r"head.weight \(3, 32\) \(file: \(3, 4\)\)"):
        export(models.exported("residual"), tmp_path / "other.onnx")


class _Written:
    """What the exporter returns, with a file of our own."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model

    def save(self, path: str) -> None:
        onnx.save(self.model, path)


def test_linear_layers_over_sequences_are_exported(tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(8, models.LENGTH, 4)).astype(np.float32)
    program = models.export(Sequences(), torch.from_numpy(inputs[:2]))
    export(program, tmp_path / "sequences.onnx")
    assert parity(program, tmp_path / "sequences.onnx", [inputs]).worst < TOLERANCE


def test_parity_sees_a_weight_that_differs(residual_onnx: Path) -> None:
    program = models.exported("residual")
    module = programs.graph_module(program)
    with torch.no_grad():
        module.get_parameter("head.bias")[0] += 0.1
    other = programs.reexport(module, program)
    assert parity(other, residual_onnx, [models.images(8)]).worst > 1e-3


def test_parity_is_relative_to_the_largest_output(residual_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = models.images(8)
    with torch.no_grad():
        largest = float(models.module("residual")(torch.from_numpy(inputs)).abs().max())
    off = 0.01 * largest
    original = runtime.run
    monkeypatch.setattr("secateur.runtime.run", lambda *request: original(*request) + off)
    assert parity(models.exported("residual"), residual_onnx, [inputs], batches=(8,)).worst == pytest.approx(
        0.01, rel=0.01
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_single_output_that_is_not_a_number_is_never_parity(
    residual_onnx: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    original = runtime.run

    def broken(session: object, inputs: np.ndarray) -> np.ndarray:
        outputs = original(session, inputs)
        outputs[-1, 0] = value
        return outputs

    monkeypatch.setattr("secateur.runtime.run", broken)
    assert not parity(models.exported("residual"), residual_onnx, [models.images(8)]).worst <= 1e30


def test_one_bad_batch_size_is_the_worst_of_all() -> None:
    assert Parity({1: 1e-7, 8: 1e-3}).worst == 1e-3
    assert np.isnan(Parity({1: 1e-7, 8: float("nan")}).worst)


def test_exporting_does_not_modify_the_program(tmp_path: Path) -> None:
    program = models.exported("perceptron")
    before = programs.digest(program)
    export(program, tmp_path / "perceptron.onnx")
    assert programs.digest(program) == before


def test_the_exporter_names_its_version_and_opset() -> None:
    for part in (torch.__version__, f"opset {OPSET}"):
        assert part in onnx_export.EXPORTER
