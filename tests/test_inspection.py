"""What `inspect` tells of a program: every axis with its cost, every branch, every reason."""

import models
import pytest
import torch
from torch import nn

import secateur
from secateur import program as programs
from secateur.inspection import Inspection

HIDDEN_WEIGHTS = models.HIDDEN * (models.FEATURES + 1 + models.CLASSES)  # rows, biases, columns
HIDDEN_MACS = models.HIDDEN * (models.FEATURES + models.CLASSES)


def of(name: str) -> Inspection:
    return secateur.inspect(models.exported(name))


def test_an_axis_costs_everything_that_goes_with_it() -> None:
    hidden = next(axis for axis in of("perceptron").axes if axis.frozen is None)
    assert (hidden.kind, hidden.size) == ("width", models.HIDDEN)
    assert (hidden.parameters, hidden.macs) == (HIDDEN_WEIGHTS, HIDDEN_MACS)
    assert hidden.weights == ("first.weight", "first.bias", "second.weight")


def test_a_frozen_axis_is_listed_with_its_reason() -> None:
    reasons = {axis.frozen for axis in of("perceptron").axes}
    assert reasons == {None, "is a graph input", "is a graph output"}


@pytest.mark.parametrize("name", models.MODELS)
def test_counts_are_those_of_the_whole_program(name: str) -> None:
    seen = of(name)
    assert seen.parameters == sum(parameter.numel() for parameter in models.module(name).parameters())
    assert all(0 < axis.parameters <= seen.parameters for axis in seen.axes)
    assert all(0 <= axis.macs <= seen.macs for axis in seen.axes)


def test_branches_are_listed_with_what_dropping_them_saves() -> None:
    feed_forward = next(branch for branch in of("encoder").branches if branch.kind == "mlp")
    assert feed_forward.parameters == sum(
        p.numel() for layer in ("up", "down") for p in models.module("encoder").get_submodule(layer).parameters()
    )
    assert feed_forward.macs == 2 * models.LENGTH * models.EMBEDDING * models.CHANNELS
    assert feed_forward.axes == ("up:width",)


def test_the_table_holds_every_axis_and_every_reason() -> None:
    seen = of("encoder")
    text = str(seen)
    assert all(axis.name in text and (axis.frozen or axis.kind) in text for axis in seen.axes)
    assert f"{seen.parameters:,} parameters" in text


def test_the_program_and_its_weights_stay_as_they_were() -> None:
    program = models.export(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), torch.zeros(2, 4))
    before = programs.digest(program)
    secateur.inspect(program)
    assert programs.digest(program) == before
