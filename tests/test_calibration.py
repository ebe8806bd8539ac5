"""What calibration keeps of a network is what hooks and autograd show of the eager one; the module stays as it was."""

import copy

import models
import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur import InputError
from secateur import program as programs
from secateur.axes.infer import infer
from secateur.calibration import (
    ACTIVATIONS,
    GRADIENTS,
    MOVEMENT,
    Batch,
    check_batches,
    classification_loss,
    collect,
    consumers,
    values_of,
)

EVERYTHING = frozenset({ACTIVATIONS, GRADIENTS, MOVEMENT})


def batches(count: int = 6) -> list[Batch]:
    x, y = torch.from_numpy(models.images(count)), torch.arange(count) % models.CLASSES
    return [(x[:2], y[:2]), (x[2:], y[2:])]


def test_moments_are_those_of_the_inputs_of_every_contraction() -> None:
    made, seen = models.module("residual"), {}
    layers = ("stem", "inner", "outer", "head")
    hooks = [
        made.get_submodule(name).register_forward_hook(lambda _, args, __, name=name: seen.__setitem__(name, args[0]))
        for name in layers
    ]
    made(torch.cat([batch[0] for batch in batches()]))
    for hook in hooks:
        hook.remove()
    module = programs.graph_module(models.exported("residual"))
    moments = {m.weight: m for m in collect(module, infer(module), batches(), frozenset({ACTIVATIONS})).moments}
    assert set(moments) == {f"{name}.weight" for name in layers}
    for name in layers:
        x, m = seen[name].detach().double(), moments[f"{name}.weight"]
        x = x.movedim(1, -1).flatten(0, -2)
        assert m.count == len(x)
        for kept, expected in (
            (m.total, x.sum(0)),
            (m.absolute, x.abs().sum(0)),
            (m.zeros, (x == 0).sum(0)),
            (m.squares, x.square().sum(0)),
        ):
            assert torch.allclose(kept.double(), expected.double(), rtol=1e-4, atol=1e-5)
        if name == "head":
            assert m.gram is not None
            assert torch.allclose(m.gram[0], x.T @ x, rtol=1e-4)
        else:
            assert m.gram is None


