"""Removes whole branches and layers: which ones matter least, and the cut itself with its report."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import fx
from torch.export import ExportedProgram
from torch.nn import functional

from secateur import allocate
from secateur import branches as graph_branches
from secateur import calibration as calibrating
from secateur import program as programs
from secateur.allocate import Goal
from secateur.axes.infer import Structure, infer
from secateur.branches import KINDS, Branch, innermost
from secateur.calibration import Batch
from secateur.errors import InputError
from secateur.tables import as_text

CRITERIA = ("influence", "variance", "last", "random")


@dataclass(frozen=True)
class DepthReport:
    """What was dropped; scores by branch name, of every candidate. Counts are of the program exported again."""

    dropped: tuple[str, ...]
    scores: tuple[tuple[str, float], ...]
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int

    def __str__(self) -> str:
        table = Table("branch", "score", "", title="branches", title_justify="left")
        for name, score in self.scores:
            table.add_row(name, f"{score:.4g}", "dropped" if name in self.dropped else "")
        return (
            f"{as_text(table)}parameters {self.parameters_before:,} -> {self.parameters_after:,}"
            f"\nMACs {self.macs_before:,} -> {self.macs_after:,}"
        )


def drop_branches(
    program: ExportedProgram,
    *,
    share: float | None = None,
    goal: Goal | None = None,
    kind: str = "layer",
    criterion: str = "influence",
    calibration: Sequence[Batch] = (),
    seed: int = 0,
) -> tuple[ExportedProgram, DepthReport]:
    """Drop the least important branches of one kind: the round(share n) of them, or the fewest that reach a goal. The input
    program is not modified.

    Raises:
        InputError: no branch of this kind, a share that rounds to none or all, a goal out of reach, an unknown name, missing
            data, or not one of share and goal.
    """
    _check(share, goal, criterion, calibration, programs.input_specs(program))
    programs.check_supported(program)
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    candidates = _candidates(module, structure, kind)
    scores = score(module, candidates, criterion, calibration, seed)
    ranked = sorted(range(len(candidates)), key=lambda i: (scores[i], -i))  # of equals the later goes
    if goal is None:
        count = round((share or 0.0) * len(candidates))
        if not 0 < count <= _droppable(candidates):
            raise InputError(
                f"layers: expected a share of {len(candidates)} branches of kind {kind} that drops at least one and leaves "
                f"at least one, got {share} ({count})"
            )
    else:
        count = _fewest(program, structure, goal, kind, ranked[: _droppable(candidates)])
    dropped = sorted(ranked[:count])
    symbols = programs.per_example_symbols(program)
    before = structure.count_parameters(), structure.count_macs(symbols)
    graph_branches.drop(module, [candidates[i] for i in dropped])
    shallow = programs.reexport(module, program)
    after = infer(programs.graph_module(shallow, shared=True))
    report = DepthReport(
        dropped=tuple(candidates[i].name for i in dropped),
        scores=tuple((b.name, s) for b, s in zip(candidates, scores, strict=True)),
        parameters_before=before[0],
        parameters_after=after.count_parameters(),
        macs_before=before[1],
        macs_after=after.count_macs(programs.per_example_symbols(shallow)),
    )
    if left := [n for i in dropped for n in candidates[i].tensors if n in shallow.state_dict]:
        raise RuntimeError(f"the branches that were dropped left {left[0]} behind")
    return shallow, report


def usual_kind(program: ExportedProgram) -> str:
    """The kind of branch that whole depth is made of: layers where there are any, else the blocks of a residual network."""
    module = programs.graph_module(program, shared=True)
    return "layer" if any(b.kind == "layer" for b in graph_branches.find(module, infer(module))) else "block"


def reachable(program: ExportedProgram, kind: str, goal: Goal) -> float:
    """The share that a goal of this sort can ask for at most: all branches of this kind dropped, the largest one where one stays.

    Raises:
        InputError: no branch of this kind.
    """
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    candidates = _candidates(module, structure, kind)
    smallest = sorted(range(len(candidates)), key=lambda i: candidates[i].parameters)[: _droppable(candidates)]
    whole = _counted(program, structure, goal)
    return 1 - _without(program, kind, smallest, goal) / whole if whole else 0.0


def _fewest(program: ExportedProgram, structure: Structure, goal: Goal, kind: str, ranked: Sequence[int]) -> int:
    """How many of the ranked branches go at least so that the goal is reached."""
    whole = _counted(program, structure, goal)
    limit = (1 - goal.share) * whole

    def left(count: int) -> int:
        return _without(program, kind, ranked[:count], goal)

    if not whole or left(len(ranked)) > limit:
        most = 1 - left(len(ranked)) / whole if whole else 0.0
        raise InputError(
            f"goal: {goal} is out of reach: expected a share of at most {most:.3f}, which {len(ranked)} branches of kind {kind} "
            "give; ask for less or allow another kind"
        )
    return 1 + bisect.bisect_left(range(1, len(ranked)), True, key=lambda count: left(count) <= limit)


def _without(program: ExportedProgram, kind: str, dropped: Sequence[int], goal: Goal) -> int:
    """What the goal counts of a program without some of its branches of a kind."""
    module = programs.graph_module(program, shared=True)
    candidates = _candidates(module, infer(module), kind)
    graph_branches.drop(module, [candidates[i] for i in dropped])
    return _counted(program, infer(module), goal)


def _counted(program: ExportedProgram, structure: Structure, goal: Goal) -> int:
    return allocate.measure_of(goal, structure, (), programs.per_example_symbols(program))({})


def _check(share: float | None, goal: Goal | None, criterion: str, batches: Sequence[Batch], specs: dict) -> None:
    if criterion not in CRITERIA:
        raise InputError(f"criterion: expected one of {', '.join(CRITERIA)}, got {criterion!r}")
    asked = share if goal is None else goal.share
    if asked is None or (share is not None and goal is not None):
        raise InputError(f"layers: expected either a share or a goal, got {share} and {goal}")
    if not 0 < asked < 1:
        raise InputError(f"layers: expected a share between 0 and 1 (exclusive), got {asked}")
    if criterion in ("influence", "variance"):
        calibrating.check_batches(batches, specs)


def _candidates(module: fx.GraphModule, structure: Structure, kind: str) -> list[Branch]:
    """The branches of a kind, in the order of the program.

    Raises:
        InputError: there is none.
    """
    if kind not in KINDS:
        raise InputError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    found = graph_branches.find(module, structure)
    candidates = innermost([b for b in found if b.kind == kind])
    if not candidates:
        kinds = ", ".join(sorted({b.kind for b in found}))
        raise InputError(f"kind: expected branches of kind {kind} in the program, found {kinds or 'none of any kind'}")
    return candidates


def _droppable(candidates: Sequence[Branch]) -> int:
    """How many of them may go: of layers one stays."""
    return len(candidates) - (candidates[0].kind == "layer")


def score(
    module: fx.GraphModule, candidates: Sequence[Branch], criterion: str, batches: Sequence[Batch], seed: int
) -> list[float]:
    """The importance of each branch.

    influence: 1 - mean cosine of entry and exit over positions ("block influence", Men et al., "ShortGPT", 2024).
    variance: trace Cov(exit - entry) / trace Cov(exit) over positions: what the branch adds to the output's variance.
    last: later branches first to go (Sajjad et al., "Poor Man's BERT", 2023). random: the control.
    """
    if criterion == "last":
        return [float(len(candidates) - i) for i in range(len(candidates))]
    if criterion == "random":
        return torch.rand(len(candidates), generator=torch.Generator().manual_seed(seed)).tolist()
    sums: list[list[torch.Tensor]] = [[] for _ in candidates]
    watched = {node for branch in candidates for node in (branch.entry, branch.exit)}
    with programs.evaluating(module):
        for batch in batches:
            seen = calibrating.values_of(module, watched, batch[:-1])
            for branch, parts in zip(candidates, sums, strict=True):
                entry, exit_ = (_by_position(branch, seen[node]) for node in (branch.entry, branch.exit))
                parts.append(_influence_sums(entry, exit_) if criterion == "influence" else _moments(entry, exit_))
    finish = _influence if criterion == "influence" else _variance
    return [finish(torch.stack(parts).sum(0)) for parts in sums]


def _by_position(branch: Branch, value: torch.Tensor) -> torch.Tensor:
    """[positions, features], in double precision; convolutions keep their features in the second dimension."""
    convolved = branch.kind == "block" or value.dim() == 4
    return (value.movedim(1, -1) if convolved else value).flatten(0, -2).double()


def _influence_sums(entry: torch.Tensor, exit_: torch.Tensor) -> torch.Tensor:
    """[2]: the sum of the cosines and their number."""
    cosines = functional.cosine_similarity(entry, exit_, dim=1)
    return torch.tensor([float(cosines.sum()), float(len(cosines))], dtype=torch.float64)


def _influence(sums: torch.Tensor) -> float:
    return float(1 - sums[0] / sums[1])


def _moments(entry: torch.Tensor, exit_: torch.Tensor) -> torch.Tensor:
    """[2, 3, features]: number, sum and sum of squares of what the branch adds, and of the exit."""
    return torch.stack([torch.stack([torch.ones_like(x), x, x.square()]).sum(1) for x in (exit_ - entry, exit_)])


def _variance(moments: torch.Tensor) -> float:
    count, total, squares = moments.unbind(1)
    added, out = (squares / count - (total / count) ** 2).sum(1).tolist()
    return added / max(out, 1e-30)
