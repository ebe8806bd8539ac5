"""Rows on CIFAR-10: the trained ResNets cut by channels and by weights, one-shot and in cycles, by several criteria."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.export import ExportedProgram

import secateur
from benchmarks import counts
from benchmarks.accuracy import cycles
from benchmarks.accuracy.cycles import Cut, Subject
from benchmarks.accuracy.scales import Recipe, Scale
from benchmarks.accuracy.study import Ask, Trial
from benchmarks.context import Context, Row, say
from benchmarks.trained import cifar_resnet as networks
from secateur import checkpoints, data
from secateur.calibration import Batch
from secateur.data import Dataset, Split
from secateur.penalties import PenaltySettings
from secateur.pruning import Choice
from secateur.sparsity import Masks, Unstructured

CRITERION, ALLOCATION, FLOOR = "l2", "global", 0.1
PENALTY = PenaltySettings("group_lasso", strength=5e-4, alpha=4.0)  # DepGraph's lambda for ResNet-56
CALIBRATION = 256  # training images
CRITERIA = ("random", "l2", "taylor", "fisher", "fpgm")
SHARES = (0.3, 0.5, 0.7, 0.9)
UNSTRUCTURED = {0.8: 0.5, 0.9: 1.0, 0.95: 2.0}  # share of the weights: points that may be lost
DEPGRAPH = "DepGraph (Fang et al., CVPR 2023)"
SEEN = "The published networks were trained on all 50,000 training images, so that accuracy on the carved-out validation images is optimistic."


@functools.cache
def dataset(context: Context, validation: int) -> Dataset:
    """Normalised images; validation is carved out of train by the context's seed, the same in every row."""
    folder = context.folder("cifar10")
    train, test = (_split(networks.images(folder, name)) for name in ("train", "test"))
    rest, carved = data.carve(train, validation / len(train), context.seed)
    return Dataset(rest, carved, test)


def _split(images: networks.Images) -> Split:
    inputs, labels = next(networks.batches(images, len(images[1])))
    return Split(inputs.numpy(), labels.numpy())


def published(context: Context, scale: Scale, depth: int) -> Subject:
    """A network with its published weights."""
    dense = networks.exported(networks.trained(context.folder("cifar_resnet"), depth))
    return Subject(dense, dataset(context, scale.validation))


def channels(
    dense: ExportedProgram, criterion: str = CRITERION, calibration: Sequence[Batch] = (), seed: int = 0
) -> Cut:
    """Cuts channels until a share of the dense program's MACs is gone."""
    whole = counts.macs(dense)

    def cut(program: ExportedProgram, share: float) -> tuple[ExportedProgram, Masks]:
        goal = secateur.Macs(1 - (1 - share) * whole / counts.macs(program))
        return _cut(program, goal, criterion, calibration, seed), {}

    return cut


def parameters(dense: ExportedProgram) -> Cut:
    """Cuts channels until a share of the dense program's parameters is gone."""
    whole = counts.weights(dense)

    def cut(program: ExportedProgram, share: float) -> tuple[ExportedProgram, Masks]:
        goal = secateur.Parameters(1 - (1 - share) * whole / counts.weights(program))
        return _cut(program, goal, CRITERION, (), 0), {}

    return cut


def _cut(
    program: ExportedProgram,
    goal: secateur.Macs | secateur.Parameters,
    criterion: str,
    calibration: Sequence[Batch],
    seed: int,
) -> ExportedProgram:
    pruned, _ = secateur.prune(
        program,
        goal=goal,
        criterion=criterion,
        allocation=ALLOCATION,
        floor=FLOOR,
        calibration=calibration,
        seed=seed,
    )
    return pruned


def zeros(program: ExportedProgram, share: float) -> tuple[ExportedProgram, Masks]:
    """Zeroes the smallest weights of all layers together."""
    sparse, masks, _ = secateur.sparsify(program, pattern=Unstructured(share, scope="global"))
    return sparse, masks


def structured(row: str, depth: int, asks: dict[float, Ask], told: dict[float, str]) -> Callable[[Scale], list[Trial]]:
    """Channels cut to fewer MACs."""

    def trials(scale: Scale) -> list[Trial]:
        recipe = scale.recipes[row]
        settings = {"criterion": CRITERION, "allocation": ALLOCATION, "floor": FLOOR, **_settings(scale, recipe)}

        def run(context: Context, faster: float, seed: int) -> Row:
            subject = published(context, scale, depth)
            folder = cycles.working_folder(context, row, f"{faster}x", seed, settings)
            return cycles.in_cycles(subject, channels(subject.dense), 1 - 1 / faster, recipe, seed, folder)[1]

        return [
            Trial(
                f"{faster}x fewer MACs",
                seed,
                settings,
                functools.partial(run, faster=faster, seed=seed),
                ask,
                told.get(faster, ""),
            )
            for faster, ask in asks.items()
            for seed in scale.seeds
        ]

    return trials


