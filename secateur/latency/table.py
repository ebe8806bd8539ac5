"""A latency table: every operation of a program timed on the target on a grid of widths, and what that predicts.

    predicted(widths) = constant + scale x sum of the operations' times at these widths

Between the points of the grid times are interpolated linearly in each group of axes, which is exact for a time that is a sum
of terms such as multiply-accumulates (in x out) and bytes read and written (in, out). Lookup tables of this kind are
those of NetAdapt (Yang et al., ECCV 2018, section 3.2) and of block-wise pruning for a latency (Kurtic et al., ZipLM, NeurIPS 2023).
A branch that is dropped takes its part of every operation with it; what is left of one is timed as an operation of its own.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from secateur import allocate, branches
from secateur import program as programs
from secateur.axes.infer import AxisInfo, Structure, infer
from secateur.axes.terms import Axis, Widths
from secateur.branches import Droppable
from secateur.errors import InputError
from secateur.explain.profile import check_target
from secateur.latency import timing
from secateur.latency.nodes import Sketch, Writer
from secateur.latency.operations import Operation, left_of, operations
from secateur.runtime import Target

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)  # of each axis left; the last means the narrowest width that is allowed
ALIGN = 8


@dataclass(frozen=True)
class Timed:
    """An operation with its times in seconds on a grid: of each group of axes, by name with its dense size, how much is left,
    from 0 to 1 and ascending.

    `without` are the branches that take a part of it with them, by name, and what it is without each of them.
    """

    name: str
    groups: tuple[Mapping[str, int], ...]
    grid: tuple[np.ndarray, ...]
    seconds: np.ndarray
    without: Mapping[str, Timed] = field(default_factory=dict)
    _known: dict[tuple[float, ...], float] = field(default_factory=dict, repr=False, compare=False)

    def at(self, widths: Mapping[str, int]) -> float:
        """Seconds at these widths; a branch is dropped at width 0, and what several take adds up."""
        whole = self._whole(widths)
        left = [part.at(widths) for name, part in self.without.items() if widths.get(name, 1) == 0]
        return max(whole - sum(max(whole - part, 0.0) for part in left), 0.0)  # a part takes no longer, but for noise

    def _whole(self, widths: Mapping[str, int]) -> float:
        at = tuple(
            sum(widths.get(name, size) for name, size in group.items()) / sum(group.values()) for group in self.groups
        )
        if at not in self._known:  # an allocation asks for many widths that differ in one axis
            self._known[at] = float(interpolated(self.grid, self.seconds, at))
        return self._known[at]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.name,
            "groups": [dict(group) for group in self.groups],
            "grid": [points.tolist() for points in self.grid],
            "seconds": self.seconds.tolist(),
            "without": {name: part.to_json() for name, part in self.without.items()},
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Timed:
        """What `to_json` gave."""
        without = {name: cls.from_json(part) for name, part in said["without"].items()}
        grid = tuple(map(np.array, said["grid"]))
        return cls(said["name"], tuple(said["groups"]), grid, np.array(said["seconds"]), without)


def interpolated(grid: Sequence[np.ndarray], values: np.ndarray, at: Sequence[float]) -> np.ndarray:
    """Values on a grid of ascending points, linearly in each dimension between them; beyond its ends what they are there."""
    for points, x in zip(grid, at, strict=True):
        x = min(max(x, points[0]), points[-1])
        above = min(max(int(np.searchsorted(points, x)), 1), len(points) - 1)
        below = max(above - 1, 0)
        weight = (x - points[below]) / (points[above] - points[below]) if above > below else 0.0
        values = values[below] * (1 - weight) + values[above] * weight
    return values


@dataclass
class _Last:
    """The widths that were asked for last, and the seconds of each operation at them."""

    widths: dict[str, int]
    seconds: list[float]


@dataclass(frozen=True)
class LatencyTable:
    """What a program takes on a target at any widths of the axes, and without any of the branches, it was measured for."""

    timed: tuple[Timed, ...]
    sizes: Mapping[str, int]  # of the dense axes, by name
    branches: Mapping[str, tuple[str, ...]]  # the parameters that each takes with it, by name
    constant: float  # seconds
    scale: float
    untimed: tuple[str, ...]  # operators without a timing model: part of the constant

    def predict(self, widths: Mapping[str, int]) -> float:
        """Seconds of one request with these units left per axis, by name, 0 for a branch that is dropped; what is not named is
        dense."""
        if unknown := set(widths) - set(self.sizes) - set(self.branches):
            raise InputError(
                f"widths: expected axes that the latency table was measured for, got {sorted(unknown)[0]}; measure it "
                "again with the kinds that are cut"
            )
        last = self._last
        changed = [name for name in self._carriers if last.widths.get(name) != widths.get(name)]
        for number in {number for name in changed for number in self._carriers[name]}:
            last.seconds[number] = self.timed[number].at(widths)
        last.widths = dict(widths)
        return self.constant + self.scale * sum(last.seconds)

    @functools.cached_property
    def _carriers(self) -> dict[str, list[int]]:
        """The operations, by number, whose time depends on an axis or a branch, by its name."""
        carriers: dict[str, list[int]] = {}
        for number, timed in enumerate(self.timed):
            for name in {*timed.without, *(name for group in timed.groups for name in group)}:
                carriers.setdefault(name, []).append(number)
        return carriers

    @functools.cached_property
    def _last(self) -> _Last:
        """An allocation asks for many widths that differ in one axis: the other operations take what they took."""
        return _Last({}, [timed.at({}) for timed in self.timed])

    def to_json(self) -> dict[str, Any]:
        """As plain values: where a program is cut, nothing needs to be timed again."""
        return {
            "timed": [one.to_json() for one in self.timed],
            "sizes": dict(self.sizes),
            "branches": {name: list(parameters) for name, parameters in self.branches.items()},
            "constant": self.constant,
            "scale": self.scale,
            "untimed": list(self.untimed),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> LatencyTable:
        """What `to_json` gave."""
        branches = {name: tuple(parameters) for name, parameters in said["branches"].items()}
        timed = tuple(map(Timed.from_json, said["timed"]))
        return cls(timed, said["sizes"], branches, said["constant"], said["scale"], tuple(said["untimed"]))


def measure(
    program: ExportedProgram,
    target: Target,
    *,
    dense: float,
    kinds: Sequence[str],
    align: int = ALIGN,
    folder: str | Path | None = None,
    on_operation: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> LatencyTable:
    """Time the operations of a program on a target, at aligned widths of its axes of some kinds.

    Operations that are equal are timed once. Where every operator that carries an axis is timed, the dense program's own
    latency fixes the scale: what an operation takes alone, its data warm in the caches, is somewhat less than what it takes
    among others. Where one is not, it is the constant that is left.

    Args:
        dense: seconds of one request to the dense program on this target, as `secateur.measure.latency` finds them.
        kinds: of the axes that will be cut and of the branches that may be dropped; others stay as they are.
        align: the widths that are timed are multiples of it, where the kind has a vector width to fill.
        folder: of the times measured so far, one JSON file per target; another program finds there what it shares with this one.
        on_operation: called with an operation's name, how many are timed and how many there are.

    Raises:
        InputError: the target's provider does not tell the time of a kernel, the folder's file is not one of these, or a branch
            of one kind holds one of another.
    """
    check_target(target)
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    infos = {info.axis: info for info in structure.prunable if info.kind in kinds}
    symbols = programs.per_example_symbols(program, target.batch)
    times = Times(folder, target)
    found = operations(structure, infos)
    droppable = branches.droppable(module, structure, kinds)
    timed: list[Timed] = []
    untimed: list[str] = []
    for done, operation in enumerate(found, 1):
        at_widths = functools.partial(_timed, structure, symbols, times, infos, align)
        timed.append(_with_branches(operation, structure, infos, droppable, at_widths))
        untimed += operation.names_of(_written(structure, symbols, operation, {}).untimed, structure, infos)
        on_operation(operation.name, done, len(found))
    total = sum(one.at({}) for one in timed)
    constant = max(dense - total, 0.0) if untimed else 0.0
    scale = (dense - constant) / total if total else 1.0
    return LatencyTable(
        timed=tuple(timed),
        sizes={info.name: info.size for info in infos.values()},
        branches={
            each.info.name: tuple(name for name in each.branch.tensors if name in structure.parameters)
            for each in droppable
        },
        constant=constant,
        scale=scale,
        untimed=tuple(untimed),
    )


def _with_branches(
    operation: Operation,
    structure: Structure,
    infos: Mapping[Axis, AxisInfo],
    droppable: Sequence[Droppable],
    timed: Callable[[Operation], Timed],
) -> Timed:
    """An operation timed, and what is left of it without each of the branches that take a part of it."""
    without = {
        each.info.name: timed(left_of(operation, structure, infos, each.nodes))
        for each in droppable
        if not each.nodes.isdisjoint(operation.chain)
    }
    return replace(timed(operation), without=without)


def _timed(
    structure: Structure, symbols: dict, times: Times, infos: Mapping[Axis, AxisInfo], align: int, operation: Operation
) -> Timed:
    write = functools.partial(_written, structure, symbols, operation)
    return _on_grid(operation, infos, align, functools.partial(_seconds, times, write))


def _written(structure: Structure, symbols: dict, operation: Operation, widths: Widths) -> Writer:
    """A writer that has written the operation at these widths."""
    writer = Writer(structure, symbols, widths)
    writer.write(operation.chain)
    return writer


def _seconds(times: Times, write: Callable[[Widths], Writer], widths: Widths) -> float:
    return times.of(write(widths).sketch)


def _on_grid(
    operation: Operation, infos: Mapping[Axis, AxisInfo], align: int, seconds_at: Callable[[Widths], float]
) -> Timed:
    """Time an operation at every combination of its groups' widths. A narrower one never costs more than a wider one."""
    rungs = [_rungs([infos[axis] for axis in group], align) for group in operation.groups]
    grid = tuple(np.array([operation.coordinates(widths)[i] for widths in chosen]) for i, chosen in enumerate(rungs))
    times = np.empty([len(chosen) for chosen in rungs])
    for index in np.ndindex(*times.shape):
        widths = {axis: width for i, chosen in zip(index, rungs, strict=True) for axis, width in chosen[i].items()}
        times[index] = seconds_at(widths)
    for dim in range(times.ndim):  # from the dense end: what lies above is noise, or better served by padding
        times = np.flip(np.minimum.accumulate(np.flip(times, dim), dim), dim)
    groups = tuple({infos[axis].name: infos[axis].size for axis in group} for group in operation.groups)
    return Timed(operation.name, groups, grid, times)


