"""Lottery ticket against fine-tuning: a ResNet-20 from scratch, 90 % of its weights gone, trained on from early or from last weights."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch.export import ExportedProgram

import secateur
from benchmarks.accuracy import cycles, images
from benchmarks.accuracy.cycles import Subject
from benchmarks.accuracy.scales import Recipe, Scale
from benchmarks.accuracy.study import Trial
from benchmarks.context import Context, Row, say
from benchmarks.trained import cifar_resnet as networks
from secateur import checkpoints
from secateur.data import Dataset
from secateur.sparsity import Masks

SHARE = 0.9
ROW = "lottery"
ONLY_WARM_UP = 0.999  # the early weights are those at which the rate has come to its top


def trials(scale: Scale) -> list[Trial]:
    """Both ways, from the same dense network: it was trained once from its early weights with the rewind's rates."""
    recipes = {way: scale.recipes[f"lottery-{way}"] for way in ("early", "dense", "rewind", "fine-tune")}

    def settings(way: str) -> Row:
        said = {name: recipes[name].told() for name in ("early", "dense", way)}
        return {"criterion": "magnitude", "scope": "global", "validation": scale.validation, "recipes": said}

    def run(context: Context, way: str, seed: int) -> Row:
        data = images.dataset(context, scale.validation)
        early, dense = _from_scratch(context, data, recipes["early"], recipes["dense"], scale.validation, seed)
        folder = cycles.working_folder(context, ROW, way, seed, settings(way))

        def cut(program: ExportedProgram, share: float) -> tuple[ExportedProgram, Masks]:
            sparse, masks = images.zeros(program, share)
            return (early if way == "rewind" else sparse), masks  # recovery sets what is masked to zero

        return cycles.in_cycles(Subject(dense, data), cut, SHARE, recipes[way], seed, folder)[1]

    return [
        Trial(f"{SHARE:.0%} of the weights, {way}", seed, settings(way), functools.partial(run, way=way, seed=seed))
        for way in ("rewind", "fine-tune")
        for seed in scale.seeds
    ]


def _from_scratch(
    context: Context, data: Dataset, early: Recipe, dense: Recipe, validation: int, seed: int
) -> tuple[ExportedProgram, ExportedProgram]:
    """The weights after the warm-up, and those after the training that went on from there; both kept in the cache."""

    def trained(program: ExportedProgram, recipe: Recipe, name: str, warm_up: float) -> ExportedProgram:
        told = {"early": early.told(), "dense": dense.told() if name == "dense" else {}, "validation": validation}

        def make() -> ExportedProgram:
            settings, count = recipe.of_cycle(recipe.cycles, seed)
            settings = replace(settings, warm_up=warm_up)
            say(f"lottery: {name} weights of seed {seed}, {settings.epochs} epochs from scratch")
            return secateur.recover(
                program,
                program,
                cycles.drawn(data, count, seed),
                settings,
                checkpoint=checkpoints.in_folder(cycles.working_folder(context, ROW, name, seed, told)),
                on_epoch=lambda epoch: cycles.tell(epoch, settings.epochs),
            ).program

        return cycles.kept(context, f"resnet20-{name}-{seed}", told, make)

    torch.manual_seed(seed)
    first = networks.exported(networks.CifarResNet(20).eval())
    warm = trained(first, early, "early", ONLY_WARM_UP)
    return warm, trained(warm, dense, "dense", 0.0)
