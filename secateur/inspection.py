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
    """What `drop_branches` may remove whole."""

    name: str
    kind: str
    parameters: int


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
        whole = Table("branch", "kind", "parameters", title="what can be dropped whole", title_justify="left")
        for branch in self.branches:
            whole.add_row(branch.name, branch.kind, f"{branch.parameters:,}")
        return f"{as_text(free, whole, frozen)}{self.parameters:,} parameters, {self.macs:,} MACs per example"

    def _shares(self, axis: Axis) -> list[tuple[int, int]]:
        return [(axis.parameters, self.parameters), (axis.macs, self.macs)]


def inspect(program: ExportedProgram) -> Inspection:
    """Everything that can be cut from a program or dropped whole, and the reason for what cannot."""
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    symbols = programs.per_example_symbols(program)

    def summary(info: AxisInfo) -> Axis:
        weights = tuple(dict.fromkeys(name for name, _ in info.members if name in structure.parameters))
        carried = structure.carried_by(info.axis, symbols)
        return Axis(info.name, info.kind, info.size, *carried, info.normalised, weights, info.frozen)

    found = branches.find(module, structure)
    return Inspection(
        parameters=structure.count_parameters(),
        macs=structure.count_macs(symbols),
        axes=tuple(map(summary, structure.axes)),
        branches=tuple(Branch(branch.name, branch.kind, branch.parameters) for branch in found),
    )
