"""Zeros inside weights: unstructured, N:M and in blocks, as masks beside the weights that recovery keeps and export burns in.

They shrink no latency on a dense runtime; on disk and on the wire they do, once compressed.
"""

from __future__ import annotations

import fnmatch
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import fx
from torch.export import ExportedProgram

from secateur import calibration as calibrating
from secateur import program as programs
from secateur.axes.infer import Structure, infer
from secateur.calibration import (
    ACTIVATIONS,
    GRADIENTS,
    HESSIANS,
    MOVEMENT,
    Batch,
    Loss,
    Moments,
    Statistics,
    classification_loss,
)
from secateur.errors import InputError, NothingRemovedError
from secateur.importance import lamp_of
from secateur.tables import as_text

Masks = dict[str, torch.Tensor]  # by parameter name, True where a weight stays
DAMPING = 0.01  # of the Hessian's mean diagonal (Frantar and Alistarh 2023)
EXACT_UP_TO = 2**28  # rows x columns^3 of a layer (128 x 128) whose weights go in their true order: some seconds
ROWS_AT_ONCE = 2**24  # elements of the inverses that are held at once: 128 MiB
BLOCK = 128  # columns (Frantar and Alistarh 2023)


@dataclass(frozen=True)
class Unstructured:
    """Any weights: this share of every layer, or of all layers together (`scope="global"`)."""

    share: float
    scope: str = "layer"


@dataclass(frozen=True)
class NM:
    """At most n of every m consecutive weights along the input dimension stay (Mishra et al. 2021 for 2:4)."""

    n: int
    m: int


@dataclass(frozen=True)
class Blocks:
    """Whole blocks [rows, columns] of the matrix [out, in x kernel]: this share of every layer's blocks."""

    share: float
    shape: tuple[int, int] = (4, 1)


Pattern = Unstructured | NM | Blocks


@dataclass(frozen=True)
class LayerSparsity:
    """One weight: how many elements, how many zeros, or why it was left alone."""

    name: str
    elements: int
    zeros: int
    skipped: str | None = None


@dataclass(frozen=True)
class SparsityReport:
    """What `sparsify` did, counted in the program that it returned."""

    layers: tuple[LayerSparsity, ...]

    @property
    def sparsity(self) -> float:
        """Share of zeros in the weights that were treated."""
        treated = [layer for layer in self.layers if layer.skipped is None]
        return sum(layer.zeros for layer in treated) / sum(layer.elements for layer in treated)

    def __str__(self) -> str:
        table = Table("weight", "elements", "zeros", "share", title="zeros")
        for layer in self.layers:
            share = layer.skipped or f"{layer.zeros / layer.elements:.2%}"
            table.add_row(layer.name, f"{layer.elements:,}", f"{layer.zeros:,}", share)
        return f"{as_text(table)}{self.sparsity:.2%} of the treated weights are zero; a dense runtime gains no time from it"


