"""Dense beside pruned, node by node: what the cut promised, what it brought, and where they part, why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from secateur.explain import roofline
from secateur.explain.profile import Node, Profile, profile
from secateur.explain.roofline import Peaks
from secateur.machine import here
from secateur.runtime import Target

OVERHEAD_S = 15e-6  # of calling a kernel; a node near it has nothing left to save
TOLD = 0.02  # of the pruned file's time: a node that lost less is not spoken of
MOVES = (
    "Transpose",
    "ReorderInput",
    "ReorderOutput",
    "Slice",
    "Gather",
    "Concat",
    "Pad",
    "Cast",
)  # move data, compute nothing
VECTORS = (("AVX-512", 16), ("AVX2", 8))  # floats that one instruction takes; elsewhere 4


@dataclass(frozen=True)
class Pair:
    """A node in both files; in one of them alone the other is None. `why` where it saved less than its work did."""

    dense: Node | None
    pruned: Node | None
    lost: float  # seconds that it takes beyond the dense node's over the ratio of their work
    why: str = ""

    @property
    def node(self) -> Node:
        """Whichever there is."""
        found = self.pruned or self.dense
        assert found
        return found


@dataclass(frozen=True)
class Difference:
    """Both profiles and the pairs, those that lost most first."""

    dense: Profile
    pruned: Profile
    peaks: Peaks
    pairs: tuple[Pair, ...] = field(repr=False)

    @property
    def ratios(self) -> dict[str, float]:
        """Dense over pruned: what the arithmetic, the bytes and the roofline promise, and what the nodes' times say."""
        return {
            "multiply-accumulates": _ratio(self.dense.macs, self.pruned.macs),
            "bytes": _ratio(self.dense.bytes, self.pruned.bytes),
            "roofline": _ratio(self.peaks.seconds(self.dense.nodes), self.peaks.seconds(self.pruned.nodes)),
            "measured": _ratio(self.dense.seconds, self.pruned.seconds),
        }

    @property
    def sentences(self) -> list[str]:
        """What was found, the dearest first, nodes with one reason together."""
        together: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            if pair.why:
                together.setdefault(pair.why, []).append(pair)
        groups = sorted(together.items(), key=lambda group: -sum(pair.lost for pair in group[1]))
        enough = TOLD * self.pruned.seconds
        return [_told(why, pairs) for why, pairs in groups if sum(pair.lost for pair in pairs) >= enough]

    def __str__(self) -> str:
        ratios = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in self.ratios.items())
        lines = [
            f"Dense over pruned: {ratios}.",
            f"Arena: {self.dense.arena_bytes / 1e6:.1f} MB before, {self.pruned.arena_bytes / 1e6:.1f} MB now.",
            f"This machine: {self.peaks}. Times are the least of each node, alone; what they give together, a comparison says.",
            *(self.sentences or ["Every node became as much faster as its work became less."]),
        ]
        return "\n".join(lines)


def explain(
    dense: str | Path, pruned: str | Path, target: Target, columns: Sequence[np.ndarray], budget_s: float = 3.0
) -> Difference:
    """Profile both files and say of every node that saved less time than its work why.

    `columns` are the inputs of examples [N, ...]; each file is run for `budget_s` seconds.

    Raises:
        InputError: the target's provider does not tell the time of a kernel, or a file cannot be loaded.
    """
    before, after = (profile(path, target, columns, budget_s) for path in (dense, pruned))
    return difference(before, after, roofline.peaks(target), _vector())


def difference(dense: Profile, pruned: Profile, peaks: Peaks, vector: int) -> Difference:
    """Pair the nodes and sort them by what they lost. `vector` is how many floats one instruction takes."""
    pairs = [_pair(before, after, peaks, vector) for before, after in _paired(dense.nodes, pruned.nodes)]
    return Difference(dense, pruned, peaks, tuple(sorted(pairs, key=lambda pair: -pair.lost)))