def test_gradients_are_means_over_samples_and_squares_are_squared_before_the_mean() -> None:
    made = copy.deepcopy(models.module("residual"))
    each = []
    for x, y in batches():
        for i in range(len(x)):
            made.zero_grad()
            functional.cross_entropy(made(x[i : i + 1]), y[i : i + 1]).backward()
            each.append({name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None})
    module = programs.graph_module(models.exported("residual"))
    statistics = collect(module, infer(module), batches(), frozenset({GRADIENTS}))
    assert set(statistics.gradients) == set(each[0])
    for name in each[0]:
        stacked = torch.stack([gradients[name] for gradients in each])
        assert torch.allclose(statistics.gradients[name], stacked.mean(0), atol=1e-5)
        assert torch.allclose(statistics.squared_gradients[name], stacked.square().mean(0), atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_module_is_put_back_as_it_was(training: bool) -> None:
    module = programs.graph_module(models.exported("residual"))
    structure = infer(module)
    programs.set_training(module, training)
    module.get_parameter("stem.weight").requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    code = module.code
    collect(module, structure, batches(), EVERYTHING, learning_rate=0.1)
    assert module.code == code
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    assert frozen == ["stem.weight"]
    assert all(p.grad is None for p in module.parameters())


def test_only_what_is_needed_is_kept() -> None:
    module = programs.graph_module(models.exported("residual"))
    structure = infer(module)
    seen = collect(module, structure, batches(), frozenset({MOVEMENT}))
    assert seen.movement
    assert not (seen.moments)
    assert not (seen.gradients)
    assert not (seen.squared_gradients)
    assert not (seen.contributions)


def test_parameters_that_training_had_frozen_have_gradients_too() -> None:
    made = copy.deepcopy(models.module("perceptron")).requires_grad_(False)
    x = torch.from_numpy(models.vectors(4))
    module = programs.graph_module(models.export(made, x))
    statistics = collect(module, infer(module), [(x, torch.zeros(4, dtype=torch.long))], EVERYTHING)
    assert all(gradient.any() for gradient in statistics.gradients.values())
    assert set(statistics.movement) == set(statistics.gradients) == set(made.state_dict())


class Stack(nn.Module):
    """Contractions that are no layer of their own: a vector, a stack of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.vector, self.stack = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(2, 4, 3))
        self.matrix = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.matrix).sum(-1) + x @ self.vector + (x @ self.stack).sum((0, 2))


def test_only_matrices_and_kernels_are_watched() -> None:
    module = programs.graph_module(models.export(Stack(), torch.zeros(2, 4)))
    assert [name for _, name in consumers(module)] == ["matrix"]


def test_values_of_nodes_are_what_the_network_computes() -> None:
    module = programs.graph_module(models.exported("perceptron"))
    (relu,) = [node for node in module.graph.nodes if node.target is torch.ops.aten.relu.default]
    x = torch.from_numpy(models.vectors(3))
    seen = values_of(module, {relu}, (x,))
    assert torch.allclose(seen[relu], torch.relu(models.module("perceptron").first(x)))


def test_the_classification_loss_takes_one_label_per_example_or_per_token_and_ignores_minus_100() -> None:
    logits = torch.randn(2, 5, 7)
    labels = torch.randint(0, 7, (2, 5))
    labels[0, :3] = -100
    assert torch.allclose(
        classification_loss((logits, None), labels), functional.cross_entropy(logits.transpose(1, 2), labels)
    )
    assert torch.allclose(
        classification_loss({"logits": logits[:, 0]}, labels[:, 4]),
        functional.cross_entropy(logits[:, 0], labels[:, 4]),
    )


SPECS = programs.input_specs(models.exported("perceptron"))
X, Y = torch.zeros(3, models.FEATURES), torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"expected at least one batch of \(inputs..., target\), got none"),
        ([(X, Y), (X,)], r"expected 1 inputs and a target in each batch, all of them tensors, batch 1 has Tensor$"),
        ([(X, Y, Y)], r"expected 1 inputs and a target in each batch.* batch 0 has Tensor, Tensor, Tensor"),
        ([()], r"batch 0 has nothing"),
        ([(X.numpy(), Y)], r"all of them tensors, batch 0 has ndarray, Tensor"),
        ([(X[:, :3], Y)], r"expected anyx4 \(torch.float32\) for input x, batch 0 has 3x3 \(torch.float32\)"),
        ([(X[0], Y)], r"expected anyx4 .* batch 0 has 4"),
        ([(X.double(), Y)], r"batch 0 has 3x4 \(torch.float64\)"),
        ([(X, Y), (X[:0], Y[:0])], r"at least one example, batch 1 has 0 examples and 0 targets"),
        ([(X, Y[:2])], r"expected one target for each example .* batch 0 has 3 examples and 2 targets"),
        ([(X, Y[0])], r"batch 0 has 3 examples and 0 targets"),
    ],
)
def test_data_that_does_not_fit_the_program_is_refused(given: list[Batch], message: str) -> None:
    with pytest.raises(InputError, match=r"^calibration: .*" + message):
        check_batches(given, SPECS)


def test_data_that_fits_is_taken() -> None:
    check_batches([(X, Y), (X[:1], Y[:1])], SPECS)


def test_single_examples_cannot_go_through_a_program_of_fixed_batch() -> None:
    specs = programs.input_specs(torch.export.export(models.module("perceptron"), (X,)))
    check_batches([(X, Y)], specs, frozenset({ACTIVATIONS, MOVEMENT}))
    with pytest.raises(
        InputError, match=r"^calibration: expected a program that takes one example at a time.* of x is"
    ):
        check_batches([(X, Y)], specs, frozenset({GRADIENTS}))
    single = programs.input_specs(torch.export.export(models.module("perceptron"), (X[:1],)))
    check_batches([(X[:1], Y[:1])], single, frozenset({GRADIENTS}))
