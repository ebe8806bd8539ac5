"""How each method cuts: a program and how many times less it shall become in, a smaller or sparser program out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import InputError
from tasks import goals, tracking
from tasks.recipe import COUNTED, UNCHANGED_BY_ZEROS, Recipe
from tasks.references import File

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from secateur.allocate import Curves
    from secateur.allocate import Goal as Counted
    from secateur.calibration import Batch
    from secateur.depth import DepthReport
    from secateur.gains import Gain
    from secateur.objectives import Objective
    from secateur.pruning import Report
    from secateur.sparsity import NM, SparsityReport, Unstructured

BATCH = 32  # of calibration
CURVES = "curves.json"


@dataclass(frozen=True)
class Work:
    """A program to cut, and what a cut may look at."""

    recipe: Recipe
    names: tuple[str, ...]  # of the program's inputs
    program: ExportedProgram
    lineage: Mapping[str, Any]
    latencies: File | None  # of the dense program
    run_id: str  # that keeps what is measured for the cut,
    folder: str  # in this folder of it


@dataclass(frozen=True)
class Made:
    """What came of a cut; `record` is for the lineage."""

    program: ExportedProgram
    report: Report | SparsityReport | DepthReport
    record: dict[str, Any]


def structured(work: Work, times: float) -> Made:
    """Units leave."""
    from secateur import prune
    from secateur.objectives import objective_of, plain_loss
    from secateur.pruning import Choice, needs_data

    recipe = work.recipe
    goal = goals.asking(recipe.goal, work.latencies, work.program)(times)
    choice = {**recipe.prune.choice, "seed": recipe.seed}
    batches = calibration(recipe, work.names) if needs_data(Choice(**choice)) else ()
    objective = objective_of(recipe.objective)
    by_curves = recipe.prune.allocation == "sensitivity"
    curves = _curves(work, choice, batches, objective) if by_curves else None
    program, report = prune(
        work.program, goal=goal, calibration=batches, loss=plain_loss(objective), curves=curves, **choice
    )
    return Made(program, report, {"goal": str(goal), "criterion": recipe.prune.criterion, "kept": report.kept})


def unstructured(work: Work, times: float) -> Made:
    """Single weights become zero, those that are zero already first."""
    from secateur import Unstructured

    any_of_them = Unstructured(0.5, work.recipe.prune.weights.scope)
    total, fitting = _weights(work, any_of_them)
    zeros = total - _left(work, total) / times
    if zeros >= fitting:
        raise InputError(
            f"goal: {work.recipe.goal} is out of reach: expected fewer zeros than the {fitting:,} weights of layers that may have "
            f"them, it needs {zeros:,.0f}; ask for less or let prune.weights.include name more"
        )
    return _sparsified(work, replace(any_of_them, share=zeros / fitting))


def n_m(work: Work, times: float) -> Made:
    """Of every m weights n stay at most, however many times less is asked."""
    del times
    return _sparsified(work, pattern_of(work.recipe))


def depth(work: Work, times: float) -> Made:
    """Branches leave whole."""
    from secateur import drop_branches

    wanted = work.recipe.prune.layers
    goal, kind = _counted(work, times), branch_kind(work)
    batches = calibration(work.recipe, work.names) if wanted.criterion in ("influence", "variance") else ()
    program, report = drop_branches(
        work.program, goal=goal, kind=kind, criterion=wanted.criterion, calibration=batches, seed=work.recipe.seed
    )
    return Made(program, report, {"goal": str(goal), "criterion": wanted.criterion, "dropped": report.dropped})


CUTS: dict[str, Callable[[Work, float], Made]] = {
    "structured": structured,
    "unstructured": unstructured,
    "n_m": n_m,
    "depth": depth,
}


def most(work: Work, method: str) -> float:
    """How many times less a method can make the program at most, of what the goal counts or of what stands in for what is
    measured. Slightly less, since ratios are rounded.

    Raises:
        InputError: it can do nothing to this program.
    """
    from secateur import Unstructured
    from secateur import depth as depths
    from secateur.pruning import Choice

    recipe = work.recipe
    if method == "structured":
        ask = goals.asking(recipe.goal, work.latencies, work.program)
        return goals.most(ask, work.program, Choice(**recipe.prune.choice))
    if method == "depth":
        return 1 / (1 - 0.999 * depths.reachable(work.program, branch_kind(work), _counted(work, 2.0)))
    pattern = pattern_of(recipe) if method == "n_m" else Unstructured(0.999, recipe.prune.weights.scope)
    total, fitting = _weights(work, pattern)
    share = pattern.share if isinstance(pattern, Unstructured) else 1 - pattern.n / pattern.m
    return _left(work, total) / (total - share * fitting)


def gain_of(recipe: Recipe, method: str) -> Gain:
    """What a method, or INT8, buys on the recipe's target."""
    from secateur import gains, machine

    known = gains.gain("2:4" if method == "n_m" else method, recipe.target.provider, machine.here())
    if method == "n_m" and recipe.prune.weights.pattern != "2:4" and known.buys == "time":
        return replace(
            known, buys="unknown", why="2:4 is the one pattern that is documented; measure before counting on it"
        )
    return known


