"""A causal language model that was exported without a cache, as two programs that share one: for a prompt, and for a token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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

Run = Callable[..., Any]  # of tensors: logits, or those and what is cached


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
            math.prod(size for size in sizes if size is not None) * dtype.itemsize
            for sizes, dtype in cache_of(self.step)
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
        raise InputError(
            "program: expected a language model with attention, found none whose keys and values are computed"
        )
    step, prompt = rewrite.step(model, plan), rewrite.prompt(model, rewrite.plan_of_prompt(model, plan.caches))
    batch, positions = EXAMPLE
    ids = torch.zeros(batch, positions, dtype=model.ids.meta["val"].dtype)
    with torch.no_grad():
        past = [one.clone(memory_format=torch.contiguous_format) for one in prompt(ids)[1:]]  # views of nothing
        dynamic = {"ids": {0: Dim.AUTO}} | {
            f"{rewrite.PASSED}{number}": {0: Dim.AUTO, axis: Dim.AUTO}
            for number, axis in enumerate(plan.caches.values())
        }
        decoder = (
            torch.export.export(prompt, (ids,), dynamic_shapes={"ids": {0: Dim.AUTO, 1: Dim.AUTO}}),
            torch.export.export(step, (ids[:, :1], *past), dynamic_shapes=dynamic),
        )
    whole = program.module(check_guards=False)
    worst = proven(program, whole, *(one.module(check_guards=False) for one in decoder))
    if not worst.error <= worst.limit:
        raise InputError(
            "program: expected a causal language model, whose answers do not depend on what follows; with a cache its logits "
            f"are others than the whole program's: {worst}; has it a causal mask?"
        )
    return Decoder(*decoder, error=worst.error)


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
    return rewrite.Model(module, ids, outputs[0], batch, length, _computed(module, ids))


def _computed(module: fx.GraphModule, ids: fx.Node) -> frozenset[fx.Node]:
    """What depends on the values of the ids, not on their sizes alone."""
    found = {ids}
    for node in module.graph.nodes:
        if rules.has_tensor(node) and rules.rule_of(node) is not rules.filled and found & set(node.all_input_nodes):
            found.add(node)
    return frozenset(found)


@dataclass(frozen=True)
class Difference:
    """Of logits with a cache from those of the whole program, relative to the largest, where it is largest."""

    error: float
    limit: float
    batch: int
    start: int  # positions of the prompt
    position: int

    def __str__(self) -> str:
        return (
            f"{self.error:.1e} of the largest at position {self.position} after a prompt of {self.start}, batch {self.batch} "
            f"(limit {self.limit:.1e})"
        )


def proven(program: ExportedProgram, whole: Run, prompt: Run, step: Run) -> Difference:
    """The largest difference, over every position that prompt and steps answer for, fed with the same ids as the whole."""
    differences = []
    for batch, positions, starts in CHECKED:
        ids = _ids(program, whole, batch, positions)
        with torch.no_grad():
            expected = _logits(whole(ids))
            for start in starts:
                for position, logits in _continued(ids, start, prompt, step):
                    error = (logits[:, 0] - expected[:, position]).abs().max() / expected.abs().max().clamp_min(1e-30)
                    limit = TOLERANCE * torch.finfo(expected.dtype).eps
                    differences.append(Difference(float(error), limit, batch, start, position))
    return next((one for one in differences if not one.error <= one.limit), max(differences, key=lambda one: one.error))


def _ids(program: ExportedProgram, whole: Run, batch: int, positions: int) -> torch.Tensor:
    """Drawn from the words that the program has logits for."""
    ((_, dtype),) = programs.input_specs(program).values()
    with torch.no_grad():
        words = _logits(whole(torch.zeros(1, 2, dtype=dtype))).shape[-1]
    return torch.randint(words, (batch, positions), generator=torch.Generator().manual_seed(0)).to(dtype)


def _logits(outputs: Any) -> torch.Tensor:
    (logits,) = torch.utils._pytree.tree_leaves(outputs)
    return logits


def _continued(ids: torch.Tensor, start: int, prompt: Run, step: Run) -> Iterator[tuple[int, torch.Tensor]]:
    """The logits [B, 1, V] of the last position of a prompt, and of each position that follows in the ids."""
    logits, *past = prompt(ids[:, :start])
    yield start - 1, logits
    for position in range(start, ids.shape[1]):
        logits, *past = step(ids[:, position : position + 1], *past)
        yield position, logits
