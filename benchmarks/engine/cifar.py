"""Accuracy of the trained CIFAR ResNets right after a one-shot cut, Secateur against the peer, at equal MACs.

The peer's ratio is sought first; Secateur's goal is then the share of MACs that the peer removed, by the same allocation and
by sensitivity curves, which the peer has not. The peer cannot follow option A shortcuts, so it is asked for the channels
inside the blocks alone (scope `inside`), and Secateur for the same, and with its curves also for everything that it can cut
(`all`). Both programs are exported, counted and evaluated by the same code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram

import secateur
from benchmarks.context import Context, Row, say
from benchmarks.counts import macs
from benchmarks.engine import peer
from benchmarks.trained import cifar_resnet as networks
from secateur import program as programs
from secateur.allocate import Curves
from secateur.calibration import Batch
from secateur.norms import reestimate_norms

FASTER = (1.25, 1.5, 2.0)  # MACs before over MACs after
CRITERIA = {"l2": "l2", "taylor": "snip"}  # the peer's, and ours of the same formula: its Taylor is sum |g w| by weight
INSIDE = ("layer*.conv1:channel",)
CALIBRATION, NORMS = 256, 2_000  # training images for gradients, and for batch-norm statistics
ALLOCATIONS = {"uniform": False, "global": True}  # ours, and whether the peer ranks over all layers
EXAMPLE = (torch.zeros(1, 3, 32, 32),)


@dataclass(frozen=True)
class Data:
    """Batches: for gradients, for batch-norm statistics, and the test split."""

    calibration: list[Batch]
    norms: list[Batch]
    test: list[Batch]


@dataclass(frozen=True)
class Right:
    """Which test images are answered rightly, before and after the norms are estimated again."""

    cut: torch.Tensor
    normed: torch.Tensor


def run(context: Context, depth: int) -> Iterator[Row]:
    """The rows of one network; the first is the dense one."""
    model = networks.trained(context.folder("cifar_resnet"), depth)
    data = _data(context)
    program = networks.exported(model)
    name = f"resnet{depth}"
    dense = {"network": name, "tool": "dense", "macs": macs(program), "accuracy": _mean(_right_of(program, data.test))}
    say(f"{name}: dense {dense['accuracy']:.2%}, {dense['macs']:,} MACs")
    yield dense
    yield _peer_everywhere(model, depth)
    peer.collect_gradients(model, data.calibration)
    for criterion, ours in CRITERIA.items():
        curves = secateur.sensitivity(program, calibration=data.calibration, criterion=ours)
        say(f"{name}: {criterion}: curves of {len(curves)} axes")
        for faster in FASTER:
            for found in _compared(model, program, data, criterion, curves, faster):
                row = {"network": name, "criterion": criterion} | found
                say(f"{name}: {_told(row)}")
                yield row


def _data(context: Context) -> Data:
    folder = context.folder("cifar10")
    images, labels = networks.drawn(networks.images(folder, "train"), CALIBRATION + NORMS, context.seed)
    return Data(
        calibration=list(networks.batches((images[:CALIBRATION], labels[:CALIBRATION]), 64)),
        norms=list(networks.batches((images[CALIBRATION:], labels[CALIBRATION:]), 250)),
        test=list(networks.batches(networks.images(folder, "test"), 100)),
    )


def _peer_everywhere(model: networks.CifarResNet, depth: int) -> Row:
    """What the peer says when it may cut every channel but the classifier's outputs."""
    row = {"network": f"resnet{depth}", "tool": "peer", "scope": "all"}
    try:
        pruned = peer.cut(model, EXAMPLE, peer.Request(spared=("linear",)), 0.5)
        return row | {"outcome": f"worked: {peer.macs(pruned, EXAMPLE):,} MACs"}
    except Exception as error:
        return row | {"outcome": f"error: {type(error).__name__}: {error}"}


def _compared(
    model: networks.CifarResNet,
    program: ExportedProgram,
    data: Data,
    criterion: str,
    curves: Curves,
    faster: float,
) -> Iterator[Row]:
    """The peer's cuts and ours at their MACs; differences are paired, on the same test images. What the curves say is
    compared with the better of the peer's two."""
    dense = macs(program)
    inside = [name for name, _ in model.named_modules() if name.startswith("layer") and name.endswith("conv1")]

    def ours(allocation: str, include: tuple[str, ...], left: int, base: Right) -> Row:
        pruned, _ = secateur.prune(
            program,
            goal=secateur.Macs(1 - left / dense),
            include=include,
            criterion=CRITERIA[criterion],
            allocation=allocation,
            calibration=data.calibration,
            curves=curves,
        )
        right = answers(pruned, data)
        versus = {
            "ahead": _difference(right.cut, base.cut),
            "ahead_normed": _difference(right.normed, base.normed),
        }
        scope = "inside" if include == INSIDE else "all"
        asked = {"faster": faster, "allocation": allocation, "tool": "ours", "scope": scope}
        return asked | _row(macs(pruned), dense, right) | versus

    best, fewest = None, dense
    for allocation, everywhere in ALLOCATIONS.items():
        request = peer.Request(criterion, everywhere, inside)
        theirs = networks.exported(peer.cut_to_macs(model, EXAMPLE, request, 1 - 1 / faster))
        left, base = macs(theirs), answers(theirs, data)
        asked = {"faster": faster, "allocation": allocation, "tool": "peer", "scope": "inside"}
        yield asked | _row(left, dense, base)
        yield ours(allocation, INSIDE, left, base)
        fewest = min(fewest, left)
        better = best is None or _mean(base.normed) > _mean(best.normed)
        best = base if better else best
    assert best is not None
    for include in (INSIDE, ("*",)):
        yield ours("sensitivity", include, fewest, best)


def _row(left: int, dense: int, right: Right) -> Row:
    return {
        "macs": left,
        "macs_ratio": round(dense / left, 4),
        "accuracy": _mean(right.cut),
        "accuracy_normed": _mean(right.normed),
    }


def answers(program: ExportedProgram, data: Data) -> Right:
    """Test answers of the program as it is, and with the statistics of its norms estimated again."""
    module = programs.graph_module(program)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third less time
    before = _right(module, data.test)
    reestimate_norms(module, [(images.contiguous(memory_format=torch.channels_last),) for images, _ in data.norms])
    return Right(before, _right(module, data.test))


def _right_of(program: ExportedProgram, batches: list[Batch]) -> torch.Tensor:
    return _right(programs.graph_module(program, shared=True), batches)


def _right(module: torch.fx.GraphModule, batches: list[Batch]) -> torch.Tensor:
    with programs.evaluating(module):
        right = [
            module(images.contiguous(memory_format=torch.channels_last)).argmax(1) == labels
            for images, labels in batches
        ]
    return torch.cat(right)


def _mean(right: torch.Tensor) -> float:
    return float(right.double().mean())


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> list[float]:
    """Our accuracy less theirs, and the standard error of that difference on paired answers."""
    difference = ours.double() - theirs.double()
    return [float(difference.mean()), float(difference.std() / len(difference) ** 0.5)]


def _told(row: Row) -> str:
    return (
        f"{row['criterion']} {row['allocation']} {row['tool']} {row['scope']}: {row['macs_ratio']:.2f}x fewer MACs, "
        f"{row['accuracy']:.2%}, with norms estimated again {row['accuracy_normed']:.2%}"
    )
