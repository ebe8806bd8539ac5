"""Rows on SST-2: MiniLM with fewer heads, with fewer heads and feed-forward neurons until it is as fast as asked, with fewer layers."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

import secateur
from benchmarks import counts
from benchmarks.accuracy import cycles
from benchmarks.accuracy.cycles import Subject
from benchmarks.accuracy.scales import Scale
from benchmarks.accuracy.study import Ask, Trial
from benchmarks.context import Context, Row, say
from benchmarks.trained import minilm
from secateur import compare, onnx_export
from secateur.calibration import Batch
from secateur.data import Dataset
from secateur.runtime import Target
from secateur.sparsity import Masks

CRITERION, CALIBRATION = "taylor", 128  # training sentences, of which a gradient each is taken
HEADS = {0.2: None, 0.4: Ask("drop", 0.005), 0.6: None}
KINDS, ALLOCATION, ALIGN = ("head", "width"), "grouped", 16
SPEEDUP = 2.0
TARGET, LENGTH = Target(threads=2), 32  # of a request, in tokens
SHARES = (0.3, 0.85)  # of heads and neurons, among which the speedup is sought
DISTILBERT = "97% of BERT's score over GLUE, DistilBERT (Sanh et al., 2019)"


@functools.cache
def subject(context: Context, sentences: int | None) -> Subject:
    """The fine-tuned classifier and SST-2; dev is test. Word vectors stay as they are, as in fine-tuning."""
    train, validation, dev = minilm.texts(context.folder("sst2"), context.seed)
    model = minilm.fine_tuned(context, train)
    data = Dataset(*(minilm.split(part) for part in (train, validation[:sentences], dev)))
    model.model.bert.embeddings.requires_grad_(False)
    return Subject(minilm.exported(model, tuple(torch.from_numpy(column[:2]) for column in data.test.columns)), data)


def calibration(whole: Subject, seed: int) -> list[Batch]:
    """Some training sentences, a batch of like lengths each, without padding that all of it has."""
    train = whole.data.train
    chosen = np.random.default_rng(seed).permutation(len(train))[:CALIBRATION]
    assert train.lengths is not None
    ordered = chosen[np.argsort(train.lengths[chosen])]
    parts = [(train.take(part), int(train.lengths[part].max())) for part in np.array_split(ordered, 16)]
    return [
        (*(torch.from_numpy(column[:, :longest]) for column in part.columns), torch.from_numpy(part.labels))
        for part, longest in parts
    ]


def cut_units(whole: Subject, kinds: tuple[str, ...], seed: int, allocation: str, align: int = 1) -> cycles.Cut:
    """Cuts heads (and neurons) until a share of the dense program's is gone."""
    all_units, batches = counts.units(whole.dense, kinds), calibration(whole, seed)

    def cut(program: ExportedProgram, share: float) -> tuple[ExportedProgram, Masks]:
        goal = secateur.Ratio(1 - (1 - share) * all_units / counts.units(program, kinds))
        pruned, _ = secateur.prune(
            program,
            goal=goal,
            kinds=kinds,
            criterion=CRITERION,
            allocation=allocation,
            align=align,
            calibration=batches,
            seed=seed,
        )
        return pruned, {}

    return cut


def heads(scale: Scale) -> list[Trial]:
    """Heads alone, the least important of all layers first."""
    row = "minilm-heads"
    recipe = scale.recipes[row]
    settings = {"criterion": CRITERION, "allocation": "global", "recipe": recipe.told(), "sentences": scale.sentences}

    def run(context: Context, share: float, seed: int) -> Row:
        whole = subject(context, scale.sentences)
        folder = cycles.working_folder(context, row, f"{share}", seed, settings)
        return cycles.in_cycles(whole, cut_units(whole, ("head",), seed, "global"), share, recipe, seed, folder)[1]

    return [
        Trial(
            f"{share:.0%} of the heads",
            seed,
            settings,
            functools.partial(run, share=share, seed=seed),
            ask,
            "no noticeable loss at 40% of BERT's heads (MNLI), Michel et al., NeurIPS 2019" if share == 0.4 else "",
        )
        for share, ask in HEADS.items()
        for seed in scale.seeds
    ]


