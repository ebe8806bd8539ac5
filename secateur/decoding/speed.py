"""How fast a causal language model answers with a cache, in ONNX Runtime: the first token, and each that follows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from secateur import compare, onnx_export, requests
from secateur.decoding.split import Run, proven, split
from secateur.errors import InputError
from secateur.runtime import Target, open_session
from secateur.worker import Block, working

ROUND_S = 1.0  # of requests in a round of one model alone, at least
FEWEST = 3  # requests of it
CONFIDENCE = 0.95  # of every interval
LONG_S = 0.1  # a request that takes this long refills the caches in its own first hundredth
_OUT_OF_POSITIONS = "out of data bounds"  # in the message of ONNX Runtime

Say = Callable[[str], None]


@dataclass(frozen=True)
class Files:
    """A model's two ONNX files, and the bytes that its cache takes for each position of each example."""

    prompt: Path
    step: Path
    bytes_per_token: int


@dataclass(frozen=True)
class Figure:
    """A median over rounds of fresh processes, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Pace:
    """One model at one batch: milliseconds to the logits of the first new token, milliseconds of each token after it (the
    mean over those that are timed, the cache growing), and what that is in tokens a second over the batch."""

    first_token_ms: Figure
    token_ms: Figure
    tokens_per_s: Figure


@dataclass(frozen=True)
class Row:
    """A batch. Speedups are those of the model over the dense one, None without it."""

    batch: int
    model: Pace
    dense: Pace | None = None
    first_token_speedup: Figure | None = None
    token_speedup: Figure | None = None


@dataclass(frozen=True)
class Report:
    """All that was measured; choosing a token from its logits is not."""

    prompt: int
    tokens: int
    bytes_per_token: int
    dense_bytes_per_token: int | None
    rows: tuple[Row, ...]


def export(program: ExportedProgram, folder: Path, name: str) -> Files:
    """Write `<name>-prompt.onnx` and `<name>-step.onnx`, proven to give the logits of the whole program.

    Raises:
        InputError: what `split` refuses.
        RuntimeError: ONNX Runtime gives other logits.
    """
    decoder = split(program)
    files = Files(folder / f"{name}-prompt.onnx", folder / f"{name}-step.onnx", decoder.bytes_per_token)
    onnx_export.export(decoder.prompt, files.prompt)
    onnx_export.export(decoder.step, files.step)
    worst = proven(program, program.module(check_guards=False), _run(files.prompt), _run(files.step))
    if not worst.error <= worst.limit:
        raise RuntimeError(f"the ONNX files of {name} give other logits than the program: {worst}")
    return files


def _run(path: Path) -> Run:
    """An ONNX file as a function of tensors."""
    session = open_session(path, Target())
    names = [spec.name for spec in session.get_inputs()]

    def run(*tensors: torch.Tensor) -> list[torch.Tensor]:
        given = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, given)]

    return run


def measure(
    model: Files,
    dense: Files | None,
    *,
    prompt: int = 128,
    tokens: int = 32,
    batches: Sequence[int] = (1, 4, 8),
    threads: int = 1,
    budget_s: float = 30.0,
    seed: int = 0,
    say: Say = lambda line: None,
) -> Report:
    """Time the first of `tokens` after a prompt of so many, and those that follow, at each batch; with a dense model in turns.

    Prompt and cache are made up: what is computed does not depend on them. Each figure takes the budget, or longer where it has
    no room for the fewest rounds that give an interval.

    Raises:
        InputError: a number below one, or positions that the model has not.
    """
    for name, number in (
        ("prompt", prompt),
        ("tokens", tokens),
        ("threads", threads),
        *(("batches", b) for b in batches),
    ):
        if number < 1:
            raise InputError(f"{name}: expected at least 1, got {number}")
    if not batches or not budget_s > 0:
        raise InputError(f"batches: expected at least one and a budget above 0, got {list(batches)} and {budget_s} s")
    pair = [model] if dense is None else [dense, model]
    rows = []
    for batch in batches:
        target = Target(threads=threads, batch=batch)
        try:
            say(f"batch {batch}: the first token after {prompt}")
            first = _timed([one.prompt for one in pair], target, prompt, 1, budget_s, seed)
            say(f"batch {batch}: {tokens} tokens after it")
            following = _timed([one.step for one in pair], target, prompt, tokens, budget_s, seed)
        except InputError as error:
            if _OUT_OF_POSITIONS not in str(error):
                raise
            raise InputError(
                f"prompt: expected with the tokens after it at most the positions that the model has, got {prompt} and "
                f"{tokens}; ask for fewer ({error})"
            ) from error
        paces = [_pace(a, b, batch) for a, b in zip(first[0], following[0], strict=True)]
        rows.append(Row(batch, paces[-1], paces[0] if dense else None, first[1], following[1]))
    return Report(prompt, tokens, model.bytes_per_token, dense.bytes_per_token if dense else None, tuple(rows))


def _pace(first: Figure, token: Figure, batch: int) -> Pace:
    rate = Figure(batch / token.value * 1e3, batch / token.high * 1e3, batch / token.low * 1e3)
    return Pace(first, token, rate)


def _timed(
    paths: Sequence[Path], target: Target, prompt: int, times: int, budget_s: float, seed: int
) -> tuple[list[Figure], Figure | None]:
    """Milliseconds of one run of each file, of so many in a row that pass on their cache; of two files, the speedup of the
    second over the first."""
    inputs = [requests.made_up(requests.inputs_of(path, target), target.batch, prompt, seed) for path in paths]
    rounds: list[list[list[float]]] = []  # of each round, of each file, the seconds of its blocks' undisturbed requests

    @contextmanager
    def fresh(swapped: bool) -> Iterator[tuple[compare.Side, ...]]:
        seen: list[list[float]] = [[] for _ in paths]
        places = range(len(paths))
        with ExitStack() as stack:
            workers = {
                place: stack.enter_context(working([paths[place]], target, inputs[place], times))[0]
                for place in (reversed(places) if swapped else places)
            }
            yield tuple(_remembered(workers[place].block, seen[place]) for place in places)
        rounds.append(seen)

    speedup = None
    if len(paths) == 2:
        known = compare.in_rounds(fresh, batch=target.batch, confidence=CONFIDENCE, budget_s=budget_s, seed=seed)  # type: ignore[arg-type]
        speedup = Figure(known.speedup, known.low, known.high)
    else:
        _alone(fresh, budget_s)
    medians = np.array([[np.median(kept) for kept in seen] for seen in rounds]) / times * 1e3
    return [Figure(float(np.median(one)), *compare.interval(one, CONFIDENCE)) for one in medians.T], speedup


def _remembered(side: compare.Side, kept: list[float]) -> compare.Side:
    """A side whose times are kept; nothing leads in where a request is long."""

    def block(requests: int, lead: int) -> Block:
        seen = side(requests, 0 if kept and kept[-1] >= LONG_S else lead)
        kept.append(compare.undisturbed(seen))
        return seen

    return block


def _alone(fresh: Callable[[bool], AbstractContextManager[tuple[compare.Side, ...]]], budget_s: float) -> None:
    """Rounds of fresh processes of one file, as many as give an interval and more while the budget lasts."""
    began, count = time.monotonic(), 0
    while count < compare.FEWEST_ROUNDS or (time.monotonic() - began) * (1 + 1 / count) < budget_s:
        with fresh(False) as (side,):
            side(1, 1)
            started, done = time.monotonic(), 0
            while done < FEWEST or time.monotonic() - started < ROUND_S:
                side(1, 0)
                done += 1
        count += 1
