"""The row on stories260k: perplexity of a small Llama with grouped queries after structured, unstructured and 2:4 cuts."""

from __future__ import annotations

import functools

from torch.export import ExportedProgram

import secateur
from benchmarks.accuracy import cycles
from benchmarks.accuracy.cycles import Subject
from benchmarks.accuracy.scales import Scale
from benchmarks.accuracy.study import Trial
from benchmarks.context import Context, Row
from benchmarks.trained import stories
from secateur.calibration import Batch
from secateur.data import Dataset, Split
from secateur.sparsity import NM, Masks, Pattern, Unstructured

ROW = "stories260k"
TEST, VALIDATION, CALIBRATION = 128, 64, 64  # sequences; the rest of 512 are for training
UNITS = {"FFN 25%": ("width", 0.25), "FFN 50%": ("width", 0.5), "1 KV group of 4": ("kv_group", 0.25)}
BY = "wanda"  # for whole units: the best on this model right after a cut, as `make bench-engine` shows
PATTERNS: dict[str, Pattern] = {"50% of the weights": Unstructured(0.5), "2:4": NM(2, 4)}
LLAMA = "Llama-2-7B, WikiText: {:.2f} from 5.12, Wanda's repository (Sun et al., ICLR 2024)"
PUBLISHED = {
    ("50% of the weights", "magnitude"): 14.89,
    ("50% of the weights", "wanda"): 6.42,
    ("50% of the weights", "sparsegpt"): 6.51,
    ("2:4", "magnitude"): 54.59,
    ("2:4", "wanda"): 11.02,
    ("2:4", "sparsegpt"): 10.17,
}


@functools.cache
def subject(context: Context) -> tuple[Subject, list[Batch]]:
    """The model with its sequences, and batches to calibrate with. Targets are shifted already: any position's own."""
    model, sequences = stories.load(context.folder("stories260k"))
    test, validation, train = sequences.split([TEST, VALIDATION, len(sequences) - TEST - VALIDATION])
    pairs = (stories.batch(part) for part in (train, validation, test))
    splits = (Split(tokens.numpy(), following.numpy()) for tokens, following in pairs)
    calibration = [stories.batch(part) for part in train[:CALIBRATION].split(8)]
    return Subject(stories.exported(model, calibration[0]), Dataset(*splits), "masked_lm"), calibration


def trials(scale: Scale) -> list[Trial]:
    """Units by one criterion, single weights by three."""
    recipe = scale.recipes[ROW]
    settings = {"recipe": recipe.told(), "calibration": CALIBRATION}

    def run(context: Context, label: str, criterion: str, seed: int) -> Row:
        whole, calibration = subject(context)

        def cut(program: ExportedProgram, share: float) -> tuple[ExportedProgram, Masks]:
            if label in PATTERNS:
                sparse, masks, _ = secateur.sparsify(
                    program, pattern=PATTERNS[label], criterion=criterion, calibration=calibration
                )
                return sparse, masks
            pruned, _ = secateur.prune(
                program,
                goal=secateur.Ratio(share),
                kinds=[UNITS[label][0]],
                criterion=criterion,
                calibration=calibration,
            )
            return pruned, {}

        folder = cycles.working_folder(context, ROW, f"{label}-{criterion}", seed, settings)
        share = UNITS[label][1] if label in UNITS else 0.5
        made = cycles.in_cycles(whole, cut, share, recipe, seed, folder)[1]
        return made | {"criterion": criterion, "pattern": label}

    cells = [(label, BY) for label in UNITS] + list(PUBLISHED)
    return [
        Trial(
            f"{label}, {criterion}",
            seed,
            settings,
            functools.partial(run, label=label, criterion=criterion, seed=seed),
            published=LLAMA.format(PUBLISHED[label, criterion]) if (label, criterion) in PUBLISHED else "",
        )
        for label, criterion in cells
        for seed in scale.seeds
    ]
