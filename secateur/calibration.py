"""Runs calibration data through a program and keeps the few statistics that the importance criteria are made of."""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional
from torch.utils import _pytree

from secateur import program as programs
from secateur.axes.infer import AxisInfo, Structure
from secateur.axes.terms import leaves, unit_index
from secateur.axes.trace import arguments, shape_of
from secateur.errors import InputError

Loss = Callable[[Any, torch.Tensor], torch.Tensor]
Batch = tuple[torch.Tensor, ...]  # the inputs in order, the target last

ACTIVATIONS, GRADIENTS, MOVEMENT, HESSIANS = "activations", "gradients", "movement", "hessians"
WINDOWS_AT_ONCE = 2**24  # elements of a convolution's unfolded input that are held at once: 128 MiB
_CONSUMERS = {"linear": 1, "matmul": 1, "mm": 1, "addmm": 2}  # weight's argument
_CONSUMERS |= {f"{name}{rank}d": 1 for name in ("conv", "conv_transpose") for rank in (1, 2, 3)}


@dataclass
class Moments:
    """Of the input of one contraction, over all positions: count, sum, sum of |x|, number of zeros, sum of x^2 [features].

    `gram` [groups, columns, columns] is the sum of x x^T over everything that the weight is multiplied with: features for
    linear layers (one group); for convolutions, where Hessians are asked for, windows, each with its positions of the
    kernel one after the other and at each of them the group's channels.
    """

    node: fx.Node
    weight: str
    count: int = 0
    total: Any = 0.0
    absolute: Any = 0.0
    zeros: Any = 0.0
    squares: Any = 0.0
    gram: torch.Tensor | None = None
    windows: int = 0  # that `gram` is summed over

    def with_(self, other: Moments) -> Moments:
        """Both together: a weight that the graph uses twice has seen the inputs of both uses."""
        return Moments(
            self.node,
            self.weight,
            self.count + other.count,
            self.total + other.total,
            self.absolute + other.absolute,
            self.zeros + other.zeros,
            self.squares + other.squares,
            None if self.gram is None or other.gram is None else self.gram + other.gram,
            self.windows + other.windows,
        )


@dataclass
class Statistics:
    """What calibration saw. `contributions` are the signed first-order terms sum(g w), per axis [samples, units]."""

    moments: list[Moments] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)  # mean over samples
    squared_gradients: dict[str, torch.Tensor] = field(default_factory=dict)  # mean of per-sample squares
    contributions: dict[str, np.ndarray] = field(default_factory=dict)  # by axis name
    movement: dict[str, torch.Tensor] = field(default_factory=dict)  # -sum over steps of g w


def classification_loss(output: Any, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the first output's logits: [N, C] with [N], or [N, T, V] with [N, T], of which -100 is ignored."""
    logits = _pytree.tree_leaves(output)[0]
    return functional.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=-100)


def check_batches(
    batches: Sequence[Batch], specs: Mapping[str, Any], needs: frozenset[str] = frozenset({ACTIVATIONS})
) -> None:
    """Raise InputError unless every batch has the program's inputs and a target, in sizes that fit.

    A program of fixed shape takes batches of just that shape; per-sample gradients need one that takes single examples.
    """
    if not batches:
        raise InputError("calibration: expected at least one batch of (inputs..., target), got none")
    for number, batch in enumerate(batches):
        if len(batch) != len(specs) + 1 or not all(isinstance(tensor, torch.Tensor) for tensor in batch):
            raise InputError(
                f"calibration: expected {len(specs)} inputs and a target in each batch, all of them tensors, batch "
                f"{number} has {', '.join(type(tensor).__name__ for tensor in batch) or 'nothing'}"
            )
        for tensor, (name, (shape, dtype)) in zip(batch, specs.items(), strict=False):
            _check_input(number, tensor, name, shape, dtype)
        examples = [tensor.shape[0] if tensor.dim() else 0 for tensor in batch]
        if examples[-1] != examples[0] or not examples[0]:
            raise InputError(
                f"calibration: expected one target for each example and at least one example, batch {number} has "
                f"{examples[0]} examples and {examples[-1]} targets"
            )
    fixed = [name for name, (shape, _) in specs.items() if not shape or shape[0] not in (None, 1)]
    if GRADIENTS in needs and fixed:
        raise InputError(
            f"calibration: expected a program that takes one example at a time, as per-sample gradients need, but the "
            f"first dimension of {fixed[0]} is fixed; export with dynamic_shapes or choose another criterion"
        )


def _check_input(number: int, tensor: torch.Tensor, name: str, shape: Sequence[int | None], dtype: torch.dtype) -> None:
    fits = tensor.dim() == len(shape) and all(s in (None, n) for s, n in zip(shape, tensor.shape, strict=True))
    if not fits or tensor.dtype != dtype:
        wanted = "x".join("any" if s is None else str(s) for s in shape)
        raise InputError(
            f"calibration: expected {wanted} ({dtype}) for input {name}, batch {number} has "
            f"{'x'.join(map(str, tensor.shape))} ({tensor.dtype})"
        )


