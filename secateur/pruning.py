"""The structured cut as a user calls it: goal in, smaller program and a report out, every promise checked on the way."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree

from secateur import allocate, calibration, surgery
from secateur import program as programs
from secateur.allocate import Curves, Goal, KvCache, Macs, Ratio, Speedup
from secateur.axes.infer import KINDS, AxisInfo, Structure, infer
from secateur.axes.terms import Kept, Widths
from secateur.calibration import Batch, Loss, Statistics, classification_loss
from secateur.errors import InputError, NothingRemovedError
from secateur.importance import CRITERIA, Evidence
from secateur.tables import as_text

DEFAULT_KINDS = ("head", "kv_group", "q_per_group", "channel", "width")
MASKED_TOLERANCE = 1e-5  # relative to the largest output
EXPECTED_REASONS = ("is a graph input", "is a graph output")  # every program has them: an error names others first


@dataclass(frozen=True)
class Choice:
    """Which axes may be cut, and by what. `include` and `exclude` are globs on axis names (`module.path:kind`)."""

    kinds: tuple[str, ...] = DEFAULT_KINDS
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    criterion: str = "l2"
    allocation: str = "uniform"
    align: int = 1
    floor: float = 0.0  # share of every axis that stays
    seed: int = 0


@dataclass(frozen=True)
class AxisCut:
    """What happened to one axis: the units that stayed; scores are the lowest and the highest of all its units."""

    name: str
    kind: str
    before: int
    kept: tuple[int, ...]
    lowest_score: float
    highest_score: float

    @property
    def after(self) -> int:
        """How many units stayed."""
        return len(self.kept)


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

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """The units that stayed, by axis name: what `replay` takes."""
        return {axis.name: axis.kept for axis in self.axes}

    def __str__(self) -> str:
        table = Table("axis", "kind", "before", "after", "scores", title="cut")
        for axis in self.axes:
            scores = f"{axis.lowest_score:.3g} .. {axis.highest_score:.3g}"
            table.add_row(axis.name, axis.kind, str(axis.before), str(axis.after), scores)
        for name, reason in self.frozen:
            table.add_row(name, "frozen", "", "", reason, style="dim")
        return (
            f"{as_text(table)}parameters {self.parameters_before:,} -> {self.parameters_after:,} ({self.sparsity:.1%} removed)"
            f"\nMACs {self.macs_before:,} -> {self.macs_after:,}"
        )


def prune(
    program: ExportedProgram,
    *,
    goal: Goal | Speedup,
    kinds: Sequence[str] = DEFAULT_KINDS,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    criterion: str = "l2",
    allocation: str = "uniform",
    align: int = 1,
    floor: float = 0.0,
    seed: int = 0,
    calibration: Sequence[Batch] = (),
    loss: Loss = classification_loss,
    curves: Curves | None = None,
) -> tuple[ExportedProgram, Report]:
    """Remove the least important units so that the goal is met, and prove that the result is what it should be.

    The input program is not modified. Checked before returning: the cut program exports again and runs at two batch
    sizes; the goal is reached within one alignment step; the dense program with the same units zeroed gives the same
    outputs, unless a normalisation runs over a cut axis.

    Args:
        calibration: batches of (inputs..., target), for the criteria that look at activations or gradients.
        curves: for allocation "sensitivity", what `secateur.sensitivity` measured.

    Raises:
        InputError: no axis can be cut, the goal cannot be reached, a name is unknown, or data is missing or misfits.
    """
    choice = Choice(tuple(kinds), tuple(include), tuple(exclude), criterion, allocation, align, floor, seed)
    _check_arguments(goal, choice, calibration, curves)
    programs.check_supported(program)
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    chosen = _carriers(goal, structure, choose_axes(structure, choice))
    symbols = programs.per_example_symbols(program)
    scores = score_units(program, module, structure, chosen, choice, calibration, loss)
    widths = _allocate(structure, chosen, choice, goal, symbols, scores, curves)
    kept = {
        info.axis: strongest(scores[info.name], widths[info.axis]) for info in chosen if widths[info.axis] < info.size
    }
    if not kept:
        raise NothingRemovedError(
            f"goal: {goal} would remove nothing from {len(chosen)} axes at align {align}; ask for more or lower it"
        )
    pruned, report = _cut(program, module, structure, kept, scores)
    _check_counts(report, structure, symbols, widths, goal)
    return pruned, report


def replay(program: ExportedProgram, kept: Mapping[str, Sequence[int]]) -> tuple[ExportedProgram, Report]:
    """Cut a program to exactly the units that a report or a lineage names.

    With the early weights of the same model this is lottery-ticket rewinding: the survivors start from their early
    values (Frankle and Carbin, ICLR 2019; late rewinding, Frankle et al., ICML 2020).

    Raises:
        InputError: an axis or a unit that this program does not have.
    """
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    check_kept(structure.prunable, kept)
    by_name = {info.name: info for info in structure.prunable}
    chosen = {by_name[name].axis: np.array(units, dtype=np.int64) for name, units in kept.items()}
    return _cut(program, module, structure, chosen, {name: np.zeros(by_name[name].size) for name in kept})


def check_kept(axes: Sequence[AxisInfo], kept: Mapping[str, Sequence[int]]) -> None:
    """Raise InputError for an axis that is none of these, or a unit that it does not have."""
    by_name = {info.name: info for info in axes}
    for name, units in kept.items():
        if name not in by_name:
            raise InputError(f"kept: expected axes of this program, got {name!r}; it is not the model that was cut")
        if not units or list(units) != sorted(set(units)) or not 0 <= units[0] <= units[-1] < by_name[name].size:
            raise InputError(
                f"kept: expected ascending units below {by_name[name].size} for {name}, got {list(units)[:5]}..."
            )


def check_prunable(program: ExportedProgram, choice: Choice) -> None:
    """Raise InputError when `prune` could do nothing with these choices, whatever the goal."""
    check_choice(choice)
    programs.check_supported(program)
    choose_axes(infer(programs.graph_module(program, shared=True)), choice)


def reachable(program: ExportedProgram, choice: Choice, goal: Goal | Speedup) -> float:
    """The share that a goal of this sort can ask for at most: every axis that these choices allow at its narrowest.

    Raises:
        InputError: no axis can be cut.
    """
    structure = infer(programs.graph_module(program, shared=True))
    chosen = _carriers(goal, structure, choose_axes(structure, choice))
    count = allocate.measure_of(goal, structure, chosen, programs.per_example_symbols(program))
    narrowest = {info.axis: allocate.ladder(info, choice.align, choice.floor)[-1] for info in chosen}
    return 1 - count(narrowest) / count({})


def _carriers(goal: Goal | Speedup, structure: Structure, chosen: list[AxisInfo]) -> list[AxisInfo]:
    """The axes that carry what the goal counts, where not every axis does.

    Raises:
        InputError: none of them does.
    """
    if not isinstance(goal, KvCache):
        return chosen
    whole = structure.count_cache()
    carriers = [info for info in chosen if structure.count_cache({info.axis: info.minimum}) < whole]
    if not carriers:
        raise InputError(
            f"goal: {goal} counts the keys and values of attention, and none of the {len(chosen)} axes that may be cut carries them; "
            f"allow kinds such as kv_group, head or v_width{'' if whole else ', in a program with attention'}"
        )
    return carriers


def needs_data(choice: Choice) -> bool:
    """Whether `prune` needs calibration batches for these choices."""
    return bool(CRITERIA[choice.criterion].needs) or choice.allocation == "sensitivity"


def choose_axes(structure: Structure, choice: Choice) -> list[AxisInfo]:
    """The axes that may be cut.

    Raises:
        InputError: there is none, a glob matches nothing, or `include` names what cannot be cut.
    """
    _check_globs(structure, choice)
    chosen = [
        info
        for info in structure.prunable
        if info.kind in choice.kinds
        and any(fnmatch.fnmatchcase(info.name, p) for p in choice.include)
        and not any(fnmatch.fnmatchcase(info.name, p) for p in choice.exclude)
    ]
    if not chosen:
        found = sorted({info.kind for info in structure.prunable})
        examples = {info.frozen: info.name for info in reversed(structure.axes) if info.frozen}
        reasons = sorted(examples, key=lambda reason: (reason in EXPECTED_REASONS, reason))[:5]
        raise InputError(
            f"kinds: expected at least one axis of {', '.join(choice.kinds)} that can be cut and is not excluded; the program has "
            f"{', '.join(found) or 'none'}; frozen: {'; '.join(f'{examples[r]} {r}' for r in reasons) or 'none'}"
        )
    return chosen


def _check_globs(structure: Structure, choice: Choice) -> None:
    for pattern in (*choice.include, *choice.exclude):
        matched = [info for info in structure.axes if fnmatch.fnmatchcase(info.name, pattern)]
        if structure.axes and not matched:
            names = [info.name for info in structure.prunable] or [info.name for info in structure.axes]
            raise InputError(
                f"include/exclude: {pattern!r} matches none of {len(structure.axes)} axes, such as {names[0]}"
            )
        if structure.prunable and pattern in choice.include and all(info.frozen for info in matched):
            raise InputError(
                f"include: {pattern!r} matches only what cannot be cut: {matched[0].name} {matched[0].frozen}"
            )


def _check_arguments(goal: Goal | Speedup, choice: Choice, batches: Sequence[Batch], curves: Curves | None) -> None:
    if isinstance(goal, Speedup) and not 1 < goal.times < np.inf:
        raise InputError(f"goal: expected a speedup above 1, got {goal.times}")
    if not 0 < goal.share < 1:
        raise InputError(f"goal: expected a share between 0 and 1 (exclusive), got {goal}")
    check_choice(choice)
    if isinstance(goal, Ratio) and goal.share + choice.floor > 1 + 1e-9:
        raise InputError(
            f"goal: {goal} is out of reach at floor {choice.floor}: expected a share of at most {1 - choice.floor:.3f}; "
            "ask for less or lower the floor"
        )
    if CRITERIA[choice.criterion].needs and not batches:
        raise InputError(f"criterion {choice.criterion}: needs calibration batches of (inputs..., target), got none")
    if choice.allocation == "sensitivity" and curves is None:
        raise InputError("allocation sensitivity: needs curves; measure them with secateur.sensitivity")


def check_choice(choice: Choice) -> None:
    """Raise InputError for a name that does not exist or a number that cannot be."""
    if unknown := set(choice.kinds) - set(KINDS):
        raise InputError(f"kinds: expected some of {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    for setting, value, known in (
        ("criterion", choice.criterion, tuple(CRITERIA)),
        ("allocation", choice.allocation, allocate.ALLOCATIONS),
    ):
        if value not in known:
            raise InputError(f"{setting}: expected one of {', '.join(known)}, got {value!r}")
    if choice.align < 1:
        raise InputError(f"align: expected a multiple of at least 1, got {choice.align}")
    if not 0 <= choice.floor < 1:
        raise InputError(f"floor: expected a share from 0 up to 1, got {choice.floor}")


def score_units(
    program: ExportedProgram,
    module: fx.GraphModule,
    structure: Structure,
    chosen: Sequence[AxisInfo],
    choice: Choice,
    batches: Sequence[Batch],
    loss: Loss,
) -> dict[str, np.ndarray]:
    """The scores of the units of each chosen axis, by its name.

    Raises:
        InputError: data misfits, an axis gives the criterion no ground, or scores are not finite.
    """
    criterion = CRITERIA[choice.criterion]
    statistics = Statistics()
    if criterion.needs:
        calibration.check_batches(batches, programs.input_specs(program), criterion.needs)
        statistics = calibration.collect(module, structure, batches, criterion.needs, loss=loss)
    evidence = Evidence(module, structure, statistics, choice.seed)
    scores = {info.name: criterion.score(evidence, info) for info in chosen}
    broken = next((name for name, score in scores.items() if not np.isfinite(score).all()), None)
    if broken:
        raise InputError(
            f"criterion {choice.criterion}: scores of {broken} are not finite; are the weights or the data NaN?"
        )
    return scores


def _allocate(
    structure: Structure,
    chosen: Sequence[AxisInfo],
    choice: Choice,
    goal: Goal | Speedup,
    symbols: dict,
    scores: Mapping[str, np.ndarray],
    curves: Curves | None,
) -> Widths:
    ladders = [allocate.ladder(info, choice.align, choice.floor) for info in chosen]
    count = allocate.measure_of(goal, structure, chosen, symbols)
    if choice.allocation == "uniform" and isinstance(goal, Ratio):
        return allocate.nearest(chosen, ladders, goal.share)
    if choice.allocation == "sensitivity":
        assert curves is not None
        if missing := [info.name for info in chosen if info.name not in curves]:
            raise InputError(
                f"curves: expected one for every chosen axis, {missing[0]} has none; measure this program again"
            )
        steps = allocate.sensitivity_order(chosen, ladders, curves, count)
    elif choice.allocation == "knapsack":
        steps = allocate.knapsack_order(chosen, ladders, scores, count)
    else:
        steps = allocate.ORDERS[choice.allocation](chosen, ladders, scores)
    return allocate.reach(chosen, steps, goal, count)


def strongest(scores: np.ndarray, count: int) -> np.ndarray:
    """The units with the highest scores, ascending; ties go to the earlier unit."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _cut(
    program: ExportedProgram,
    module: fx.GraphModule,
    structure: Structure,
    kept: Kept,
    scores: Mapping[str, np.ndarray],
) -> tuple[ExportedProgram, Report]:
    """Cut `module`, a copy of the program that `structure` describes, export it again, hold it against the masked one."""
    infos = [info for info in structure.axes if info.axis in kept]
    before = structure.count_parameters(), structure.count_macs(programs.per_example_symbols(program))
    _check_untouched(program, module)
    with programs.evaluating(module), _drawing_alike():
        expected = [surgery.run_masked(module, structure, kept, _pytree.tree_leaves(x)) for x in _probes(program)]
    surgery.cut(module, structure, kept)
    pruned = programs.reexport(module, program)
    error = _masked_error(expected, pruned, program, exact=not any(info.normalised for info in infos))
    recounted = infer(programs.graph_module(pruned, shared=True))
    report = Report(
        axes=tuple(
            AxisCut(
                info.name,
                info.kind,
                info.size,
                tuple(map(int, kept[info.axis])),
                float(scores[info.name].min()),
                float(scores[info.name].max()),
            )
            for info in infos
        ),
        frozen=tuple((info.name, info.frozen) for info in structure.axes if info.frozen),
        parameters_before=before[0],
        parameters_after=recounted.count_parameters(),
        macs_before=before[1],
        macs_after=recounted.count_macs(programs.per_example_symbols(pruned)),
        masked_error=error,
    )
    return pruned, report


