"""`secateur inspect` and `secateur cut`: the library on `.pt2` files, without any server."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import InputError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from secateur.allocate import Goal
    from secateur.inspection import Inspection


@dataclass(frozen=True)
class Order:
    """What to remove: layers, then units, then single weights; what is None stays."""

    layers: float | None = None
    layer_kind: str = "layer"
    layer_criterion: str | None = None
    ratio: float | None = None
    parameters: float | None = None
    macs: float | None = None
    kinds: tuple[str, ...] | None = None
    criterion: str = "l2"
    allocation: str = "uniform"
    curves: Path | None = None
    align: int = 1
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    weights: float | None = None
    nm: str | None = None
    weight_criterion: str = "magnitude"
    seed: int = 0


def inspect(model: Path) -> Inspection:
    """Read a program and tell what it is made of."""
    from secateur import program as programs
    from secateur.inspection import inspect

    return inspect(programs.load(model))


def cut(model: Path, output: Path, order: Order, calibration: Path | None, say: Callable[[str], None]) -> None:
    """Cut a program as ordered and write it, with its lineage inside; reports go to `say` as they come.

    Raises:
        InputError: an order that contradicts itself or removes nothing, or what the library refuses.
    """
    goals = _check(order, model, output)
    from secateur import program as programs
    from secateur.readers import arrays

    program, lineage = programs.load(model), programs.lineage(model)
    batches = arrays.batches(calibration, program) if calibration else ()
    for made, record, report in _steps(program, order, goals, batches):
        lineage = programs.descend(lineage, programs.digest(program), record)
        program = made
        say(str(report))
    beside = output.with_name(f".{output.stem}.new.pt2")
    programs.save(program, beside, lineage)
    os.replace(beside, output)


def _check(order: Order, model: Path, output: Path) -> list[tuple[str, float]]:
    """The one goal for units, if any."""
    goals = [(name, share) for name in ("ratio", "parameters", "macs") if (share := getattr(order, name)) is not None]
    if len(goals) > 1:
        raise InputError(
            f"goal: expected one of --ratio, --parameters, --macs, got {' and '.join(n for n, _ in goals)}"
        )
    if order.weights is not None and order.nm is not None:
        raise InputError("weights: expected --weights or --nm, got both")
    if not goals and order.layers is None and order.weights is None and order.nm is None:
        raise InputError(
            "goal: expected at least one of --ratio, --parameters, --macs, --layers, --weights, --nm, got none"
        )
    if output.resolve() == model.resolve():
        raise InputError(f"output: expected another file than the model, got {output}; the dense model is kept")
    if output.suffix != ".pt2":
        raise InputError(f"output: expected a name that ends in .pt2, got {output.name}")
    if not output.parent.is_dir():
        raise InputError(f"output: expected a folder that exists, got {output.parent}; create it first")
    return goals


def _steps(program: ExportedProgram, order: Order, goals: list[tuple[str, float]], batches: Sequence[Any]) -> Any:
    """Each removal in turn: the program that it made, what the lineage keeps of it, and its report."""
    import secateur
    from secateur.pruning import DEFAULT_KINDS

    if order.layers is not None:
        criterion = order.layer_criterion or ("influence" if batches else "last")
        program, depth = secateur.drop_branches(
            program,
            share=order.layers,
            kind=order.layer_kind,
            criterion=criterion,
            calibration=batches,
            seed=order.seed,
        )
        yield program, {"criterion": criterion, "seed": order.seed, "dropped": depth.dropped}, depth
    for name, share in goals:
        goals_by_name: dict[str, type[Goal]] = {
            "ratio": secateur.Ratio,
            "parameters": secateur.Parameters,
            "macs": secateur.Macs,
        }
        goal = goals_by_name[name](share)
        choice: dict[str, Any] = {
            "kinds": order.kinds or DEFAULT_KINDS,
            "include": order.include,
            "exclude": order.exclude,
            "criterion": order.criterion,
            "calibration": batches,
            "seed": order.seed,
        }
        measured = (
            secateur.sensitivity(program, path=order.curves, **choice) if order.allocation == "sensitivity" else None
        )
        program, report = secateur.prune(
            program, goal=goal, allocation=order.allocation, curves=measured, align=order.align, **choice
        )
        record = {"goal": str(goal), "criterion": order.criterion, "seed": order.seed, "kept": report.kept}
        yield program, record, report
    if order.weights is not None or order.nm is not None:
        pattern = secateur.Unstructured(order.weights) if order.weights is not None else _nm(str(order.nm))
        program, _, zeros = secateur.sparsify(
            program, pattern=pattern, criterion=order.weight_criterion, calibration=batches, seed=order.seed
        )
        yield program, {"pattern": str(pattern), "criterion": order.weight_criterion, "seed": order.seed}, zeros


def _nm(text: str) -> Any:
    import secateur

    n, colon, m = text.partition(":")
    if not (colon and n.isdecimal() and m.isdecimal()):
        raise InputError(f"nm: expected two numbers such as 2:4, got {text!r}")
    return secateur.NM(int(n), int(m))
