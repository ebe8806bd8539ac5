"""The plan: a goal becomes cycles that each remove the same share, epochs that add up, and reasons with their numbers."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from services import Job, another_job, recipe_for

from secateur.errors import NothingToDo
from secateur.planner import Alone
from tasks import cut, plan, recipe, select, tracking
from tasks.references import Baseline, Pinned, Plan

pytestmark = pytest.mark.usefixtures("services")


def job_of(job: Job, **changes: Any) -> Pinned:
    """The shared job's model and data as a job of its own with these sections of the recipe."""
    filled = recipe.Recipe.model_validate(recipe_for(job.pinned.recipe["data"]["path"], **changes))
    return replace(another_job(job.pinned, f"plan {tracking.digest(changes)}"), recipe=filled.model_dump(mode="json"))


def planned(job: Job, baseline: Baseline | None = None, **changes: Any) -> Plan:
    """The plan of the shared job's model for a recipe with these sections."""
    return plan.run(job_of(job, **changes), baseline or job.baseline)


def row(made: Plan, choice: str) -> str:
    """What was chosen, why, and by which numbers."""
    return next(f"{row.chosen}: {row.because} [{row.numbers}]" for row in made.reasons if row.choice == choice)


def test_every_cycle_takes_the_same_share_of_what_is_left_and_all_epochs_are_shared_out_evenly(job: Job) -> None:
    made = planned(job, goal={"macs": 0.75}, budget={"recovery_epochs": 7})
    left = [1.0, *(1 - share for share in made.shares)]
    ratios = [after / before for before, after in itertools.pairwise(left)]
    assert (made.method, made.measure) == ("structured", "macs")
    assert made.shares[-1] == pytest.approx(0.75)
    assert ratios == pytest.approx([ratios[0]] * 3)
    assert sum(made.epochs) == 7
    assert max(made.epochs) - min(made.epochs) <= 1


def test_the_training_before_is_told_in_epochs_or_in_steps_and_recovery_is_a_share_of_it(job: Job) -> None:
    wanted = {"prune": {"method": "unstructured"}, "goal": {"sparsity": 0.3}}
    made = planned(job, budget={"trained_steps": 1000, "recovery": 0.1}, recovery={"batch": 24}, **wanted)
    assert sum(made.epochs) == 20, "120 examples are 5 steps"
    assert row(made, "recovery").endswith("[10% of the 200 of training]")


def test_a_goal_that_is_measured_says_how_far_the_axes_reach_and_that_every_cut_is_measured(job: Job) -> None:
    wish = job.baseline.figures.size_bytes / 1e9
    made = planned(job, goal={"size_mb": wish})
    assert made.shares[-1] == pytest.approx(1 - 1e-3)
    assert "the goal is out of reach" in row(made, "method")
    assert "1000.00x wanted, structured at most " in row(made, "method")
    assert "every cut is measured before its recovery" in row(made, "aim")


def test_the_method_is_chosen_by_what_it_buys_on_the_target_and_by_what_a_one_shot_cut_costs(job: Job) -> None:
    told = row(job.plan, "method")
    assert told.startswith("structured: on this target it buys time (fewer multiply-accumulates in dense kernels")
    assert "one-shot cuts lose " in told
    assert "(36 examples)" not in told
    assert " 36 examples) at 50%]" in told, "of validation"
    others = {one.chosen: one.because for one in job.plan.reasons if one.choice == "not"}
    assert others["depth"].startswith("kind: expected branches of kind block in the program, found none")
    assert others["unstructured"].startswith("it would buy disk (dense kernels: a zero costs what any number costs")


def test_sparse_learning_asks_for_units_to_leave(job: Job) -> None:
    made = planned(job, prune={"align": 4, "sparse_learning": {"method": "group_lasso"}})
    assert row(made, "method").startswith("structured: set in the recipe (prune.sparse_learning)")


def test_the_plan_with_its_reasons_is_an_artifact_of_the_run_and_a_table(job: Job) -> None:
    stored = tracking.client().download_artifacts(job.pinned.run_id, "plan.json")
    assert json.loads(Path(stored).read_text())["reasons"] == [vars(one) for one in job.plan.reasons]
    text = (tracking.get_bytes(job.pinned.run_id, "plan.txt") or b"").decode()
    assert "between 30% and 50% goes" in " ".join(text.split()) or "cycles" in text


def test_the_plan_says_what_int8_may_buy_where_it_is_asked_for(job: Job) -> None:
    made = planned(job, quantize={"int8": "auto"}, prune={"method": "unstructured"})
    assert row(made, "beside").startswith("INT8: of the dense and of the pruned model; it may buy ")
    assert not any(one.choice == "beside" for one in job.plan.reasons)


def test_where_int8_alone_is_enough_no_cycle_runs_and_it_is_selected(job: Job) -> None:
    pinned = job_of(job, goal={"speedup": 1.5}, quantize={"int8": True})
    base = replace(job.baseline, int8_alone=Alone(0.0, 1.6, 1.7, 1.6, 1.8))
    made = plan.run(pinned, base)
    assert (made.method, made.shares, made.epochs) == ("quantize", (), ())
    with pytest.raises(NothingToDo, match=r"^cycle 1: quantize: INT8 of the dense model reaches the goal within the"):
        cut.run(pinned, base, made, 1, None)
    selected = select.run(pinned, base, made, [None] * 5)
    assert selected.cycle is None
    assert selected.reason.startswith("INT8 of the dense model: INT8 of the dense model reaches the goal")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"goal": {"size_mb": 1e6}}, "the dense model is within the goal as it is"),
        ({"goal": {"sparsity": 0.9999}}, "no method that this target gains by reaches the goal"),
        ({"prune": {"method": "none"}}, r"set in the recipe \(prune\.method\)"),
    ],
    ids=["within the goal", "out of reach", "overruled"],
)
def test_where_nothing_is_to_be_pruned_the_run_ends_with_the_reason_where_one_looks_first(
    job: Job, changes: dict[str, Any], why: str
) -> None:
    pinned = job_of(job, **changes)
    made = plan.run(pinned, job.baseline)
    assert (made.method, made.shares) == ("none", ())
    with pytest.raises(NothingToDo, match=f"^cycle 1: none: {why}$"):
        cut.run(pinned, job.baseline, made, 1, None)
    with pytest.raises(NothingToDo, match=f"^not pruned: {why}$"):
        select.run(pinned, job.baseline, made, [None] * 5)
    run = tracking.client().get_run(pinned.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"] == f"**not pruned** · {made.reasons[0].because}"