def _probes(program: ExportedProgram) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The example inputs, at two batch sizes where the batch is dynamic."""
    sizes = (2, 3) if programs.has_dynamic_batch(program) else (None,)
    return [programs.batch_of_example(program, size) if size else programs.example(program) for size in sizes]


def _check_untouched(program: ExportedProgram, module: fx.GraphModule) -> None:
    """The graph in which axes were found, and from which the masked model is made, still computes what the program does."""
    original = program.module(check_guards=False)
    args, kwargs = _probes(program)[0]
    with programs.evaluating(module), _drawing_alike():
        seen = module(*args, **kwargs)
    with torch.no_grad(), _drawing_alike():
        expected = original(*args, **kwargs)
    # sums are made in another order, which shows in few bits; infinities are compared nowhere
    coarsest = max((torch.finfo(p.dtype).eps for p in module.parameters() if p.is_floating_point()), default=0.0)
    limit = max(MASKED_TOLERANCE, 4 * coarsest)
    difference = _difference(*(_pytree.tree_map_only(torch.Tensor, _finite, x) for x in (expected, seen)))
    if not difference <= limit:
        raise RuntimeError(f"the graph read for its axes differs from the program by {difference:.2e} (limit {limit})")


def _finite(tensor: torch.Tensor) -> torch.Tensor:
    return torch.nan_to_num(tensor, nan=0.0, posinf=0.0, neginf=0.0) if tensor.is_floating_point() else tensor


def _difference(expected: Any, seen: Any) -> float:
    """The largest difference of two outputs, relative to the largest value of each tensor; a NaN stays one."""
    pairs = zip(_pytree.tree_leaves(expected), _pytree.tree_leaves(seen), strict=True)
    errors = [
        float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))
        for a, b in pairs
        if isinstance(a, torch.Tensor) and a.is_floating_point()
    ]
    return float(np.max([0.0, *errors]))


@contextlib.contextmanager
def _drawing_alike() -> Iterator[None]:
    """Programs that draw random numbers (which patches to hide, a sample of a latent) draw the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _masked_error(
    masked: Sequence[Any], pruned: ExportedProgram, program: ExportedProgram, exact: bool
) -> float | None:
    """The largest relative difference of the cut program's outputs from what the masked dense one gave."""
    module = pruned.module(check_guards=False)
    with torch.no_grad(), _drawing_alike():
        seen = [module(*args, **kwargs) for args, kwargs in _probes(program)]
    worst = float(np.max([_difference(a, b) for a, b in zip(masked, seen, strict=True)]))
    if exact and not worst <= MASKED_TOLERANCE:
        raise RuntimeError(
            f"the cut program differs from the masked dense one by {worst:.2e} (limit {MASKED_TOLERANCE})"
        )
    return worst if exact else None


def _check_counts(report: Report, structure: Structure, symbols: dict, widths: Widths, goal: Goal | Speedup) -> None:
    """The artifact has what the layouts promised."""
    by_macs = isinstance(goal, Macs)
    counted = report.macs_after if by_macs else report.parameters_after
    planned = structure.count_macs(symbols, widths) if by_macs else structure.count_parameters(widths)
    if counted != planned:
        raise RuntimeError(f"the exported program counts {counted:,} where the cut planned {planned:,}")