def collect(
    module: fx.GraphModule,
    structure: Structure,
    batches: Sequence[Batch],
    needs: frozenset[str],
    *,
    loss: Loss = classification_loss,
    learning_rate: float = 1e-3,
) -> Statistics:
    """Run the batches and keep what is needed: activations, per-sample gradients, or movement over SGD steps.

    The module is put back as it was. Gradients are taken per sample, because the square of a mean gradient is near
    zero at a trained optimum while the mean of squares is not.
    """
    statistics = Statistics()
    if ACTIVATIONS in needs:
        _collect_activations(module, batches, statistics, hessians=HESSIANS in needs)
    if GRADIENTS in needs:
        _collect_gradients(module, structure, batches, loss, statistics)
    if MOVEMENT in needs:
        _collect_movement(module, structure, batches, loss, learning_rate, statistics)
    return statistics


class _Watcher(fx.Interpreter):
    """Runs a graph and shows what chosen nodes compute to callbacks."""

    def __init__(self, module: fx.GraphModule, see: Mapping[fx.Node, Sequence[Callable[[Any], None]]]) -> None:
        super().__init__(module)
        self.see = see

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        for see in self.see.get(node, ()):
            see(value)
        return value


def values_of(
    module: fx.GraphModule, nodes: set[fx.Node], inputs: Sequence[torch.Tensor]
) -> dict[fx.Node, torch.Tensor]:
    """What chosen nodes compute for one batch of inputs."""
    seen: dict[fx.Node, torch.Tensor] = {}
    see = {node: [functools.partial(seen.__setitem__, node)] for node in nodes}
    _Watcher(module, see).run(*inputs, enable_io_processing=True)
    return seen


def _source(node: fx.Node) -> Any:
    """The activation that a contraction reads; `addmm` has its bias in front."""
    return node.args[1 if node.target is torch.ops.aten.addmm.default else 0]


def consumers(module: fx.GraphModule) -> list[tuple[fx.Node, str]]:
    """The contractions of an activation with a stored weight, and the weight's name."""
    found = []
    for node in module.graph.nodes:
        name = _operator(node)
        weight = node.args[_CONSUMERS[name]] if name in _CONSUMERS else None
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            dims = operator.attrgetter(str(weight.target))(module).dim()
            if dims == 2 or name.startswith("conv"):  # not a vector, nor a stack of matrices
                found.append((node, str(weight.target)))
    return found


def _operator(node: fx.Node) -> str:
    """The name of an ATen operator; empty for anything else."""
    target = node.target
    return target._overloadpacket.__name__ if getattr(target, "namespace", "") == "aten" else ""  # type: ignore[union-attr]


def holds_outputs_first(node: fx.Node) -> bool:
    """Whether a contraction's weight is [out, in, ...]; those of transposed convolutions, `matmul`, `mm` and `addmm` are
    [in, out, ...]."""
    return _operator(node).startswith(("linear", "conv")) and not transposes(node)


def transposes(node: fx.Node) -> bool:
    """Whether a contraction is a transposed convolution."""
    return _operator(node).startswith("conv_transpose")


def _collect_activations(
    module: fx.GraphModule, batches: Sequence[Batch], statistics: Statistics, *, hessians: bool
) -> None:
    see: dict[fx.Node, list[Callable[[torch.Tensor], None]]] = {}
    for node, weight in consumers(module):
        moments = Moments(node, weight)
        statistics.moments.append(moments)
        see.setdefault(_source(node), []).append(_accumulator(moments, hessians=hessians))
    with programs.evaluating(module):
        for batch in batches:
            _Watcher(module, see).run(*batch[:-1], enable_io_processing=True)


def _accumulator(moments: Moments, *, hessians: bool) -> Callable[[torch.Tensor], None]:
    convolves = _operator(moments.node).startswith("conv")

    def accumulate(x: torch.Tensor) -> None:
        features = x.movedim(1, -1).flatten(0, -2) if convolves else x.flatten(0, -2)
        features = features.double()
        moments.count += len(features)
        moments.total = moments.total + features.sum(0)
        moments.absolute = moments.absolute + features.abs().sum(0)
        moments.zeros = moments.zeros + (features == 0).sum(0)
        moments.squares = moments.squares + features.square().sum(0)
        if not convolves or (hessians and not transposes(moments.node)):
            for windows in _windows(moments.node, x) if convolves else [features[None]]:
                gram = windows.mT @ windows
                moments.gram = gram if moments.gram is None else moments.gram + gram
                moments.windows += windows.shape[1]

    return accumulate


