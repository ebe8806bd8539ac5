"""A causal language model that was exported without a cache, as two programs that share one: for a prompt, and for a token."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import Dim, ExportedProgram

from secateur import program as programs
from secateur.axes.infer import infer
from secateur.axes.trace import node_shape
from secateur.decoding import rewrite, rules
from secateur.errors import InputError

CHECKED = ((1, 9, (3, 5)), (2, 8, (2, 7)))  # batch, positions, and after how many of them the cache takes over
TOLERANCE = 2**10  # units in the last place of the largest logit
EXAMPLE = (2, 5)  # batch and positions that programs are exported with; both stay dynamic

Run = Callable[..., Sequence[Any]]


@dataclass(frozen=True)
class Decoder:
    """`prompt`: ids [B, N] -> logits of the last position [B, 1, V] and what is cached, each [B, .., N, ..].

    `step`: ids [B, 1] and what is cached of P positions -> logits [B, 1, V] and what is cached of P + 1. Batch and positions
    are dynamic. Whether a cached tensor holds keys or values only the graph knows; both programs have them in one order.
    """

    prompt: ExportedProgram
    step: ExportedProgram
    error: float  # largest difference from the whole program's logits, relative to the largest of them

    @property
    def bytes_per_token(self) -> int:
        """What the cache takes for each position of each example."""
        return sum(
            math.prod(size for size in sizes if size is not None) * dtype.itemsize for sizes, dtype in cache_of(self.step)
        )


def cache_of(step: ExportedProgram) -> list[tuple[list[int | None], torch.dtype]]:
    """The sizes of what is cached, None for batch and positions, and its types."""
    return list(programs.input_specs(step).values())[1:]


def split(program: ExportedProgram) -> Decoder:
    """Both programs, proven by numbers to give the logits that the whole gives, at more than one batch and prompt.

    Raises:
        InputError: no causal language model with dynamic batch and length and one output, or one with an operator that
            nobody explains, which is named.
    """
    model = _read(program)
    plan = rewrite.plan_of_step(model)
    if not plan.caches:
        raise InputError("program: expected a language model with attention, found none whose keys and values are computed")
    step, prompt = rewrite.step(model, plan), rewrite.prompt(model, rewrite.plan_of_prompt(model, plan.caches))
    batch, positions = EXAMPLE
    ids = torch.zeros(batch, positions, dtype=model.ids.meta["val"].dtype)
    with torch.no_grad():
        past = [one.clone(memory_format=torch.contiguous_format) for one in prompt(ids)[1:]]  # views of nothing
        dynamic = {"ids": {0: Dim.AUTO}} | {
            f"{rewrite.PASSED}{number}": {0: Dim.AUTO, axis: Dim.AUTO} for number, axis in enumerate(plan.caches.values())
        }
        decoder = (
            torch.export.export(prompt, (ids,), dynamic_shapes={"ids": {0: Dim.AUTO, 1: Dim.AUTO}}),
            torch.export.export(step, (ids[:, :1], *past), dynamic_shapes=dynamic),
        )
    return Decoder(*decoder, error=_proven(program, *decoder))


def _read(program: ExportedProgram) -> rewrite.Model:
    programs.check_supported(program)
    specs = programs.input_specs(program)
    if len(program.graph_signature.user_inputs) != 1 or [sizes for sizes, _ in specs.values()] != [[None, None]]:
        raise InputError(
            f"program: expected token numbers [batch, length], both dynamic, as the only input, got "
            f"{ {name: sizes for name, (sizes, _) in specs.items()} }; export the model so, with dynamic_shapes"
        )
    module = programs.graph_module(program, shared=True)
    infer(module)  # brings the graph into the form that rules read
    (ids,) = module.graph.find_nodes(op="placeholder")
    (output,) = module.graph.find_nodes(op="output")
    batch, length = node_shape(ids)
    outputs: list[Any] = torch.utils._pytree.tree_leaves(output.args)
    if len(outputs) != 1 or len(node_shape(outputs[0])) != 3 or node_shape(outputs[0])[:2] != [batch, length]:
        raise InputError(
            f"program: expected logits [batch, length, words] as the only output, got {len(outputs)} outputs "
            f"{[node_shape(one) for one in outputs]}; export the model so, without a cache"
        )
    return rewrite.Model(module, ids, outputs[0], batch, length, _computed(module, ids))  # type: ignore[arg-type]


def _computed(module: fx.GraphModule, ids: fx.Node) -> frozenset[fx.Node]:
    """What depends on the values of the ids, not on their sizes alone."""
    found = {ids}
    for node in module.graph.nodes:
        if rules.has_tensor(node) and rules.rule_of(node) is not rules.filled and found & set(node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def _proven(program: ExportedProgram, prompt: ExportedProgram, step: ExportedProgram) -> float:
    """The error against the whole program, over all positions that the cache answers for."""
    whole, *parts = (one.module(check_guards=False) for one in (program, prompt, step))
    errors = []
    with torch.no_grad():
        for ids, expected in examples(program, whole):
            scale = max(float(expected.abs().max()), 1e-30)
            limit = TOLERANCE * torch.finfo(expected.dtype).eps
            for start in _starts(ids.shape):
                for position, logits in continued(ids, start, *parts):
                    errors.append(float((logits[:, 0] - expected[:, position]).abs().max()) / scale)
                    if not errors[-1] <= limit:
                        raise InputError(
                            f"program: expected a causal language model, whose answers do not depend on what follows; after a "
                            f"prompt of {start} the logits at position {position} differ from the whole program's by "
                            f"{errors[-1]:.1e} of the largest (limit {limit:.1e}); has it a causal mask?"
                        )
    return max(errors)


def _starts(shape: Sequence[int]) -> tuple[int, ...]:
    return next(starts for batch, positions, starts in CHECKED if tuple(shape) == (batch, positions))


def examples(program: ExportedProgram, whole: Callable[[torch.Tensor], Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids that the proof runs on, drawn from the words that the program has logits for, with the logits of the whole."""
    ((_, dtype),) = programs.input_specs(program).values()
    generator = torch.Generator().manual_seed(0)
    for batch, positions, _ in CHECKED:
        probe = torch.zeros(1, 2, dtype=dtype)
        (logits,) = torch.utils._pytree.tree_leaves(whole(probe))
        ids = torch.randint(logits.shape[-1], (batch, positions), generator=generator).to(dtype)
        (expected,) = torch.utils._pytree.tree_leaves(whole(ids))
        yield ids, expected


def continued(ids: torch.Tensor, start: int, prompt: Run, step: Run) -> Iterator[tuple[int, torch.Tensor]]:
    """The logits [B, 1, V] of the last position of a prompt and of each that follows, fed with the ids that there are."""
    logits, *past = prompt(ids[:, :start])
    yield start - 1, logits
    for position in range(start, ids.shape[1]):
        logits, *past = step(ids[:, position : position + 1], *past)
        yield position, logits