def misfit(recipe: Recipe, method: str, gain: Gain) -> str:
    """Why a method cannot serve the goal, whatever the program; empty where it can."""
    goal, _ = recipe.goal.given
    if method in ("structured", "depth"):
        return ""
    if goal in UNCHANGED_BY_ZEROS:
        return f"zeros change nothing of {goal}"
    if goal in goals.TIMES and gain.buys not in ("time", "unknown"):
        return f"on {recipe.target.provider} it would buy {gain.buys} ({gain.why}), and {goal} is a time"
    return ""


def check(recipe: Recipe, program: ExportedProgram, lineage: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise InputError where the method that the recipe asks for can do nothing to a program, or cannot reach what it counts."""
    from secateur import pruning

    prune, method = recipe.prune, recipe.prune.method
    work = Work(recipe, names, program, lineage, None, "", "")
    if method in ("auto", "structured"):
        pruning.check_prunable(program, pruning.Choice(**prune.choice))
    if prune.weights != type(prune.weights)() and method == "auto":
        _weights(work, pattern_of(recipe))
    if method not in CUTS:
        return
    if why := misfit(recipe, method, gain_of(recipe, method)):
        raise InputError(
            f"prune.method: {method} cannot serve the goal {recipe.goal}: {why}; choose structured or depth"
        )
    reach, (goal, value) = most(work, method), recipe.goal.given
    # what a pattern gives of the layers that it fits is taken as it is
    if goal in COUNTED and method != "n_m" and (wanted := 1 / (1 - value)) > reach:
        raise InputError(
            f"goal.{goal}: expected at most {1 - 1 / reach:.3f}, what prune.method {method} can reach in this program, got "
            f"{value:g} ({wanted:.2f}x); ask for less or choose another method"
        )


def pattern_of(recipe: Recipe) -> NM:
    """The pattern of the method n_m."""
    from secateur import NM

    return NM(*recipe.prune.weights.n_m)


def branch_kind(work: Work) -> str:
    """The kind of branches of the method depth."""
    from secateur import depth as depths

    wanted = work.recipe.prune.layers.kind
    return depths.usual_kind(work.program) if wanted == "auto" else wanted


def calibration(recipe: Recipe, names: Sequence[str]) -> list[Batch]:
    """Examples of the training split, the same ones in every cycle."""
    import numpy as np
    import torch

    from tasks import datasets

    train = datasets.load(recipe, names).train
    chosen = np.random.default_rng(recipe.seed).permutation(len(train))[: recipe.prune.calibration]
    parts = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
    return [tuple(torch.from_numpy(array[part]) for array in (*train.columns, train.labels)) for part in parts]


def _sparsified(work: Work, pattern: Unstructured | NM) -> Made:
    from secateur import sparsify
    from secateur.objectives import objective_of, plain_loss
    from secateur.sparsity import WEIGHT_CRITERIA

    recipe, wanted = work.recipe, work.recipe.prune.weights
    program, _, report = sparsify(
        work.program,
        pattern=pattern,
        criterion=wanted.criterion,
        include=wanted.include,
        exclude=wanted.exclude,
        seed=recipe.seed,
        calibration=calibration(recipe, work.names) if WEIGHT_CRITERIA[wanted.criterion].needs else (),
        loss=plain_loss(objective_of(recipe.objective)),
    )
    return Made(program, report, {"pattern": str(pattern), "criterion": wanted.criterion})


def _weights(work: Work, pattern: Unstructured | NM) -> tuple[int, int]:
    """The parameters of a program, and those of layers that a pattern fits."""
    from secateur import program as programs
    from secateur.axes.infer import infer
    from secateur.sparsity import fitting_weights

    wanted = work.recipe.prune.weights
    fitting = fitting_weights(
        work.program,
        pattern=pattern,
        criterion=wanted.criterion,
        include=wanted.include,
        exclude=wanted.exclude,
    )
    return infer(programs.graph_module(work.program, shared=True)).count_parameters(), fitting


def _left(work: Work, total: int) -> int:
    """The weights of a program that are not zero by a pattern."""
    from secateur.sparsity import recorded_zeros

    return total - recorded_zeros(work.program, work.lineage)


def _counted(work: Work, times: float) -> Counted:
    """What the number of branches is chosen by: no table knows the time of a program without one."""
    from secateur import Speedup

    goal = goals.asking(work.recipe.goal, None, work.program)(times)
    assert not isinstance(goal, Speedup), "there is no table"
    return goal


def _curves(work: Work, choice: dict[str, Any], batches: Sequence[Batch], objective: Objective) -> Curves:
    """Sensitivity curves, kept in the cycle's run axis by axis: a killed task goes on from them."""
    from secateur import sensitivity
    from secateur.objectives import distance, plain_loss

    chosen = {name: choice[name] for name in ("kinds", "include", "exclude", "criterion", "seed")}
    with tempfile.TemporaryDirectory(prefix="secateur-") as local:
        path = Path(local) / CURVES
        if stored := tracking.get_bytes(work.run_id, f"{work.folder}/{CURVES}"):
            path.write_bytes(stored)

        def keep(axis: str, curve: dict[float, float]) -> None:
            tracking.put_bytes(work.run_id, path.read_bytes(), work.folder, CURVES)
            print(
                f"{axis}: loss {', '.join(f'{loss:.4f} at {share:.0%}' for share, loss in curve.items())}", flush=True
            )

        return sensitivity(
            work.program,
            calibration=batches,
            loss=plain_loss(objective),
            distance=distance(objective),
            path=path,
            on_axis=keep,
            **chosen,
        )
