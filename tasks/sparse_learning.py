"""Sparse learning, a part of the first cut: trains the dense program so that what the cuts remove is small."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from tasks import tracking, training, workers
from tasks.recipe import Recipe
from tasks.references import File, Pinned

Kept = Mapping[str, tuple[int, ...]]


def learn(pinned: Pinned, run_id: str, program: File, kept: Kept | None) -> File:
    """Train as the recipe says. Killed and started again, it goes on from its last checkpoint."""
    processes = Recipe.model_validate(pinned.recipe).recovery.processes
    return workers.share(train, processes, pinned=pinned, run_id=run_id, program=program, kept=kept)


def train(pinned: Pinned, run_id: str, program: File, kept: Kept | None) -> File | None:
    """The training in one of its processes; the first of them logs, stores and answers."""
    from secateur import distributed, learn_sparsity
    from secateur import program as programs
    from secateur.penalties import PenaltySettings
    from secateur.pruning import Choice
    from secateur.training import Settings
    from tasks import datasets

    recipe = Recipe.model_validate(pinned.recipe)
    wanted = recipe.prune.sparse_learning
    assert wanted is not None
    settings = Settings(epochs=wanted.epochs, seed=recipe.seed, **recipe.recovery.training)
    with tracking.fetched(program) as path:
        dense = programs.load(path)
    with training.checkpoint(run_id, "sparse_learning.pt") as checkpoint:
        learned = learn_sparsity(
            dense,
            datasets.load(recipe, pinned.inputs),
            settings,
            Choice(**recipe.prune.choice),
            PenaltySettings(**wanted.penalty),
            kept=kept,
            objective=recipe.objective,
            checkpoint=checkpoint,
            on_epoch=lambda epoch: training.log_epoch(run_id, "sparse_learning", pinned.metric, epoch, settings.epochs),
            on_step=training.reporter(run_id, "sparse_learning", settings.batch),
        )
    if distributed.rank() != 0:
        return None
    epochs = learned.history[1:]
    seconds = sum(epoch.seconds for epoch in epochs)
    tracking.log(run_id, {"sparse_learning_epochs": len(epochs), "sparse_learning_seconds": seconds}, step=1)
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        made = Path(folder) / "model.pt2"
        programs.save(learned.program, made)
        return tracking.put(run_id, made, "sparse_learning")