def _rungs(infos: Sequence[AxisInfo], align: int) -> list[Widths]:
    """Widths of a group of axes that shrink together, ascending."""
    ladders = {info.axis: (info.size, allocate.ladder(info, align, floor=0.0)) for info in infos}
    rungs = [
        {axis: min(ladder, key=lambda w: abs(w - size * share)) for axis, (size, ladder) in ladders.items()}
        for share in sorted(SHARES)
    ]
    return [rung for rung, after in itertools.zip_longest(rungs, rungs[1:]) if rung != after]


class Times:
    """Seconds by signature, in a file of the target when there is a folder for one."""

    def __init__(self, folder: str | Path | None, target: Target) -> None:
        self._target = target
        self._description = timing.description(target)
        self._seconds: dict[str, float] = {}
        self._path: Path | None = None
        if folder is not None:
            digest = hashlib.sha256(json.dumps(self._description, sort_keys=True).encode()).hexdigest()[:16]
            self._path = Path(folder) / f"{digest}.json"
            if self._path.exists():
                self._seconds = _read(self._path)

    def of(self, sketch: Sketch) -> float:
        """The time of an operation, measured unless an equal one has been."""
        key = timing.signature(sketch)
        if key not in self._seconds:
            self._seconds[key] = timing.seconds(sketch, self._target)
            self._write()
        return self._seconds[key]

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {"target": self._description, "seconds": self._seconds}
        beside = self._path.with_name(self._path.name + ".new")
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, self._path)  # a kill leaves the old file or the new one


def _read(path: Path) -> dict[str, float]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in content["seconds"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"folder: expected times of operations in {path}, got something else; remove it or name another folder"
        ) from error
