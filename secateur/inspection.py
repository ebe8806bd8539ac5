"""What a program is made of, for people: its axes with their cost, its branches, and why the rest is frozen."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from torch.export import ExportedProgram

from secateur import branches
from secateur import program as programs
from secateur.axes.infer import AxisInfo, infer
from secateur.tables import as_text


@dataclass(frozen=True)
class Axis:
    """One axis: how many units, what they weigh together, which weights carry it, and why it is frozen if it is."""

    name: str
    kind: str
    size: int
    parameters: int
    macs: int
    normalised: bool
    weights: tuple[str, ...]
    frozen: str | None


@dataclass(frozen=True)
class Branch:
    """What `drop_branches` may remove whole, and what goes then. The axes that live in it alone are what `prune` weighs it by;
    one without any is left to `drop_branches`."""

    name: str
    kind: str
    parameters: int
    macs: int
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """Counts are of distinct parameters, and of multiply-accumulates for one example."""

    parameters: int
    macs: int
    axes: tuple[Axis, ...]
    branches: tuple[Branch, ...]

    def __str__(self) -> str:
        free = Table("axis", "kind", "units", "parameters", "MACs", title="what can be cut", title_justify="left")
        frozen = Table("axis", "units", "why not", title="frozen", title_justify="left")
        for axis in self.axes:
            if axis.frozen is None:
                share = [f"{part / max(whole, 1):.1%}" for part, whole in self._shares(axis)]
                mark = " (normalised)" if axis.normalised else ""
                free.add_row(axis.name, axis.kind + mark, f"{axis.size:,}", *share)
            else:
                frozen.add_row(axis.name, f"{axis.size:,}", axis.frozen)
        title = "what can be dropped whole"
        whole = Table("branch", "kind", "parameters", "MACs", "axes inside", title=title, title_justify="left")
        for branch in self.branches:
            share = [f"{part / max(all_, 1):.1%}" for part, all_ in self._shares(branch)]
            whole.add_row(branch.name, branch.kind, *share, f"{len(branch.axes)}")
        return f"{as_text(free, whole, frozen)}{self.parameters:,} parameters, {self.macs:,} MACs per example"

    def _shares(self, part: Axis | Branch) -> list[tuple[int, int]]:
        return [(part.parameters, self.parameters), (part.macs, self.macs)]


def inspect(program: ExportedProgram) -> Inspection:
    """Everything that can be cut from a program or dropped whole, and the reason for what cannot."""
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    symbols = programs.per_example_symbols(program)

    def summary(info: AxisInfo) -> Axis:
        weights = tuple(dict.fromkeys(name for name, _ in info.members if name in structure.parameters))
        carried = structure.carried_by(info.axis, symbols)
        return Axis(info.name, info.kind, info.size, *carried, info.normalised, weights, info.frozen)

    def whole(branch: branches.Branch) -> Branch:
        left = branches.without(structure, branches.gone(module, [branch]))
        inside = tuple(info.name for info in branches.held_by(structure, left))
        macs = structure.count_macs(symbols) - left.count_macs(symbols)
        return Branch(branch.name, branch.kind, branch.parameters, macs, inside)

    return Inspection(
        parameters=structure.count_parameters(),
        macs=structure.count_macs(symbols),
        axes=tuple(map(summary, structure.axes)),
        branches=tuple(map(whole, branches.find(module, structure))),
    )
