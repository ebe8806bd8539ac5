"""Wins accuracy back after a cut: trains the cut program with the dense one as teacher."""

from __future__ import annotations

import tempfile
from pathlib import Path

from secateur.errors import InputError
from tasks import nodes, tracking, training, workers
from tasks.recipe import Recipe
from tasks.references import Cut, Pinned, Plan, Recovered


@tracking.remembered
def run(pinned: Pinned, plan: Plan, cut: Cut) -> Recovered:
    """Train, keep the epoch best on validation. Killed and started again, it goes on from its last checkpoint."""
    recipe = Recipe.model_validate(pinned.recipe)
    if recipe.resources.nodes > 1:
        return nodes.share(train, recipe.resources, recipe.processes, cut.run_id, pinned=pinned, plan=plan, cut=cut)
    return workers.share(train, recipe.processes, pinned=pinned, plan=plan, cut=cut)


def train(pinned: Pinned, plan: Plan, cut: Cut) -> Recovered | None:
    """The step in one of its processes; the first of them logs, stores and answers.

    Raises:
        InputError: the machine has fewer GPUs than the recipe asks for.
    """
    import torch

    from secateur import distributed
    from secateur import program as programs
    from secateur.training import Settings

    recipe = Recipe.model_validate(pinned.recipe)
    if (gpus := torch.cuda.device_count()) < recipe.resources.gpus:
        raise InputError(
            f"resources.gpus: expected {recipe.resources.gpus} on the machine that trains, found {gpus}; look at the place "
            "`train` of the placement and at its workers' devices, or leave it out to train on processors"
        )
    settings = Settings(epochs=plan.epochs[cut.cycle - 1], seed=recipe.seed, **recipe.recovery.training)
    recovered, lineage = training.taught(
        pinned, recipe, cut.program, settings, run_id=cut.run_id, phase="recovery", place="last.pt"
    )
    if distributed.rank() != 0:
        return None
    print(recovered, flush=True)
    tracking.log(cut.run_id, {f"{pinned.metric}_norms_reestimated": recovered.adapted}, step=cut.cycle)
    tracking.describe(cut.run_id, str(recovered))
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / "model.pt2"
        programs.save(recovered.program, path, lineage | {"objective": pinned.objective, "epoch": recovered.best.epoch})
        file = tracking.put(cut.run_id, path, "recovered")
    return Recovered(
        cycle=cut.cycle,
        run_id=cut.run_id,
        program=file,
        kept=recovered.kept,
        accuracy_before=recovered.history[0].accuracy,
        epochs=len(recovered.history) - 1,
        seconds=sum(epoch.seconds for epoch in recovered.history),
        sparsity=cut.sparsity,
    )
