"""Training for INT8: what it rounds is what the INT8 file rounds, gradients pass, and nothing of it is left behind."""

from pathlib import Path

import models
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from secateur import onnx_export, quantization, runtime
from secateur import program as programs
from secateur.data import Dataset, Split
from secateur.errors import InputError
from secateur.quantization import Scheme
from secateur.quantization_aware import insert, remove, round_activation, round_weight
from secateur.recovery import recover
from secateur.runtime import Target
from secateur.training import Settings

SCHEME = Scheme(signed=False, reduced=True)
LARGEST = SCHEME.largest
EXAMPLES = 32  # one batch of calibration: then both round by the same ranges


@pytest.mark.parametrize("name", ["residual", "encoder"])
def test_outputs_are_nearer_to_those_of_the_int8_file_than_exact_ones_are(name: str, tmp_path: Path) -> None:
    program, inputs = models.exported(name), models.MODELS[name][1](EXAMPLES)
    onnx_export.export(program, tmp_path / "dense.onnx")
    made = quantization.quantise(tmp_path / "dense.onnx", tmp_path / "int8.onnx", [inputs], Target(), scheme=SCHEME)
    integers = runtime.run(runtime.open_session(made.path, Target()), inputs)
    module = programs.graph_module(program)
    with torch.no_grad(), programs.evaluating(module):
        exact = module(torch.from_numpy(inputs)).numpy()
        insert(module, LARGEST)
        rounded = module(torch.from_numpy(inputs)).numpy()
    assert np.abs(rounded - integers).mean() < 0.75 * np.abs(exact - integers).mean()


def test_a_layer_gives_what_it_gives_in_integers(tmp_path: Path) -> None:
    inputs = models.vectors(EXAMPLES)
    program = models.export(nn.Linear(models.FEATURES, models.CLASSES), torch.from_numpy(inputs))
    onnx_export.export(program, tmp_path / "dense.onnx")
    made = quantization.quantise(tmp_path / "dense.onnx", tmp_path / "int8.onnx", [inputs], Target(), scheme=SCHEME)
    module = programs.graph_module(program)
    insert(module, LARGEST)
    with torch.no_grad():
        rounded = module(torch.from_numpy(inputs)).numpy()
    assert np.allclose(rounded, runtime.run(runtime.open_session(made.path, Target()), inputs), atol=1e-4)


def test_sums_of_convolutions_are_rounded_and_the_residual_stream_of_a_transformer_is_not() -> None:
    counts = {}
    for name in ("residual", "encoder"):
        module = programs.graph_module(models.exported(name))
        insert(module, LARGEST)
        sums = [node for node in module.graph.nodes if node.target is torch.ops.aten.add.Tensor]
        read = [node.target for one in sums for node in one.all_input_nodes]
        counts[name] = read.count(round_activation), len([n for n in module.graph.nodes if n.target is round_weight])
    assert counts["residual"] == (2, 4)
    assert counts["encoder"][0] == 0


def test_a_weight_takes_whole_multiples_of_its_channels_scale_and_keeps_its_gradient() -> None:
    weight = torch.randn(3, 4, 2, requires_grad=True)
    rounded = round_weight(weight, LARGEST)
    steps = rounded.detach() / weight.detach().abs().flatten(1).amax(1)[:, None, None] * LARGEST
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert steps.abs().flatten(1).amax(1).tolist() == pytest.approx([LARGEST] * 3)
    rounded.sum().backward()
    assert weight.grad is not None
    assert weight.grad.eq(1).all()


@pytest.mark.parametrize("low", [-1.0, 0.0, 0.5])
def test_an_activation_takes_256_values_and_zero_stays_zero(low: float) -> None:
    x = torch.cat([torch.linspace(low, 2, 5000), torch.zeros(1)])
    rounded = round_activation(x)
    assert len(rounded.unique()) <= 256
    assert rounded[-1] == 0
    assert (rounded - x).abs().max() <= (2 - min(low, 0)) / 255
    assert not round_activation(torch.zeros(4)).any()


def test_what_was_inserted_is_taken_out_again() -> None:
    module = programs.graph_module(models.exported("residual"))
    code = module.code
    insert(module, LARGEST)
    assert module.code != code
    remove(module)
    assert module.code == code


def test_a_program_without_layers_is_refused() -> None:
    module = programs.graph_module(models.export(nn.Softmax(1), torch.zeros(2, 3)))
    with pytest.raises(InputError, match=r"^program: expected a convolution or a linear layer, found none;"):
        insert(module, LARGEST)


@pytest.mark.parametrize("setting", [{"compile": True}, {"recompute": True}, {"hidden_states": 1.0}])
def test_settings_that_look_into_the_graph_do_not_go_with_it(setting: dict[str, bool | float]) -> None:
    program = models.exported("perceptron")
    split = Split(models.vectors(8), np.arange(8) % 3)
    with pytest.raises(InputError, match=f"^{next(iter(setting))}: expected none while training for INT8"):
        recover(program, program, Dataset(split, split, split), Settings(**setting), rounding=LARGEST)  # type: ignore[arg-type]


def test_trained_so_a_program_is_plain_again_and_better_in_few_bits(tmp_path: Path) -> None:
    """Of weights that are only -1, 0 or 1 a perceptron learns to make more."""
    program, few = models.exported("perceptron"), 1
    inputs = models.vectors(400)
    with torch.no_grad():
        labels = programs.graph_module(program)(torch.from_numpy(inputs)).argmax(1).numpy()
    data = Dataset(*(Split(inputs[part], labels[part]) for part in (slice(200), slice(200, 300), slice(300, None))))
    made = recover(
        program, program, data, Settings(epochs=6, batch=16, learning_rate=0.03, distillation=0.0), rounding=few
    )
    assert made.history[0].accuracy + 0.1 < made.best.accuracy
    assert made.kept == "trained"
    assert not any(
        node.target in (round_weight, round_activation) for node in programs.graph_module(made.program).graph.nodes
    )
    onnx_export.export(made.program, tmp_path / "plain.onnx")
    assert {node.op_type for node in onnx.load(tmp_path / "plain.onnx").graph.node} == {"Gemm", "Relu"}
    again = recover(
        program, program, data, Settings(epochs=6, batch=16, learning_rate=0.03, distillation=0.0), rounding=few
    )
    assert programs.digest(again.program) == programs.digest(made.program)