@dataclass(frozen=True)
class WeightEvidence:
    """What a weight criterion may look at: the weight as a matrix [out, in x kernel], and calibration's statistics."""

    name: str
    weight: torch.Tensor
    statistics: Statistics
    moments: Moments | None
    inputs: int  # input channels or features
    transposed: bool
    seed: int

    def as_matrix(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the parameter's shape as [out, in x kernel], in double precision."""
        flat = (values.T if self.transposed else values).detach()
        return flat.flatten(1).double()


def magnitude(e: WeightEvidence) -> torch.Tensor:
    """|w| (Han et al., NeurIPS 2015)."""
    return e.weight.abs()


def random(e: WeightEvidence) -> torch.Tensor:
    """Uniform noise: the control."""
    rng = np.random.default_rng([e.seed, zlib.crc32(e.name.encode())])
    return torch.from_numpy(rng.random(tuple(e.weight.shape)))


def lamp(e: WeightEvidence) -> torch.Tensor:
    """w^2 over the sum of it and all larger ones of the layer (Lee et al., ICLR 2021): for global comparison."""
    return torch.from_numpy(lamp_of(e.weight.square().flatten().numpy())).reshape(e.weight.shape)


def gradient(e: WeightEvidence) -> torch.Tensor:
    """|dL/dw| of the mean gradient (as in Blalock et al., MLSys 2020)."""
    return e.as_matrix(e.statistics.gradients[e.name]).abs()


def taylor(e: WeightEvidence) -> torch.Tensor:
    """|g w| of the mean gradient (Molchanov et al., CVPR 2019)."""
    return (e.as_matrix(e.statistics.gradients[e.name]) * e.weight).abs()


def fisher(e: WeightEvidence) -> torch.Tensor:
    """w^2 / 2 x mean over samples of g^2: Optimal Brain Damage with the empirical Fisher diagonal (LeCun et al. 1989)."""
    return e.weight.square() * e.as_matrix(e.statistics.squared_gradients[e.name]) / 2


def movement(e: WeightEvidence) -> torch.Tensor:
    """-sum over steps of g w (Sanh et al., NeurIPS 2020)."""
    return e.as_matrix(e.statistics.movement[e.name])


def wanda(e: WeightEvidence) -> torch.Tensor:
    """|w_ij| |x_j|_2, compared within each output row (Sun et al., "Wanda", ICLR 2024)."""
    norms = _moments_of(e).squares.sqrt().reshape(-1, e.inputs)  # of each group of a grouped convolution
    rows, columns = e.weight.shape
    return e.weight.abs() * norms.repeat_interleave(rows // len(norms), 0).repeat_interleave(columns // e.inputs, 1)


@dataclass(frozen=True)
class WeightCriterion:
    """A score [out, in x kernel], the statistics it needs, and whether rows are ranked each by themselves."""

    score: Callable[[WeightEvidence], torch.Tensor]
    needs: frozenset[str] = frozenset()
    by_row: bool = False


WEIGHT_CRITERIA: dict[str, WeightCriterion] = {
    "magnitude": WeightCriterion(magnitude),
    "random": WeightCriterion(random),
    "lamp": WeightCriterion(lamp),
    "gradient": WeightCriterion(gradient, frozenset({GRADIENTS})),
    "taylor": WeightCriterion(taylor, frozenset({GRADIENTS})),
    "fisher": WeightCriterion(fisher, frozenset({GRADIENTS})),
    "movement": WeightCriterion(movement, frozenset({MOVEMENT})),
    "wanda": WeightCriterion(wanda, frozenset({ACTIVATIONS}), by_row=True),
    "sparsegpt": WeightCriterion(
        magnitude, frozenset({ACTIVATIONS, HESSIANS})
    ),  # scores and updates: see `obs_sparsify`
}


def sparsify(
    program: ExportedProgram,
    *,
    pattern: Pattern,
    criterion: str = "magnitude",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    seed: int = 0,
    calibration: Sequence[Batch] = (),
    loss: Loss = classification_loss,
) -> tuple[ExportedProgram, Masks, SparsityReport]:
    """Zero the least important weights of linear layers and convolutions, exactly as many as asked, ties broken by place.

    A share is that of every layer or of all together, as the pattern says; Wanda takes it from every output row. Weights that
    are zero already go first, so that a second call with a larger share adds to what the first one did. The input program is
    not modified. `include` and `exclude` are globs on parameter names; a tied weight has the first of
    its names.

    Raises:
        InputError: an impossible pattern, an unknown criterion, missing or too little data, a glob that matches nothing,
            nothing that the pattern fits, or a share so small that nothing would be zero.
    """
    _check(pattern, criterion, calibration)
    programs.check_supported(program)
    module = programs.graph_module(program)
    structure = infer(module)
    needs = WEIGHT_CRITERIA[criterion].needs
    statistics = Statistics()
    if needs:
        calibrating.check_batches(calibration, programs.input_specs(program), needs)
        statistics = calibrating.collect(module, structure, calibration, needs, loss=loss)
    uses = _uses(module, structure, include, exclude)
    evidence, skipped = _gather(module, uses, statistics, pattern, criterion, seed)
    if not evidence:
        raise _fits_nothing(pattern, criterion, skipped)
    masks: Masks = {}
    if criterion == "sparsegpt":
        for item in evidence:
            updated, keep = obs_sparsify(_by_position(item, item.weight), _hessian(item), pattern)
            updated, keep = (_by_input(item, values) for values in (updated, keep))
            masks[item.name] = _store(module, item, updated, keep)
    else:
        keeps = _choose(evidence, pattern, criterion)
        masks = {item.name: _store(module, item, item.weight, keep) for item, keep in zip(evidence, keeps, strict=True)}
    if all(bool(mask.all()) for mask in masks.values()):
        raise NothingRemovedError(f"pattern: {pattern} would zero no weight of {len(masks)}; ask for a larger share")
    sparse = programs.reexport(module, program)
    weights = sparse.state_dict
    layers = tuple(
        LayerSparsity(name, weights[name].numel(), int((weights[name] == 0).sum()), skipped.get(name))
        for name in (*masks, *skipped)
    )
    return sparse, masks, SparsityReport(layers)


def fitting_weights(
    program: ExportedProgram,
    *,
    pattern: Pattern,
    criterion: str = "magnitude",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> int:
    """How many weights `sparsify` would take its share of, where calibration reaches every layer.

    Raises:
        InputError: what `sparsify` refuses whatever the data.
    """
    _check_pattern(pattern, criterion)
    programs.check_supported(program)
    module = programs.graph_module(program, shared=True)
    uses = _uses(module, infer(module), include, exclude)
    # what the calibration data reach is not known yet
    evidence, skipped = _gather(module, uses, Statistics(), pattern, "magnitude", 0)
    if not evidence:
        raise _fits_nothing(pattern, criterion, skipped)
    return sum(item.weight.numel() for item in evidence)


def _fits_nothing(pattern: Pattern, criterion: str, skipped: Mapping[str, str]) -> InputError:
    reasons = "; ".join(f"{name} {why}" for name, why in list(skipped.items())[:3])
    return InputError(f"pattern: {pattern} with {criterion} fits no weight of this program ({reasons})")


def _check(pattern: Pattern, criterion: str, batches: Sequence[Batch]) -> None:
    _check_pattern(pattern, criterion)
    if WEIGHT_CRITERIA[criterion].needs and not batches:
        raise InputError(f"criterion {criterion}: needs calibration batches of (inputs..., target), got none")


def _check_pattern(pattern: Pattern, criterion: str) -> None:
    if criterion not in WEIGHT_CRITERIA:
        raise InputError(f"criterion: expected one of {', '.join(WEIGHT_CRITERIA)}, got {criterion!r}")
    if isinstance(pattern, NM):
        if not 0 < pattern.n < pattern.m:
            raise InputError(f"pattern: expected n:m with 0 < n < m, got {pattern.n}:{pattern.m}")
    elif not 0 < pattern.share < 1:
        raise InputError(f"pattern: expected a share between 0 and 1 (exclusive), got {pattern.share}")
    if isinstance(pattern, Blocks) and min(pattern.shape) < 1:
        raise InputError(f"pattern: expected blocks of at least 1 x 1, got {pattern.shape}")
    if isinstance(pattern, Unstructured) and pattern.scope not in ("layer", "global"):
        raise InputError(f"pattern: expected scope layer or global, got {pattern.scope!r}")
    if criterion == "sparsegpt" and (isinstance(pattern, Blocks) or getattr(pattern, "scope", "layer") == "global"):
        raise InputError("criterion sparsegpt: solves layer by layer; expected Unstructured per layer or NM")


def _uses(
    module: fx.GraphModule, structure: Structure, include: Sequence[str], exclude: Sequence[str]
) -> dict[str, list[fx.Node]]:
    """By name the weights that the globs choose, each with the contractions that use it.

    Raises:
        InputError: a glob matches nothing, or nothing is left.
    """
    owners = {alias: name for name, aliases in structure.aliases.items() for alias in aliases}
    uses: dict[str, list[fx.Node]] = {}
    for node, used in calibrating.consumers(module):
        name = owners.get(used, used)
        if name in structure.parameters:
            uses.setdefault(name, []).append(node)
    for pattern in (*include, *exclude):
        if not fnmatch.filter(uses, pattern):
            raise InputError(
                f"include/exclude: {pattern!r} matches none of {len(uses)} weights of linear layers and convolutions"
                + "".join(f", such as {name}" for name in list(uses)[:1])
            )
    chosen = {
        name: nodes
        for name, nodes in uses.items()
        if any(fnmatch.fnmatchcase(name, p) for p in include) and not any(fnmatch.fnmatchcase(name, p) for p in exclude)
    }
    if not chosen:
        raise InputError(f"include/exclude: expected to leave at least one of {len(uses)} weights, left none")
    return chosen


def _gather(
    module: fx.GraphModule,
    uses: Mapping[str, Sequence[fx.Node]],
    statistics: Statistics,
    pattern: Pattern,
    criterion: str,
    seed: int,
) -> tuple[list[WeightEvidence], dict[str, str]]:
    """The weights to treat, and those left alone with the reason."""
    gathered: list[WeightEvidence] = []
    skipped: dict[str, str] = {}
    for name, nodes in uses.items():
        parameter = module.get_parameter(name).detach()
        if not parameter.is_floating_point():
            skipped[name] = f"holds {parameter.dtype}".replace("torch.", "")
            continue
        if any(calibrating.transposes(node) for node in nodes):
            skipped[name] = "is of a transposed convolution"
            continue
        transposed = not calibrating.holds_outputs_first(nodes[0])
        matrix = (parameter.T if transposed else parameter).flatten(1).double()
        inputs = parameter.shape[0] if transposed else parameter.shape[1]
        moments = _seen_by([n for n in nodes if calibrating.holds_outputs_first(n) != transposed], statistics)
        item = WeightEvidence(name, matrix, statistics, moments, inputs, transposed, seed)
        reason = _misfit(item, pattern, criterion)
        if reason:
            skipped[name] = reason
        else:
            gathered.append(item)
    return gathered, skipped


def _seen_by(nodes: Sequence[fx.Node], statistics: Statistics) -> Moments | None:
    """The inputs of all uses of a weight together."""
    seen = [moments for moments in statistics.moments if moments.node in nodes and moments.count]
    return functools.reduce(Moments.with_, seen) if seen else None


def _misfit(item: WeightEvidence, pattern: Pattern, criterion: str) -> str | None:
    if isinstance(pattern, NM) and item.inputs % pattern.m:
        return f"has {item.inputs} inputs, not a multiple of {pattern.m}"
    if isinstance(pattern, Blocks) and (
        item.weight.shape[0] % pattern.shape[0] or item.weight.shape[1] % pattern.shape[1]
    ):
        return f"is {tuple(item.weight.shape)}, not a multiple of {pattern.shape}"
    if criterion in ("wanda", "sparsegpt") and item.moments is None:
        return "was not reached by the calibration data"
    return None


def _moments_of(e: WeightEvidence) -> Moments:
    assert e.moments is not None
    return e.moments


def _choose(evidence: Sequence[WeightEvidence], pattern: Pattern, criterion: str) -> list[torch.Tensor]:
    """The masks [out, in x kernel] of the weights that stay."""
    rule = WEIGHT_CRITERIA[criterion]
    scores = [rule.score(item) for item in evidence]
    for item, score in zip(evidence, scores, strict=True):
        if not bool(score.isfinite().all()):
            raise InputError(
                f"criterion {criterion}: scores of {item.name} are not finite; are the weights or the data NaN?"
            )
    if not isinstance(pattern, Blocks):  # of which a zero says little: a block is ranked by its sum
        scores = [score.masked_fill(item.weight == 0, -torch.inf) for score, item in zip(scores, evidence, strict=True)]
    if isinstance(pattern, Unstructured) and pattern.scope == "global":
        keep = _strongest(torch.cat([s.flatten() for s in scores]), pattern.share)
        parts = keep.split([s.numel() for s in scores])
        return [part.reshape(s.shape) for part, s in zip(parts, scores, strict=True)]
    return [keep_of(score, pattern, item, by_row=rule.by_row) for score, item in zip(scores, evidence, strict=True)]


def keep_of(
    score: torch.Tensor, pattern: Pattern, item: WeightEvidence | None = None, *, by_row: bool = False
) -> torch.Tensor:
    """The mask of one weight [out, in x kernel]: exactly as many zeros as the pattern asks."""
    if isinstance(pattern, NM):
        kernel = score.shape[1] // item.inputs if item else 1
        # groups run along the inputs, for each position of the kernel by itself
        grouped = score.reshape(len(score), -1, pattern.m, kernel).movedim(2, 3)
        rank = grouped.argsort(dim=3, descending=True, stable=True).argsort(dim=3)
        return (rank < pattern.n).movedim(3, 2).reshape(score.shape)
    if isinstance(pattern, Blocks):
        rows, columns = pattern.shape
        blocks = score.reshape(len(score) // rows, rows, -1, columns).sum((1, 3))
        keep = _strongest(blocks.flatten(), pattern.share).reshape(blocks.shape)
        return keep.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    if by_row:
        return torch.stack([_strongest(row, pattern.share) for row in score])
    return _strongest(score.flatten(), pattern.share).reshape(score.shape)


def _strongest(scores: torch.Tensor, share: float) -> torch.Tensor:
    """True for all but the round(share n) lowest scores; of ties the later go first."""
    return _without_weakest(scores, round(share * len(scores)))


def _without_weakest(scores: torch.Tensor, count: int) -> torch.Tensor:
    keep = torch.zeros(len(scores), dtype=torch.bool)
    keep[scores.argsort(descending=True, stable=True)[: len(scores) - count]] = True
    return keep


def _hessian(item: WeightEvidence) -> torch.Tensor:
    moments = _moments_of(item)
    assert moments.gram is not None
    columns = moments.gram.shape[-1]
    if moments.windows < columns:
        raise InputError(
            f"criterion sparsegpt: expected at least {columns} calibration positions (examples x places), as many as "
            f"an output of {item.name} has weights, got {moments.windows}; give more data or choose another criterion"
        )
    return moments.gram / moments.windows


def _by_position(item: WeightEvidence, matrix: torch.Tensor) -> torch.Tensor:
    """[out, in x kernel] as [out, kernel x in]: what an N:M pattern counts stands side by side."""
    return matrix.unflatten(1, (item.inputs, -1)).movedim(1, 2).flatten(1)


def _by_input(item: WeightEvidence, matrix: torch.Tensor) -> torch.Tensor:
    """The way back."""
    return matrix.unflatten(1, (-1, item.inputs)).movedim(1, 2).flatten(1)


def obs_sparsify(weight: torch.Tensor, hessians: torch.Tensor, pattern: Pattern) -> tuple[torch.Tensor, torch.Tensor]:
    """Optimal Brain Surgeon, layer-wise: zero weights one after the other and let the rest make up for each zero.

    Minimises |W X - W' X|^2 with the Hessian H = X X^T: the saliency of a weight is w_p^2 / [H^-1]_pp, its removal moves
    the others of its row by -w_p / [H^-1]_pp H^-1_:,p (Hassibi and Stork 1993). Small layers take the weights in their
    true order (Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022); large ones from left to right, which
    lets all rows share one inverse (the same, "SparseGPT", ICML 2023).

    Args:
        weight: [out, columns]; the outputs of a grouped convolution stand group by group.
        hessians: [groups, columns, columns], of which each is its share of the outputs'.

    Returns:
        The updated weight [out, columns] and the mask of what stays.
    """
    # a layer that never saw an input has no Hessian
    damping = (DAMPING * hessians.diagonal(dim1=1, dim2=2).mean(1)).clamp(min=1e-12)
    h = hessians + damping[:, None, None] * torch.eye(hessians.shape[-1], dtype=hessians.dtype)
    parts, columns = weight.chunk(len(h)), weight.shape[1]
    if len(parts[0]) * columns**3 <= EXACT_UP_TO:
        return _in_true_order(parts, h, pattern)
    solved = [
        _left_to_right(part, each, pattern, i * part.numel())
        for i, (part, each) in enumerate(zip(parts, h, strict=True))
    ]
    updated, keep = (torch.cat(both) for both in zip(*solved, strict=True))
    return updated, keep


def _in_true_order(
    parts: Sequence[torch.Tensor], h: torch.Tensor, pattern: Pattern
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row greedily; then the best weights for the mask, W' = W H_:,K H_KK^-1 row by row, K the kept columns."""
    rows = max(1, ROWS_AT_ONCE // h[0].numel())
    some = [(rest, each) for part, each in zip(parts, h, strict=True) for rest in part.split(rows)]
    keep = keep_of(torch.cat([_removal_costs(part, each, pattern) for part, each in some]), pattern)
    updated = []
    for (part, each), kept in zip(some, keep.double().split([len(part) for part, _ in some]), strict=True):
        system = each * kept[:, :, None] * kept[:, None, :] + torch.diag_embed(1 - kept)
        updated.append(torch.linalg.solve(system, part @ each * kept))
    return torch.cat(updated) * keep, keep


def _removal_costs(weight: torch.Tensor, h: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """What the loss grows by when the turn comes to each weight, never less than before it in its row; infinite for
    those that an N:M pattern lets stay."""
    w = weight.clone()
    inverse = torch.linalg.inv(h).expand(len(w), -1, -1).clone()
    costs = torch.full_like(w, torch.inf)
    size, gone = (pattern.m, pattern.m - pattern.n) if isinstance(pattern, NM) else (w.shape[1], w.shape[1])
    row, highest = torch.arange(len(w)), torch.zeros(len(w), dtype=w.dtype)
    for _ in range(w.shape[1] // size * gone):
        removed = costs.isfinite()
        full = (removed.reshape(len(w), -1, size).sum(2) == gone).repeat_interleave(size, 1)
        saliency = w.square() / inverse.diagonal(dim1=1, dim2=2)
        p = saliency.masked_fill(removed | full, torch.inf).argmin(1)
        highest = torch.maximum(highest, saliency[row, p])
        costs[row, p] = highest
        column, pivot = inverse[row, :, p], inverse[row, p, p]
        w -= (w[row, p] / pivot)[:, None] * column
        inverse -= column[:, :, None] * (column / pivot[:, None])[:, None, :]
        inverse[row, p, p] = 1.0  # its row and column are zero: out of the problem
    return costs


def _left_to_right(
    weight: torch.Tensor, h: torch.Tensor, pattern: Pattern, before: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns in their order, their part of the mask chosen when their block comes up, from the weights as they then are.
    `before` counts the weights of the groups before this one, so that their shares add up.

    A block is a small part of the columns: chosen all at once, the mask would take what the left can give away and
    leave on the right nothing to make up for it with.
    """
    w = weight.clone()
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    keep = torch.ones_like(w, dtype=torch.bool)
    columns = w.shape[1]
    block = pattern.m if isinstance(pattern, NM) else max(1, min(BLOCK, columns // 8))

    def chosen(saliency: torch.Tensor, start: int) -> torch.Tensor:
        if isinstance(pattern, NM):
            return keep_of(saliency, pattern)
        zeros, until = (
            round(pattern.share * (before + len(w) * column)) for column in (start, start + saliency.shape[1])
        )
        return _without_weakest(saliency.flatten(), until - zeros).reshape(saliency.shape)

    for start in range(0, columns, block):
        end = min(start + block, columns)
        keep[:, start:end] = chosen((w[:, start:end] / factor.diagonal()[start:end]) ** 2, start)
        errors = torch.zeros(len(w), end - start, dtype=w.dtype)
        for j in range(start, end):
            errors[:, j - start] = torch.where(keep[:, j], 0.0, w[:, j] / factor[j, j])
            w[:, j:end] -= errors[:, j - start, None] * factor[j, j:end]
        w[:, end:] -= errors @ factor[start:end, end:]
    return w * keep, keep


def _store(module: fx.GraphModule, item: WeightEvidence, weight: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Put the masked weight into the module, in place, so that tied weights stay tied; returns the mask in its shape."""
    parameter = module.get_parameter(item.name)
    shape = parameter.T.shape if item.transposed else parameter.shape
    values, mask = (weight * keep).reshape(shape), keep.reshape(shape)
    if item.transposed:
        values, mask = values.T, mask.T
    with torch.no_grad():
        parameter.copy_(values)
    return mask.contiguous()


def masks_of(program: ExportedProgram) -> Masks:
    """The masks that a program shows: of every matrix or kernel with weights that are exactly zero, True where one is not."""
    weights = {name: p.detach() for name, p in program.named_parameters() if p.dim() > 1}
    return {name: weight != 0 for name, weight in weights.items() if not bool(weight.all())}


def recorded_masks(program: ExportedProgram, lineage: Mapping[str, Any]) -> Masks:
    """The masks of a program whose lineage records a pattern of zeros; of any other none, whatever is zero in it by chance."""
    return masks_of(program) if any("pattern" in cut for cut in lineage.get("cuts", ())) else {}


def recorded_zeros(program: ExportedProgram, lineage: Mapping[str, Any]) -> int:
    """How many weights are exactly zero, counted in a program whose lineage records a pattern of zeros; of any other 0."""
    names = recorded_masks(program, lineage)
    tensors = {
        programs.identity(p): p for name, p in program.named_parameters() if name in names
    }  # tied ones count once
    return sum(int((tensor == 0).sum()) for tensor in tensors.values())


def apply_masks(module: torch.nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Set every masked weight to exactly zero, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = module.get_parameter(name)
            parameter.masked_fill_(~mask.to(parameter.device), 0)
