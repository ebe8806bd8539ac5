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

from secateur import allocate, branches, calibration, knapsack, surgery
from secateur import program as programs
from secateur.allocate import Curves, Goal, KvCache, Macs, Ratio, Speedup
from secateur.axes.infer import KINDS, AxisInfo, Structure, infer
from secateur.axes.terms import Kept, Widths
from secateur.branches import Droppable
from secateur.calibration import Batch, Loss, Statistics, classification_loss
from secateur.errors import InputError, NothingRemovedError
from secateur.importance import CRITERIA, Evidence
from secateur.tables import as_text

DEFAULT_KINDS = ("head", "kv_group", "q_per_group", "channel", "width")
Goes = tuple[Kept, Sequence[Droppable]]  # the units that stay of each axis that is cut, and the branches that do not
MASKED_TOLERANCE = 1e-5  # relative to the largest output
EXPECTED_REASONS = ("is a graph input", "is a graph output")  # every program has them: an error names others first


@dataclass(frozen=True)
class Choice:
    """Which axes may be cut and which branches dropped, and by what. `include` and `exclude` are globs on their names
    (`module.path:kind`); a branch stays where an axis inside is excluded."""

    kinds: tuple[str, ...] = DEFAULT_KINDS
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    criterion: str = "l2"
    allocation: str = "uniform"
    align: int = 1
    floor: float = 0.0  # share of every axis that stays, and of the branches of every kind
    seed: int = 0


