"""Activations that are computed again: the same training bit for bit, with far fewer of them kept."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from together import together
from torch import fx, nn
from torch.nn import functional

from secateur import distributed
from secateur import program as programs
from secateur.recompute import recomputing

DEPTH, WIDTH, BATCH = 24, 32, 16


class Deep(nn.Module):
    """Vectors [N, 4] to logits: many residual blocks of a norm, two layers and dropout, some of it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(models.FEATURES, WIDTH), nn.Linear(WIDTH, models.CLASSES)
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(DEPTH))
        self.ups = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(DEPTH))
        self.downs = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            y = functional.dropout(functional.relu(up(norm(x)), inplace=True), 0.1, self.training)
            y = down(y)
            y += x
            x = y
        return self.head(x)


@functools.cache
def deep() -> fx.GraphModule:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return programs.graph_module(models.export(Deep(), torch.zeros(2, models.FEATURES)))


def trainable(name: str) -> tuple[fx.GraphModule, torch.Tensor]:
    """A network in training mode, and what it is given."""
    module = copy.deepcopy(deep()) if name == "deep" else programs.graph_module(models.exported(name))
    programs.set_training(module, True)
    given = {"deep": models.vectors, "residual": models.images, "branches": models.images}.get(name, models.tokens)
    return module, torch.from_numpy(given(BATCH))


def trained(module: fx.GraphModule, function: Callable[..., Any], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a pass forward and back leaves: answers, gradients, running statistics."""
    torch.manual_seed(3)
    answers = function(x)
    answers.square().sum().backward()
    gradients = {f"{name}.grad": p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"answers": answers.detach(), **gradients, **dict(module.named_buffers())}


@pytest.mark.parametrize("name", ["deep", "residual", "branches", "encoder", "tied"])
def test_answers_gradients_and_statistics_are_the_same_bit_for_bit(name: str) -> None:
    plain, x = trainable(name)
    other, _ = trainable(name)
    expected, seen = trained(plain, plain, x), trained(other, recomputing(other), x)
    assert expected.keys() == seen.keys()
    for key, value in expected.items():
        assert torch.equal(seen[key], value), key


def test_little_is_kept_for_the_backward_pass_of_a_deep_network() -> None:
    module, x = trainable("deep")
    assert most_kept(recomputing(module), x) < 0.35 * most_kept(module, x)


def most_kept(function: Callable[..., Any], x: torch.Tensor) -> int:
    """The most bytes that are kept at any moment for the backward pass, parameters left out."""
    alive: dict[int, int] = {}
    most = 0

    class Kept:
        """A tensor that autograd holds; when it lets go, so does the count."""

        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal most
            self.tensor = tensor
            if not isinstance(tensor, nn.Parameter):
                alive[id(self)] = tensor.nbytes
            most = max(most, sum(alive.values()))

        def __del__(self) -> None:
            alive.pop(id(self), None)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        function(x).sum().backward()
    return most


def test_several_processes_sum_their_norms_in_both_computations() -> None:
    def work(again: bool) -> dict[str, Any]:
        module, x = trainable("residual")
        with distributed.synchronised_norms(module):
            seen = trained(module, recomputing(module) if again else module, distributed.own(x))
        return {name: tensor.numpy() for name, tensor in seen.items()}

    plain, again = (together(functools.partial(work, choice))[1] for choice in (False, True))
    for name, value in plain.items():
        assert (again[name] == value).all(), name


class Counts(nn.Module):
    """It counts its calls in a buffer, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = Deep()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.deep(x) + self.calls


def test_what_a_program_changes_in_place_is_changed_once() -> None:
    module = programs.graph_module(models.export(Counts(), torch.zeros(2, models.FEATURES)))
    before = module.get_buffer("calls").clone()
    trained(module, recomputing(module), torch.from_numpy(models.vectors(BATCH)))
    assert torch.equal(module.get_buffer("calls"), before + 1)
