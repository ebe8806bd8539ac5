"""The plan: a goal becomes cycles that each remove the same share, epochs that add up, and reasons."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from services import Job, another_job, recipe_for

from secateur.errors import InputError
from tasks import plan, recipe, tracking
from tasks.references import Plan

pytestmark = pytest.mark.usefixtures("services")


def planned(job: Job, **changes: Any) -> Plan:
    """The plan of the shared job's model for a recipe with these sections."""
    wanted = recipe.Recipe.model_validate(recipe_for("data.npz", **changes)).model_dump(mode="json")
    pinned = another_job(job.pinned, f"plan {tracking.digest(changes)}")
    return plan.run(replace(pinned, recipe=wanted), job.baseline)


@pytest.mark.parametrize(
    ("share", "asked", "cycles", "why"),
    [
        (0.05, None, 1, "one-shot"),
        (0.3, None, 1, "one-shot"),
        (0.31, None, 2, "two cycles"),
        (0.5, None, 2, "two cycles"),
        (0.51, None, 3, "three cycles"),
        (0.95, None, 3, "three cycles"),
        (0.95, 1, 1, "set in the recipe"),
        (0.05, 5, 5, "set in the recipe"),
    ],
)
def test_the_more_goes_the_more_cycles_unless_the_recipe_says_how_many(
    share: float, asked: int | None, cycles: int, why: str
) -> None:
    count, reason = plan.cycles_for(share, asked)
    assert count == cycles
    assert why in reason


def test_every_cycle_takes_the_same_share_of_what_is_left_and_the_last_one_meets_the_goal(job: Job) -> None:
    made = planned(job, goal={"sparsity": 0.75})
    left = [1.0, *(1 - share for share in made.shares)]
    ratios = [after / before for before, after in itertools.pairwise(left)]
    assert made.measure == "sparsity"
    assert made.shares[-1] == pytest.approx(0.75)
    assert ratios == pytest.approx([ratios[0]] * 3)


@pytest.mark.parametrize("epochs", [3, 7, 12])
def test_the_cycles_share_out_all_epochs_evenly(job: Job, epochs: int) -> None:
    made = planned(job, goal={"macs": 0.6}, budget={"recovery_epochs": epochs})
    assert made.measure == "macs"
    assert sum(made.epochs) == epochs
    assert max(made.epochs) - min(made.epochs) <= 1


@pytest.mark.parametrize(
    ("budget", "epochs", "why"),
    [
        ({}, 12, "set in the recipe"),
        ({"trained_epochs": 100}, 15, "15% of the 100"),
        ({"trained_epochs": 90, "recovery": 0.5}, 45, "outside the published 10 to 20%"),
        ({"trained_steps": 1000, "recovery": 0.1}, 20, "10% of the 200"),
        ({"trained_epochs": 2, "recovery": 0.1}, 1, "10% of the 2"),
    ],
)
def test_recovery_takes_a_share_of_the_training_before_and_at_least_an_epoch(
    budget: dict[str, Any], epochs: int, why: str
) -> None:
    wanted = recipe.Budget.model_validate(budget)
    total, reason = plan.epochs_for(wanted, steps_per_epoch=5)
    assert total == epochs
    assert why in reason


def test_a_goal_that_is_measured_is_planned_as_the_share_that_goes_and_how_far_the_axes_reach_is_said(job: Job) -> None:
    made = planned(job, goal={"speedup": 4.0})
    assert made.measure == "speedup"
    assert made.shares[-1] == pytest.approx(1 - 1 / 4)
    assert any("speedup 4: 4.00x; every cut is measured" in reason for reason in made.reasons)
    assert any("at its narrowest by what is counted at most" in reason for reason in made.reasons)


def test_a_limit_becomes_the_share_of_the_dense_model_that_is_too_much(job: Job) -> None:
    dense = job.baseline.figures.size_bytes
    assert planned(job, goal={"size_mb": dense / 2e6}).shares[-1] == pytest.approx(0.5)
    with pytest.raises(InputError, match=r"^goal\.size_mb: the dense model measures 0\..*, 1e\+06 was asked"):
        planned(job, goal={"size_mb": 1e6})


def test_a_goal_beyond_the_narrowest_axes_is_said_to_be_out_of_reach(job: Job) -> None:
    made = planned(job, goal={"size_mb": job.baseline.figures.size_bytes / 1e9})
    assert any("the goal is out of reach: the cycles go as far as they can" in reason for reason in made.reasons)


def test_the_method_is_chosen_by_what_it_buys_on_the_target(job: Job) -> None:
    made = planned(job, target={"provider": "CPUExecutionProvider"})
    assert any("structured: on CPUExecutionProvider units that leave buy time" in reason for reason in made.reasons)
    assert any("single weights: zeros would buy disk (dense kernels" in reason for reason in made.reasons)


def test_the_plan_with_its_reasons_is_an_artifact_of_the_run(job: Job) -> None:
    stored = tracking.client().download_artifacts(job.pinned.run_id, "plan.json")
    assert tuple(json.loads(Path(stored).read_text())["reasons"]) == job.plan.reasons
    assert any("two cycles" in reason for reason in job.plan.reasons)


def test_the_plan_says_what_int8_may_buy_where_it_is_asked_for(job: Job) -> None:
    reasons = planned(job, quantize={"int8": "auto"}).reasons
    assert reasons[-1].startswith(
        "INT8 of the dense and of the pruned model beside them: on CPUExecutionProvider it may buy "
    )
    assert not any("INT8" in reason for reason in job.plan.reasons)