def sparse_learning(scale: Scale) -> list[Trial]:
    """ResNet-56 trained under a group lasso, then cut: the same learnt program for every MACs goal."""
    row, asks = "resnet56-sparse-learning", {2.13: 0.9377, 2.57: 0.9364}
    recipe, learning = scale.recipes[row], scale.recipes["sparse-learning"]
    learnt_by = {"penalty": vars(PENALTY), "learning": learning.told(), "validation": scale.validation}
    settings = {
        "criterion": CRITERION,
        "allocation": ALLOCATION,
        "floor": FLOOR,
        **_settings(scale, recipe),
        **learnt_by,
    }

    def learn(context: Context, subject: Subject, seed: int) -> ExportedProgram:
        trained, _ = learning.of_cycle(learning.cycles, seed)
        folder = cycles.working_folder(context, "sparse-learning", "56", seed, learnt_by)
        say(f"sparse learning: {trained.epochs} epochs")
        return secateur.learn_sparsity(
            subject.dense,
            subject.data,
            trained,
            Choice(kinds=("channel",)),
            PENALTY,
            checkpoint=checkpoints.in_folder(folder),
            on_epoch=lambda epoch: cycles.tell(epoch, trained.epochs),
        ).program

    def run(context: Context, faster: float, seed: int) -> Row:
        subject = published(context, scale, 56)
        name = f"resnet56-learnt-{seed}"
        learnt = cycles.kept(context, name, learnt_by, lambda: learn(context, subject, seed))
        cut = channels(subject.dense)
        folder = cycles.working_folder(context, row, f"{faster}x", seed, settings)

        def cut_learnt(program: ExportedProgram, share: float) -> tuple[ExportedProgram, Masks]:
            return cut(learnt if program is subject.dense else program, share)

        row_ = cycles.in_cycles(subject, cut_learnt, 1 - 1 / faster, recipe, seed, folder)[1]
        return row_ | {"learnt": subject.score(learnt, subject.data.test)}

    return [
        Trial(
            f"{faster}x fewer MACs",
            seed,
            settings,
            functools.partial(run, faster=faster, seed=seed),
            Ask("accuracy", wanted),
            f"{wanted:.2%} from 93.53%, {DEPGRAPH}",
        )
        for faster, wanted in asks.items()
        for seed in scale.seeds
    ]


def unstructured(row: str, depth: int, *, asked: bool) -> Callable[[Scale], list[Trial]]:
    """The smallest weights of all layers together set to zero."""

    def trials(scale: Scale) -> list[Trial]:
        recipe = scale.recipes[row]
        settings = {"criterion": "magnitude", "scope": "global", **_settings(scale, recipe)}

        def run(context: Context, share: float, seed: int) -> Row:
            folder = cycles.working_folder(context, row, f"{share}", seed, settings)
            return cycles.in_cycles(published(context, scale, depth), zeros, share, recipe, seed, folder)[1]

        return [
            Trial(
                f"{share:.0%} of the weights",
                seed,
                settings,
                functools.partial(run, share=share, seed=seed),
                Ask("drop", points / 100) if asked else None,
            )
            for share, points in UNSTRUCTURED.items()
            for seed in scale.seeds
        ]

    return trials


def one_shot_or_iterative(row: str, by_channels: bool) -> Callable[[Scale], list[Trial]]:
    """Each share in one cut and in cycles, with the same epochs of training in all."""

    def trials(scale: Scale) -> list[Trial]:
        after = "-channels" if by_channels else ""
        recipes = {way: scale.recipes[way + after] for way in ("oneshot", "iterative")}
        how = (
            {"criterion": CRITERION, "allocation": ALLOCATION, "floor": FLOOR}
            if by_channels
            else {"criterion": "magnitude", "scope": "global"}
        )

        def run(context: Context, way: str, share: float, seed: int) -> Row:
            subject = published(context, scale, 20)
            settings = how | _settings(scale, recipes[way])
            folder = cycles.working_folder(context, row, f"{way}-{share}", seed, settings)
            cut = parameters(subject.dense) if by_channels else zeros
            made = cycles.in_cycles(subject, cut, share, recipes[way], seed, folder)[1]
            return made | {"way": way, "share": share}

        return [
            Trial(
                f"{share:.0%} {way}",
                seed,
                how | _settings(scale, recipes[way]),
                functools.partial(run, way=way, share=share, seed=seed),
            )
            for share in SHARES
            for way in recipes
            for seed in scale.seeds
        ]

    return trials


def criteria(scale: Scale) -> list[Trial]:
    """ResNet-20 at half its MACs by several criteria, after the same short recovery."""
    recipe = scale.recipes["criteria"]
    settings = {"allocation": "uniform", **_settings(scale, recipe)}

    def run(context: Context, criterion: str, seed: int) -> Row:
        subject = published(context, scale, 20)
        train = subject.data.train
        chosen = np.random.default_rng(seed).permutation(len(train))[:CALIBRATION]
        batch = (torch.from_numpy(train.inputs[chosen]), torch.from_numpy(train.labels[chosen]))
        folder = cycles.working_folder(context, "criteria", criterion, seed, settings)

        def cut(program: ExportedProgram, share: float) -> tuple[ExportedProgram, Masks]:
            pruned, _ = secateur.prune(
                program, goal=secateur.Macs(share), criterion=criterion, calibration=[batch], seed=seed
            )
            return pruned, {}

        return cycles.in_cycles(subject, cut, 0.5, recipe, seed, folder)[1]

    return [
        Trial(criterion, seed, settings, functools.partial(run, criterion=criterion, seed=seed))
        for criterion in CRITERIA
        for seed in scale.seeds
    ]


def _settings(scale: Scale, recipe: Recipe) -> Row:
    return {"recipe": recipe.told(), "validation": scale.validation}