@dataclass(frozen=True)
class AxisCut:
    """What happened to one axis: the units that stayed; scores are the lowest and the highest of all its units.

    A branch that was dropped is an axis of one unit that did not stay, its score the importance of all inside, in units of
    their axes' means.
    """

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
        """The units that stayed, by axis name, none of a dropped branch: what `replay` takes."""
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
    sizes; the goal is reached within one alignment step; the dense program with the same units zeroed and the same branches
    bypassed gives the same outputs, unless a normalisation runs over a cut axis.

    Args:
        kinds: of axes, and of branches (attention, mlp, block, layer), which allocation "knapsack" weighs against units.
        calibration: batches of (inputs..., target), for the criteria that look at activations or gradients.
        curves: for allocation "sensitivity", what `secateur.sensitivity` measured.

    Raises:
        InputError: nothing can be cut, the goal cannot be reached, a name is unknown, or data is missing or misfits.
    """
    choice = Choice(tuple(kinds), tuple(include), tuple(exclude), criterion, allocation, align, floor, seed)
    _check_arguments(goal, choice, calibration, curves)
    programs.check_supported(program)
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    chosen, whole = _carriers(goal, structure, *choose(module, structure, choice))
    symbols = programs.per_example_symbols(program)
    weighed = {info.axis: info for info in (*chosen, *(info for each in whole for info in each.inside))}
    scores = score_units(program, module, structure, list(weighed.values()), choice, calibration, loss)
    widths = _allocate(structure, (chosen, whole), choice, goal, symbols, scores, curves)
    dropped = [each for each in whole if widths[each.info.axis] == 0]
    lost = {info.axis for each in dropped for info in each.inside}
    kept = {
        info.axis: strongest(scores[info.name], widths[info.axis])
        for info in chosen
        if widths[info.axis] < info.size and info.axis not in lost
    }
    if not kept and not dropped:
        raise NothingRemovedError(
            f"goal: {goal} would remove nothing from {len(chosen)} axes at align {choice.align}; ask for more or lower it"
        )
    scores |= {each.info.name: np.array([knapsack.held(each, scores)]) for each in dropped}
    left = branches.without(structure, branches.gone(module, [each.branch for each in dropped]))
    pruned, report = _cut(program, module, structure, (kept, dropped), scores)
    _check_counts(report, left, symbols, widths, goal)
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
    units, dropped = split(module, structure, kept)
    check_kept(structure.prunable, units)
    by_name = {info.name: info for info in structure.prunable}
    chosen = {by_name[name].axis: np.array(each, dtype=np.int64) for name, each in units.items()}
    scores = {info.name: np.zeros(info.size) for info in (*structure.prunable, *(each.info for each in dropped))}
    return _cut(program, module, structure, (chosen, dropped), scores)


def split(
    module: fx.GraphModule, structure: Structure, kept: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Sequence[int]], list[Droppable]]:
    """What a report keeps, as units by axis name and the branches that were dropped.

    Raises:
        InputError: a branch that this program does not have.
    """
    kinds = {name: name.rpartition(":")[2] for name, units in kept.items() if not units}
    names = {name for name, kind in kinds.items() if kind in branches.KINDS}
    found = branches.droppable(module, structure, {kinds[name] for name in names}) if names else []
    if missing := names - {each.info.name for each in found}:
        raise InputError(
            f"kept: expected branches of this program, got {min(missing)!r}; it is not the model that was cut"
        )
    units = {name: each for name, each in kept.items() if name not in names}
    return units, [each for each in found if each.info.name in names]


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
    module = programs.graph_module(program, shared=True)
    choose(module, infer(module), choice)


def reachable(program: ExportedProgram, choice: Choice, goal: Goal | Speedup) -> float:
    """The share that a goal of this sort can ask for at most: every axis that these choices allow at its narrowest, and as many
    branches dropped.

    Raises:
        InputError: nothing can be cut.
    """
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    chosen, whole = _carriers(goal, structure, *choose(module, structure, choice))
    count = allocate.measure_of(goal, structure, chosen, programs.per_example_symbols(program), whole)
    items = _items(chosen, whole, choice, {})
    narrowest = {info.axis: rungs[-1] for info, rungs in zip(chosen, items.ladders, strict=True)}
    gone = {whole[number].info.axis: 0 for number in knapsack.furthest(items, count)}
    return 1 - count(narrowest | gone) / count({})


def _carriers(
    goal: Goal | Speedup, structure: Structure, chosen: list[AxisInfo], whole: list[Droppable]
) -> tuple[list[AxisInfo], list[Droppable]]:
    """The axes and branches that carry what the goal counts, where not every one does.

    Raises:
        InputError: none of them does.
    """
    if not isinstance(goal, KvCache):
        return chosen, whole
    dense = structure.count_cache()
    carriers = [info for info in chosen if structure.count_cache({info.axis: info.minimum}) < dense]
    attending = [each for each in whole if branches.without(structure, each.nodes).count_cache() < dense]
    if not carriers and not attending:
        raise InputError(
            f"goal: {goal} counts the keys and values of attention, and none of the {len(chosen)} axes that may be cut carries them; "
            f"allow kinds such as kv_group, head or v_width{'' if dense else ', in a program with attention'}"
        )
    return carriers, attending


def needs_data(choice: Choice) -> bool:
    """Whether `prune` needs calibration batches for these choices."""
    return bool(CRITERIA[choice.criterion].needs) or choice.allocation == "sensitivity"


def choose(module: fx.GraphModule, structure: Structure, choice: Choice) -> tuple[list[AxisInfo], list[Droppable]]:
    """The axes that may be cut, and the branches that may be dropped.

    Raises:
        InputError: there is neither, branches were asked for of which the program has none or one holds the other, a glob
            matches nothing, or `include` names what cannot be cut.
    """
    asked = [kind for kind in branches.KINDS if kind in choice.kinds]
    whole = branches.droppable(module, structure, asked) if asked else []
    if asked and not whole:
        found = branches.find(module, structure)
        kinds = sorted({branch.kind for branch in found})
        none = (
            "with axes of their own, by which they could be weighed"
            if set(asked) & set(kinds)
            else f"of {', '.join(asked)}"
        )
        raise InputError(
            f"kinds: expected branches {none}, found {', '.join(kinds) or 'none of any kind'}; `secateur inspect` lists them"
        )
    names = [each.info.name for each in whole]
    whole = [
        each
        for each in whole
        if _is_chosen(each.info.name, choice)
        and not any(fnmatch.fnmatchcase(info.name, p) for info in each.inside for p in choice.exclude)
    ]
    return choose_axes(structure, choice, names, needed=not whole), whole


def _is_chosen(name: str, choice: Choice) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in choice.include) and not any(
        fnmatch.fnmatchcase(name, p) for p in choice.exclude
    )


def choose_axes(
    structure: Structure, choice: Choice, beside: Sequence[str] = (), needed: bool = True
) -> list[AxisInfo]:
    """The axes that may be cut; globs may also match the names of branches `beside` them.

    Raises:
        InputError: there is none although one is `needed`, a glob matches nothing, or `include` names what cannot be cut.
    """
    _check_globs(structure, choice, beside)
    chosen = [info for info in structure.prunable if info.kind in choice.kinds and _is_chosen(info.name, choice)]
    if needed and not chosen:
        found = sorted({info.kind for info in structure.prunable})
        examples = {info.frozen: info.name for info in reversed(structure.axes) if info.frozen}
        reasons = sorted(examples, key=lambda reason: (reason in EXPECTED_REASONS, reason))[:5]
        raise InputError(
            f"kinds: expected at least one axis of {', '.join(choice.kinds)} that can be cut and is not excluded; the program has "
            f"{', '.join(found) or 'none'}; frozen: {'; '.join(f'{examples[r]} {r}' for r in reasons) or 'none'}"
        )
    return chosen


def _check_globs(structure: Structure, choice: Choice, beside: Sequence[str]) -> None:
    for pattern in (*choice.include, *choice.exclude):
        if any(fnmatch.fnmatchcase(name, pattern) for name in beside):
            continue
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
    if unknown := set(choice.kinds) - {*KINDS, *branches.KINDS}:
        raise InputError(
            f"kinds: expected some of {', '.join((*KINDS, *branches.KINDS))}, got {', '.join(sorted(unknown))}"
        )
    for setting, value, known in (
        ("criterion", choice.criterion, tuple(CRITERIA)),
        ("allocation", choice.allocation, allocate.ALLOCATIONS),
    ):
        if value not in known:
            raise InputError(f"{setting}: expected one of {', '.join(known)}, got {value!r}")
    if (whole := sorted(set(choice.kinds) & set(branches.KINDS))) and choice.allocation != "knapsack":
        raise InputError(
            f"allocation: expected knapsack, which alone weighs branches ({', '.join(whole)}) against units, got "
            f"{choice.allocation}; set it, or leave those kinds out"
        )
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


def _items(
    chosen: Sequence[AxisInfo], whole: Sequence[Droppable], choice: Choice, scores: Mapping[str, np.ndarray]
) -> knapsack.Items:
    ladders = [allocate.ladder(info, choice.align, choice.floor) for info in chosen]
    return knapsack.Items(chosen, ladders, scores, whole, knapsack.most_dropped(whole, choice.floor))


def _allocate(
    structure: Structure,
    may_go: tuple[Sequence[AxisInfo], Sequence[Droppable]],
    choice: Choice,
    goal: Goal | Speedup,
    symbols: dict,
    scores: Mapping[str, np.ndarray],
    curves: Curves | None,
) -> Widths:
    chosen, whole = may_go
    items = _items(chosen, whole, choice, scores)
    count = allocate.measure_of(goal, structure, chosen, symbols, whole)
    if choice.allocation == "uniform" and isinstance(goal, Ratio):
        return allocate.nearest(chosen, items.ladders, goal.share)
    if choice.allocation == "knapsack":
        return knapsack.knapsack(items, goal, count)
    if choice.allocation == "sensitivity":
        assert curves is not None
        if missing := [info.name for info in chosen if info.name not in curves]:
            raise InputError(
                f"curves: expected one for every chosen axis, {missing[0]} has none; measure this program again"
            )
        steps = allocate.sensitivity_order(chosen, items.ladders, curves, count)
    else:
        steps = allocate.ORDERS[choice.allocation](chosen, items.ladders, scores)
    return allocate.reach(chosen, items.ladders, steps, goal, count)


def strongest(scores: np.ndarray, count: int) -> np.ndarray:
    """The units with the highest scores, ascending; ties go to the earlier unit."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _cut(
    program: ExportedProgram,
    module: fx.GraphModule,
    structure: Structure,
    goes: Goes,
    scores: Mapping[str, np.ndarray],
) -> tuple[ExportedProgram, Report]:
    """Cut `module`, a copy of the program that `structure` describes, export it again, hold it against the masked one."""
    kept, dropped = goes
    bridged = {each.branch.exit: each.branch.entry for each in dropped}
    infos = [info for info in structure.axes if info.axis in kept]
    before = structure.count_parameters(), structure.count_macs(programs.per_example_symbols(program))
    _check_untouched(program, module)
    with programs.evaluating(module), _drawing_alike():
        expected = [
            surgery.run_masked(module, structure, kept, _pytree.tree_leaves(x), bridged) for x in _probes(program)
        ]
    surgery.cut(module, structure, kept)
    branches.drop(module, [each.branch for each in dropped])
    pruned = programs.reexport(module, program)
    error = _masked_error(expected, pruned, program, exact=not any(info.normalised for info in infos))
    recounted = infer(programs.graph_module(pruned, shared=True))
    report = Report(
        axes=tuple(
            AxisCut(
                info.name,
                info.kind,
                info.size,
                tuple(map(int, kept.get(info.axis, ()))),
                float(scores[info.name].min()),
                float(scores[info.name].max()),
            )
            for info in (*infos, *(each.info for each in dropped))
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


def _check_counts(report: Report, left: Structure, symbols: dict, widths: Widths, goal: Goal | Speedup) -> None:
    """The artifact has what the layouts promised, those that are left when branches have gone."""
    by_macs = isinstance(goal, Macs)
    counted = report.macs_after if by_macs else report.parameters_after
    planned = left.count_macs(symbols, widths) if by_macs else left.count_parameters(widths)
    if counted != planned:
        raise RuntimeError(f"the exported program counts {counted:,} where the cut planned {planned:,}")