def speedup(scale: Scale) -> list[Trial]:
    """Heads and feed-forward neurons, as many as measured latency asks for."""
    row = "minilm-speedup"
    recipe = scale.recipes[row]
    settings = {"criterion": CRITERION, "allocation": ALLOCATION, "align": ALIGN, "recipe": recipe.told()}
    settings |= {"speedup": SPEEDUP, "target": vars(TARGET), "length": LENGTH, "sentences": scale.sentences}

    def run(context: Context, seed: int) -> Row:
        whole = subject(context, scale.sentences)
        folder = cycles.working_folder(context, row, "2x", seed, settings)
        cut = cut_units(whole, KINDS, seed, ALLOCATION, ALIGN)
        with tempfile.TemporaryDirectory() as place:
            share = _share_for(SPEEDUP, whole, cut, Path(place))
            program, made = cycles.in_cycles(whole, cut, share, recipe, seed, folder)
            measured = _compared(whole, program, Path(place))
        return made | {"share": share, "speedup": measured.speedup, "speedup_range": [measured.low, measured.high]}

    return [
        Trial(
            f"heads and FFN, {SPEEDUP:g}x measured",
            seed,
            settings,
            functools.partial(run, seed=seed),
            Ask("drop", 0.01),
        )
        for seed in scale.seeds
    ]


def _share_for(faster: float, whole: Subject, cut: cycles.Cut, place: Path) -> float:
    """The smallest share, to a hundredth, whose cut is measured to be as fast as asked; sought by halving."""
    low, high = (round(100 * share) for share in SHARES)
    while low < high:
        middle = (low + high) // 2
        seen = _compared(whole, cut(whole.dense, middle / 100)[0], place)
        say(f"{middle}% of heads and neurons gone: {seen.speedup:.2f}x ({seen.low:.2f} to {seen.high:.2f})")
        low, high = (low, middle) if seen.speedup >= faster else (middle + 1, high)
    return low / 100


def _compared(whole: Subject, program: ExportedProgram, place: Path) -> compare.Comparison:
    """Dense and pruned alternating on ONNX Runtime, one sentence at a time."""
    if not (place / "dense.onnx").exists():
        onnx_export.export(whole.dense, place / "dense.onnx")
    onnx_export.export(program, place / "pruned.onnx")
    assert whole.data.test.lengths is not None
    longest = np.argsort(whole.data.test.lengths)[-8:]
    request = [column[longest, :LENGTH] for column in whole.data.test.columns]
    return compare.compare(place / "dense.onnx", place / "pruned.onnx", TARGET, request, until=0.01, budget_s=60)


def layers(scale: Scale) -> list[Trial]:
    """Three of six layers, by how little they move what passes through, or the last ones."""
    row = "minilm-layers"
    recipe = scale.recipes[row]
    settings = {"recipe": recipe.told(), "sentences": scale.sentences}

    def run(context: Context, criterion: str, seed: int) -> Row:
        whole = subject(context, scale.sentences)
        batches = calibration(whole, seed)
        folder = cycles.working_folder(context, row, criterion, seed, settings)

        def cut(program: ExportedProgram, share: float) -> tuple[ExportedProgram, Masks]:
            shallow, _ = secateur.drop_branches(program, share=share, criterion=criterion, calibration=batches)
            return shallow, {}

        return cycles.in_cycles(whole, cut, 0.5, recipe, seed, folder)[1]

    return [
        Trial(
            f"6 to 3 layers by {criterion}",
            seed,
            settings,
            functools.partial(run, criterion=criterion, seed=seed),
            Ask("share", 0.97),
            DISTILBERT,
        )
        for criterion in ("influence", "last")
        for seed in scale.seeds
    ]