def _windows(node: fx.Node, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """What a convolution multiplies its kernels with, [groups, windows, kernel x channels], some examples at a time."""
    call: Any = arguments(node)
    kernel = shape_of(call.weight.meta["val"])[2:]
    stride, dilation = (list(value) * (len(kernel) // len(value)) for value in (call.stride, call.dilation))
    spans = [spacing * (size - 1) for spacing, size in zip(dilation, kernel, strict=True)]
    if isinstance(call.padding, str):
        sides = [(span // 2, span - span // 2) if call.padding == "same" else (0, 0) for span in spans]
    else:
        sides = [(side, side) for side in list(call.padding) * (len(kernel) // len(call.padding))]
    unfolded = functional.pad(x, [side for pair in reversed(sides) for side in pair])
    for dim, (span, step, spacing) in enumerate(zip(spans, stride, dilation, strict=True), start=2):
        unfolded = unfolded.unfold(dim, span + 1, step)[..., ::spacing]  # a view: [N, C, *places, *kernel]
    for some in unfolded.split(max(1, WINDOWS_AT_ONCE // max(1, unfolded[0].numel()))):
        grouped = some.flatten(2 + len(kernel)).flatten(2, -2).unflatten(1, (call.groups, -1))  # [n, G, C/G, places, K]
        yield grouped.permute(1, 0, 3, 4, 2).double().flatten(3).flatten(1, 2)


@contextlib.contextmanager
def _differentiable(module: fx.GraphModule, structure: Structure) -> Iterator[dict[str, torch.nn.Parameter]]:
    """The real parameters, with gradients for those too that training had frozen, in evaluation mode."""
    parameters = {name: module.get_parameter(name) for name in structure.parameters}
    parameters = {name: p for name, p in parameters.items() if p.is_floating_point()}
    before = {name: p.requires_grad for name, p in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with programs.evaluating(module), torch.enable_grad():
            yield parameters
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])


def _collect_gradients(
    module: fx.GraphModule, structure: Structure, batches: Sequence[Batch], loss: Loss, statistics: Statistics
) -> None:
    rows: dict[str, list[np.ndarray]] = {info.name: [] for info in structure.prunable}
    samples = 0
    with _differentiable(module, structure) as parameters:
        sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
        squares = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
        for one in (tuple(t[i : i + 1] for t in batch) for batch in batches for i in range(len(batch[0]))):
            known = _gradients(module, parameters, one, loss)
            for name, gradient in known.items():
                sums[name] += gradient
                squares[name] += gradient.square()
            products = {name: gradient * parameters[name].detach() for name, gradient in known.items()}
            for info in structure.prunable:
                rows[info.name].append(units_sum(structure, info, products))
            samples += 1
    statistics.gradients = {name: total / samples for name, total in sums.items()}
    statistics.squared_gradients = {name: total / samples for name, total in squares.items()}
    statistics.contributions = {name: np.stack(values) for name, values in rows.items()}


def _gradients(
    module: fx.GraphModule, parameters: Mapping[str, torch.nn.Parameter], batch: Batch, loss: Loss
) -> dict[str, torch.Tensor]:
    value = loss(module(*batch[:-1]), batch[-1])
    gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}


def _collect_movement(
    module: fx.GraphModule,
    structure: Structure,
    batches: Sequence[Batch],
    loss: Loss,
    learning_rate: float,
    statistics: Statistics,
) -> None:
    module = copy.deepcopy(module)  # it is trained here, and its tensors may be a program's own
    with _differentiable(module, structure) as parameters:
        moved = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
        for batch in batches:
            known = _gradients(module, parameters, batch, loss)
            with torch.no_grad():
                for name, gradient in known.items():
                    moved[name] -= gradient * parameters[name]
                    parameters[name].sub_(learning_rate * gradient)
    statistics.movement = moved


def units_sum(structure: Structure, info: AxisInfo, values: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Sum values that have the shapes of parameters over everything that belongs to each unit of an axis: [size].

    An element that two dimensions tie to the axis (a square matrix on a residual stream) counts for the units of both.
    """
    total = np.zeros(info.size)
    for name, position in info.members:
        if name in values:
            value = values[name].detach()
            per_position = value.movedim(position, 0).flatten(1).sum(1) if value.dim() > 1 else value
            units = unit_index(structure.tensors[name][position], info.axis)
            carried = units >= 0
            np.add.at(total, units[carried], per_position.double().cpu().numpy()[carried])
    return total


def carries(structure: Structure, info: AxisInfo, moments: Moments) -> np.ndarray | None:
    """For each input feature of a contraction the unit of the axis it belongs to; None when it belongs to none."""
    dims = structure.trace.layouts[_source(moments.node)]
    features = dims[1 if _operator(moments.node).startswith("conv") else -1]
    return unit_index(features, info.axis) if info.axis in set(leaves(features)) else None
