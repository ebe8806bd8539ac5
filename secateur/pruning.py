"""The structured cut as a user calls it: goal in, smaller program and a report out, every promise checked on the way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import fx
from torch.export import ExportedProgram

from secateur import program as programs
from secateur import surgery
from secateur.allocate import Goal, Macs, Ratio, measure_of, uniform
from secateur.axes.infer import KINDS, Structure, infer
from secateur.axes.terms import Kept
from secateur.errors import InputError
from secateur.importance import CRITERIA

DEFAULT_KINDS = ("head", "kv_group", "q_per_group", "channel", "width")
MASKED_TOLERANCE = 1e-5  # relative to the largest output


@dataclass(frozen=True)
class AxisCut:
    """What happened to one axis; scores are the lowest and the highest of its units."""

    name: str
    kind: str
    before: int
    after: int
    lowest_score: float
    highest_score: float


@dataclass(frozen=True)
class Report:
    """What a cut removed. Counts are recomputed from the program that was exported again."""

    axes: tuple[AxisCut, ...]
    frozen: tuple[tuple[str, str], ...]  # axis, reason
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    masked_error: float | None  # against the masked dense model; None where a normalisation runs over a cut axis

    @property
    def sparsity(self) -> float:
        """Share of the parameters removed."""
        return 1 - self.parameters_after / self.parameters_before

    def __str__(self) -> str:
        table = Table("axis", "kind", "before", "after", "scores", title="cut")
        for axis in self.axes:
            scores = f"{axis.lowest_score:.3g} .. {axis.highest_score:.3g}"
            table.add_row(axis.name, axis.kind, str(axis.before), str(axis.after), scores)
        for name, reason in self.frozen:
            table.add_row(name, "frozen", "", "", reason, style="dim")
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(table)
        return (
            f"{capture.get()}parameters {self.parameters_before:,} -> {self.parameters_after:,} ({self.sparsity:.1%} removed)"
            f"\nMACs {self.macs_before:,} -> {self.macs_after:,}"
        )


def prune(
    program: ExportedProgram,
    *,
    goal: Goal,
    kinds: Sequence[str] = DEFAULT_KINDS,
    criterion: str = "l2",
    align: int = 1,
) -> tuple[ExportedProgram, Report]:
    """Remove the least important units so that the goal is met, and prove that the result is what it should be.

    The input program is not modified. Checked before returning: the cut program exports again and runs at two batch
    sizes; the goal is reached within one alignment step; the dense program with the same units zeroed gives the same
    outputs, unless a normalisation runs over a cut axis.

    Raises:
        InputError: no axis can be cut, the goal cannot be reached, or a name is unknown.
    """
    _check_arguments(goal, kinds, criterion, align)
    module = programs.graph_module(program)
    structure = infer(module)
    chosen = [info for info in structure.prunable if info.kind in kinds]
    if not chosen:
        raise InputError(_nothing_prunable(structure, kinds))
    symbols = programs.per_example_symbols(program)
    widths = uniform(structure, chosen, goal, symbols, align)
    scores = {
        info.axis: CRITERIA[criterion](module, structure, info) for info in chosen if widths[info.axis] < info.size
    }
    kept: Kept = {axis: _strongest(score, widths[axis]) for axis, score in scores.items()}
    if not kept:
        raise InputError(
            f"goal: {goal} would remove nothing from {len(chosen)} axes at align {align}; ask for more or lower it"
        )
    before = structure.count_parameters(), structure.count_macs(symbols)
    reference = copy.deepcopy(module)
    surgery.mask(reference, structure, kept)
    surgery.cut(module, structure, kept)
    pruned = programs.reexport(module, program)
    error = _masked_error(reference, pruned, program, exact=not any(i.normalised for i in chosen if i.axis in kept))
    recounted = infer(programs.graph_module(pruned))
    report = Report(
        axes=tuple(
            AxisCut(i.name, i.kind, i.size, len(kept[i.axis]), float(scores[i.axis].min()), float(scores[i.axis].max()))
            for i in chosen
            if i.axis in kept
        ),
        frozen=tuple((info.name, info.frozen) for info in structure.axes if info.frozen),
        parameters_before=before[0],
        parameters_after=recounted.count_parameters(),
        macs_before=before[1],
        macs_after=recounted.count_macs(programs.per_example_symbols(pruned)),
        masked_error=error,
    )
    _check_counts(report, measure_of(goal, structure, symbols)(widths), goal)
    return pruned, report


def check_prunable(program: ExportedProgram, kinds: Sequence[str], criterion: str) -> None:
    """Raise InputError when `prune` could do nothing with these choices, whatever the goal."""
    _check_arguments(Ratio(0.5), kinds, criterion, align=1)
    structure = infer(programs.graph_module(program))
    if not any(info.kind in kinds for info in structure.prunable):
        raise InputError(_nothing_prunable(structure, kinds))


def _check_arguments(goal: Goal, kinds: Sequence[str], criterion: str, align: int) -> None:
    if not 0 < goal.share < 1:
        raise InputError(f"goal: expected a share between 0 and 1 (exclusive), got {goal}")
    if unknown := set(kinds) - set(KINDS):
        raise InputError(f"kinds: expected some of {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    if criterion not in CRITERIA:
        raise InputError(f"criterion: expected one of {', '.join(CRITERIA)}, got {criterion!r}")
    if align < 1:
        raise InputError(f"align: expected a multiple of at least 1, got {align}")


def _nothing_prunable(structure: Structure, kinds: Sequence[str]) -> str:
    found = sorted({info.kind for info in structure.prunable})
    reasons = sorted({f"{info.name} {info.frozen}" for info in structure.axes if info.frozen})[:3]
    return (
        f"kinds: expected at least one axis of {', '.join(kinds)} that can be cut; the program has "
        f"{', '.join(found) or 'none'}; frozen: {'; '.join(reasons) or 'none'}"
    )


def _strongest(scores: np.ndarray, count: int) -> np.ndarray:
    """The units with the highest scores, ascending; ties go to the earlier unit."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _masked_error(
    reference: fx.GraphModule, pruned: ExportedProgram, program: ExportedProgram, exact: bool
) -> float | None:
    """Run the cut program at two batch sizes; its largest relative difference from the masked dense one."""
    dynamic = bool(programs.per_example_symbols(program))
    worst = 0.0
    module = pruned.module(check_guards=False)
    with programs.evaluating(reference):
        for size in (2, 3) if dynamic else (None,):
            args, kwargs = programs.batch_of_example(program, size) if size else programs.example(program)
            expected, seen = (torch.utils._pytree.tree_leaves(m(*args, **kwargs)) for m in (reference, module))
            for a, b in zip(expected, seen, strict=True):
                if isinstance(a, torch.Tensor) and a.is_floating_point():
                    worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)))
    if exact and not worst <= MASKED_TOLERANCE:
        raise RuntimeError(
            f"the cut program differs from the masked dense one by {worst:.2e} (limit {MASKED_TOLERANCE})"
        )
    return worst if exact else None


def _check_counts(report: Report, planned: int, goal: Goal) -> None:
    """The artifact has what the layouts promised, and fewer units on every axis that was cut."""
    counted = report.macs_after if isinstance(goal, Macs) else report.parameters_after
    if counted != planned:
        raise RuntimeError(f"the exported program counts {counted:,} where the cut planned {planned:,}")