def _paired(dense: Sequence[Node], pruned: Sequence[Node]) -> list[tuple[Node | None, Node | None]]:
    """Nodes of one name, which a cut leaves as it is. The runtime renames what it fuses, and fuses by widths: what is left and
    multiplies pairs up in the order in which it runs, if there are as many on both sides and their kernels agree."""
    before, after = ({node.name: node for node in nodes} for nodes in (dense, pruned))
    pairs: list[tuple[Node | None, Node | None]] = [(before[name], after[name]) for name in before if name in after]
    alone, others = (
        [node for node in nodes if node.name not in known] for nodes, known in ((dense, after), (pruned, before))
    )
    olds, news = ([node for node in nodes if node.macs] for nodes in (alone, others))
    if len(olds) == len(news) and all(_kernel(old) == _kernel(new) for old, new in zip(olds, news, strict=True)):
        pairs += zip(olds, news, strict=True)
        alone, others = ([node for node in nodes if not node.macs] for nodes in (alone, others))
    return [*pairs, *((node, None) for node in alone), *((None, node) for node in others)]


def _kernel(node: Node) -> tuple[int, ...]:
    return node.inputs[1][2:] if len(node.inputs) > 1 else ()


def _pair(dense: Node | None, pruned: Node | None, peaks: Peaks, vector: int) -> Pair:
    if pruned is None or dense is None:
        return Pair(dense, pruned, pruned.seconds if pruned else 0.0, _of_new(pruned) if pruned else "")
    promised = dense.seconds / _promised(dense, pruned)
    lost = max(pruned.seconds - promised, 0.0)
    return Pair(dense, pruned, lost, _why(dense, pruned, peaks, vector) if lost > 0.1 * promised else "")


def _of_new(node: Node) -> str:
    kind = "moves data and is new" if node.op in MOVES else "is new: the runtime fused the dense model otherwise"
    return f"{node.op} {kind}"


def _promised(dense: Node, pruned: Node) -> float:
    """By how much a node's work became less: its multiply-accumulates, or where it has none, its bytes."""
    return max(_ratio(dense.macs, pruned.macs) if dense.macs else _ratio(dense.bytes, pruned.bytes), 1.0)


def _why(dense: Node, pruned: Node, peaks: Peaks, vector: int) -> str:
    if dense.inputs == pruned.inputs and dense.outputs == pruned.outputs:
        return "the cut left it as it was"
    if pruned.seconds < 2 * OVERHEAD_S:
        return "so small that the call is most of it"
    if odd := _odd_widths(dense, pruned, vector):
        if dense.blocked and not pruned.blocked:
            return f"widths that are no multiple of {vector} keep the runtime from laying channels out in vectors"
        return f"a width of {odd} fills no whole vectors of {vector} floats"
    if pruned.macs < peaks.balance * pruned.bytes:
        return "memory sets its time: it has few multiply-accumulates for the bytes that it moves, and the bytes became less by less"
    before, after = (node.macs / node.seconds / peaks.macs for node in (dense, pruned))
    return (
        f"narrower kernels use the processor worse (about {_tenths(before)} of its peak before, {_tenths(after)} now)"
    )


def _odd_widths(dense: Node, pruned: Node, vector: int) -> int | None:
    """The narrowest size that the cut changed and that is no multiple of the vector."""
    changed = [
        now
        for shapes, others in ((dense.inputs, pruned.inputs), (dense.outputs, pruned.outputs))
        for old, new in zip(shapes, others, strict=False)
        for was, now in zip(old, new, strict=False)
        if was != now and now % vector and was % vector == 0
    ]
    return min(changed, default=None)


def _tenths(share: float) -> str:
    return f"{math.floor(10 * min(share, 1.0)) * 10}%"


def _told(why: str, pairs: Sequence[Pair]) -> str:
    worst = max(pairs, key=lambda pair: pair.lost)
    names = f"{worst.node.name} ({worst.node.op})" + (f" and {len(pairs) - 1} like it" if len(pairs) > 1 else "")
    lost = sum(pair.lost for pair in pairs)
    return f"{lost * 1e3:.3f} ms more than promised in {names}: {why}"


def _ratio(before: float, after: float) -> float:
    return before / after if after else math.inf if before else 1.0


def _vector() -> int:
    sets: Mapping[str, int] = dict(VECTORS)
    known = here().instruction_sets
    return next((floats for name, floats in sets.items() if any(one.startswith(name) for one in known)), 4)
