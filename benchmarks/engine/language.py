"""What a trained language model keeps right after one-shot cuts of heads, feed-forward neurons and layers, by criterion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import fx
from torch.export import ExportedProgram
from torch.nn import functional

import secateur
from benchmarks.context import Context, Row, say
from benchmarks.trained import minilm, stories
from secateur import depth, importance
from secateur import program as programs
from secateur.calibration import Batch
from secateur.errors import InputError

Score = Callable[[fx.GraphModule], float]
CALIBRATION, UNSEEN = 64, 128  # examples to calibrate with; sequences to evaluate the stories on
# LAMP ranks the units of one axis as L2 does, and here every axis loses the same share
CRITERIA = tuple(name for name in importance.CRITERIA if name != "lamp")


def run_minilm(context: Context) -> Iterator[Row]:
    """MiniLM fine-tuned on SST-2: accuracy on dev."""
    train, validation, dev = minilm.texts(context.folder("sst2"), context.seed)
    model = minilm.fine_tuned(context, train)
    by_length = [list(minilm.batches(sorted(split, key=lambda t: len(t[0])), 64)) for split in (validation, dev)]
    calibration = list(minilm.batches(train[:CALIBRATION], 32))
    program = minilm.exported(model, calibration[0])
    module = programs.graph_module(program)
    dense = {"what": "dense", "value": accuracy(module, by_length[1])}
    dense["validation"] = accuracy(module, by_length[0])
    say(f"minilm: dense {dense['value']:.2%} on dev, {dense['validation']:.2%} on validation")
    units = {"head": (0.2, 0.4, 0.6), "width": (0.25, 0.5)}
    yield dense
    yield from _cuts(program, calibration, units, (1, 2, 3), 6, lambda cut: accuracy(cut, by_length[1]), "minilm")


def run_stories(context: Context) -> Iterator[Row]:
    """A Llama of 260 thousand parameters with grouped queries: loss on sequences that calibration did not see."""
    model, sequences = stories.load(context.folder("stories260k"))
    seen, unseen = sequences[:CALIBRATION], sequences[CALIBRATION : CALIBRATION + UNSEEN]
    calibration = [stories.batch(part) for part in seen.split(8)]
    test = [stories.batch(part) for part in unseen.split(64)]
    program = stories.exported(model, calibration[0])
    dense = {"what": "dense", "value": loss(programs.graph_module(program), test)}
    say(f"stories: dense {dense['value']:.4f} nats per token")
    units = {"kv_group": (0.25, 0.5), "q_per_group": (0.5,), "width": (0.25, 0.5)}
    yield dense
    yield from _cuts(program, calibration, units, (1, 2), 5, lambda cut: loss(cut, test), "stories")


def accuracy(module: fx.GraphModule, batches: Sequence[Batch]) -> float:
    """Share of examples answered rightly."""
    with programs.evaluating(module):
        right = sum(int((module(*inputs).argmax(1) == labels).sum()) for *inputs, labels in batches)
    return right / sum(len(batch[0]) for batch in batches)


def loss(module: fx.GraphModule, batches: Sequence[Batch]) -> float:
    """Mean negative log-likelihood of a token, in nats."""
    total, count = 0.0, 0
    with programs.evaluating(module):
        for tokens, targets in batches:
            total += float(functional.cross_entropy(module(tokens).flatten(0, 1), targets.flatten(), reduction="sum"))
            count += targets.numel()
    return total / count


def _cuts(
    program: ExportedProgram,
    calibration: list[Batch],
    units: dict[str, tuple[float, ...]],
    dropped: Sequence[int],
    layers: int,
    score: Score,
    name: str,
) -> Iterator[Row]:
    """The same share off every axis of a kind by each criterion, and whole layers by each criterion of depth."""
    for kind, shares in units.items():
        for criterion in CRITERIA:
            for share in shares:
                row = {"what": kind, "share": share, "criterion": criterion}
                yield _scored(row, score, name, lambda r: _pruned(program, calibration, r))
    for criterion in depth.CRITERIA:
        for count in dropped:
            row = {"what": "layer", "share": count / layers, "layers": count, "criterion": criterion}
            yield _scored(row, score, name, lambda r: _shallower(program, calibration, r))


def _pruned(program: ExportedProgram, calibration: list[Batch], row: Row) -> tuple[ExportedProgram, float]:
    pruned, report = secateur.prune(
        program,
        goal=secateur.Ratio(row["share"]),
        kinds=[row["what"]],
        criterion=row["criterion"],
        calibration=calibration,
    )
    return pruned, report.sparsity


def _shallower(program: ExportedProgram, calibration: list[Batch], row: Row) -> tuple[ExportedProgram, float]:
    pruned, report = secateur.drop_branches(
        program, share=row["share"], kind="layer", criterion=row["criterion"], calibration=calibration
    )
    return pruned, 1 - report.parameters_after / report.parameters_before


def _scored(row: Row, score: Score, name: str, cut: Callable[[Row], tuple[ExportedProgram, float]]) -> Row:
    """The row with what is left, or with why the criterion does not apply."""
    try:
        pruned, removed = cut(row)
    except InputError as error:
        say(f"{name}: {row['what']} by {row['criterion']} does not apply")
        return row | {"refused": str(error)}
    found = row | {"removed": removed, "value": score(programs.graph_module(pruned))}
    say(f"{name}: {row['what']} {row['share']:.0%} by {row['criterion']}: {found['value']:.4f}")
    return found
