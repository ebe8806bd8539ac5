"""Sparse learning, a part of the first cut: trains the dense program so that what the cuts remove is small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tasks import tracking, training
from tasks.recipe import Recipe, SparseLearning

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def learn(
    recipe: Recipe,
    names: Sequence[str],
    wanted: SparseLearning,
    run_id: str,
    program: ExportedProgram,
    kept: Mapping[str, Sequence[int]] | None,
) -> ExportedProgram:
    """Train as the recipe says. Killed and started again, it goes on from its last finished epoch."""
    from secateur import learn_sparsity
    from secateur.penalties import PenaltySettings
    from secateur.pruning import Choice
    from secateur.training import Settings
    from tasks import datasets

    settings = Settings(epochs=wanted.epochs, seed=recipe.seed, **recipe.recovery.model_dump())
    learned = learn_sparsity(
        program,
        datasets.load(recipe, names),
        settings,
        Choice(**recipe.prune.choice),
        PenaltySettings(**wanted.penalty),
        kept=kept,
        checkpoint=training.checkpoint(run_id, "sparse_learning.pt"),
        on_epoch=lambda epoch: training.log_epoch(run_id, "sparse_learning", epoch, settings.epochs),
        on_step=training.reporter(run_id, "sparse_learning", settings.batch),
    )
    epochs = learned.history[1:]
    seconds = sum(epoch.seconds for epoch in epochs)
    tracking.log(run_id, {"sparse_learning_epochs": len(epochs), "sparse_learning_seconds": seconds}, step=1)
    return learned.program
