"""Pins everything a run depends on; all bad input ends here, before anything is trained or written."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tasks import bucket, nodes, placement, references, tracking
from tasks import recipe as recipes
from tasks import sweep as sweeps
from tasks.recipe import Recipe
from tasks.references import Pinned

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from secateur.data import Split


def run(
    model: str, version: str, recipe: str, fresh: bool, dag_run_id: str, trial: bool = False, sweep: str = ""
) -> Pinned:
    """Find the version and the recipe, check that model, data and goal go together, open the parent run.

    Two runs with the same inputs share one parent run, unless `fresh` asks to measure and train again: in a run of its own, or in
    those of a sweep, whose MLflow run `sweep` is. A `trial` ends before the gate.

    Raises:
        InputError: any of them is unknown, unusable, or does not fit the others.
        RegistryDownError: MLflow does not answer.
        OSError: S3 does not answer.
    """
    wanted = recipes.load(recipe)
    elsewhere = placement.check_target(wanted.target.name)
    for index, other in enumerate(wanted.also_on):
        placement.check_target(other.name, f"also_on.{index}.name")
    nodes.check(wanted.resources.nodes)
    tracking.client()
    bucket.check()
    from secateur import objectives, penalties, pruning, sparse_learning
    from secateur import program as programs
    from secateur.errors import InputError
    from tasks import datasets, gate, methods, registry

    if wanted.model != model:
        raise InputError(
            f"recipe {recipe}: is for model {wanted.model!r}, got model {model!r}; set `model: {model}` in a recipe"
        )
    objective = objectives.objective_of(wanted.objective)
    number, file = registry.source(model, version)
    with tracking.fetched(file) as path:
        program, lineage = programs.load(path), programs.lineage(path)
    names = tuple(programs.input_specs(program))
    dataset = datasets.load(wanted, names)
    datasets.check(wanted, dataset, program)
    gate.check(wanted, objective, dataset.test, names)
    _check_target(wanted, program, dataset.validation, elsewhere=elsewhere)
    methods.check(wanted, program, lineage, names)
    if learning := wanted.prune.sparse_learning:
        choice = pruning.Choice(**wanted.prune.choice)
        sparse_learning.check_learnable(program, choice, penalties.PenaltySettings(**learning.penalty))
    pinned = Pinned(
        model=model,
        version=number,
        recipe_name=recipe,
        recipe=_dumped(wanted),
        program=file,
        program_digest=programs.digest(program),
        data_digest=dataset.digest,
        code_digest=tracking.code_digest(),
        key="",
        experiment_id="",
        run_id="",
        dag_run_id=dag_run_id,
        inputs=names,
        objective=objectives.identity_of(wanted.objective),
        metric=objective.metric,
        examples=len(dataset.train),
        trial=trial,
        sweep=sweep,
        schema=references.SCHEMA,
    )
    return _with_parent_run(pinned, wanted, salt=(sweep or dag_run_id) if fresh else "")


def _check_target(recipe: Recipe, program: ExportedProgram, validation: Split, *, elsewhere: bool) -> None:
    """Raise InputError unless the target works, where it is this machine, and its requests can be made of the examples."""
    from secateur import data_checks, probe
    from secateur.errors import InputError
    from tasks import figures

    target = figures.target_of(recipe)
    if not elsewhere:
        probe.try_provider(target.provider)
    sizes = {"target.batch": target.batch, "target.batches": max(recipe.target.batches, default=1)}
    sizes |= {f"also_on.{number}.batch": other.batch for number, other in enumerate(recipe.also_on)}
    for name, batch in sizes.items():
        if batch > len(validation):
            raise InputError(
                f"{name}: expected at most the {len(validation)} examples of the validation split, got {batch}; "
                "latency is measured on real examples"
            )
    for length in (target.length, *(other.length for other in recipe.also_on)):
        if length is not None:
            data_checks.check_length(program, validation.columns, length)


def _with_parent_run(pinned: Pinned, recipe: Recipe, salt: str) -> Pinned:
    experiment, key = tracking.experiment_of(pinned.model), _key(pinned, recipe, salt)
    begun = _rung_before(pinned, recipe, experiment, salt)
    if pinned.sweep and not pinned.trial:
        sweeps.check_job(pinned, tracking.find_run(experiment, key))
    name = f"{pinned.model} v{pinned.version} · {pinned.recipe_name}"
    tags = {
        "secateur.kind": "job",
        "secateur.source": f"models:/{pinned.model}/{pinned.version}",
        "secateur.recipe": pinned.recipe_name,
        "secateur.dag_run": pinned.dag_run_id,
        "secateur.program": pinned.program_digest,
        "secateur.data": pinned.data_digest,
        "secateur.code": pinned.code_digest,
        "secateur.objective": pinned.objective,
        "secateur.metric": pinned.metric,
        "secateur.schema": str(pinned.schema),
    }
    if pinned.sweep:
        tags |= {"mlflow.parentRunId": pinned.sweep}
    run_id = tracking.find_or_create_run(experiment, key, name, tags)
    complete = dataclasses.replace(pinned, key=key, experiment_id=experiment, run_id=run_id, begun=begun)
    if pinned.sweep:
        sweeps.note_job(complete)
    tracking.put_json(run_id, "recipe.json", pinned.recipe)
    tracking.log_params(run_id, {"model_version": pinned.version, **_flat(pinned.recipe)})
    return complete


def _key(pinned: Pinned, recipe: Recipe, salt: str) -> str:
    """What tells a job from others: all that it depends on, and not what it is called or how far it goes."""
    inputs = dataclasses.asdict(pinned) | {"recipe": _dumped(recipe)}
    beside = ("recipe_name", "dag_run_id", "trial", "sweep", "begun")
    return tracking.digest([{name: value for name, value in inputs.items() if name not in beside}, salt])


def _rung_before(pinned: Pinned, recipe: Recipe, experiment: str, salt: str) -> str:
    """The parent run of the rung before, whose recovery this one goes on with; nothing in a first rung."""
    from secateur.errors import InputError

    if recipe.trial is None or recipe.trial.rung == 1:
        return ""
    trial = recipe.trial.model_copy(update={"rung": recipe.trial.rung - 1})
    found = tracking.find_run(experiment, _key(pinned, recipe.model_copy(update={"trial": trial}), salt))
    if found is None:
        raise InputError(
            f"recipe {pinned.recipe_name}: expected rung {trial.rung} of this candidate to have run, with the same version, data "
            "and code; start the sweep, or run the candidate without a rung"
        )
    return found


def _dumped(recipe: Recipe) -> dict:
    return recipe.model_dump(mode="json", exclude={"monitor"})


def _flat(recipe: dict, prefix: str = "") -> dict[str, str]:
    """A recipe as the parameters that MLflow's compare view lines up: `goal.sparsity`, ..."""
    flat: dict[str, str] = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = str(value)
    return flat
