"""Other targets that will serve what ships: each measures it, and the gate asks the same of it there."""

import dataclasses

import pytest
from services import Job, Servers, another_job

from secateur.errors import InputError
from tasks import gate, tracking, validate_on
from tasks.placement import HERE
from tasks.recipe import Recipe
from tasks.references import Pinned, RuleResult

NAMES = ["edge", "server"]


@pytest.fixture
def pinned(job: Job, services: Servers) -> Pinned:
    """The shared job with two more targets."""
    recipe = Recipe.model_validate(job.pinned.recipe | {"also_on": [{"name": name, "batch": 2} for name in NAMES]})
    return another_job(dataclasses.replace(job.pinned, recipe=recipe.model_dump(mode="json")), "elsewhere")


def test_the_targets_are_the_recipes_in_order(job: Job, pinned: Pinned) -> None:
    assert validate_on.targets(pinned, job.validated) == NAMES
    assert validate_on.targets(job.pinned, job.validated) == []


@pytest.mark.slow
def test_what_ships_is_measured_there_and_the_gate_judges_it_too(job: Job, pinned: Pinned) -> None:
    found = tuple(validate_on.run(pinned, job.exported, job.validated, name) for name in NAMES)
    for name, one in zip(NAMES, found, strict=True):
        assert one.target == name
        assert one.speedup_low <= one.speedup <= one.speedup_high
        assert {rule.name for rule in one.rules} == {f"speedup on {name}", f"accuracy on {name}"}
    logged = tracking.client().get_run(pinned.run_id).data.metrics
    assert logged["edge.speedup"] == found[0].speedup
    assert validate_on.run(pinned, job.exported, job.validated, "server") == found[1]  # remembered, each by its name

    verdict = gate.run(pinned, job.exported, job.validated, found)
    assert verdict.outcome == "pass"
    named = {rule.name for rule in verdict.rules}
    assert named >= {f"{rule} on {name}" for rule in ("speedup", "accuracy") for name in NAMES}


@pytest.mark.slow
def test_a_target_on_which_it_is_too_slow_fails_the_verdict(job: Job, pinned: Pinned) -> None:
    asked = pinned.recipe | {"gate": pinned.recipe["gate"] | {"speedup": 1000.0}, "goal": {"speedup": 2000.0}}
    slow = another_job(dataclasses.replace(pinned, recipe=asked), "too slow elsewhere")
    found = validate_on.run(slow, job.exported, job.validated, "edge")
    verdict = gate.run(pinned, job.exported, job.validated, (found,))
    assert verdict.outcome == "fail"
    (rule,) = [rule for rule in verdict.rules if rule.outcome == "fail"]
    assert isinstance(rule, RuleResult)
    assert rule.name == "speedup on edge"


def test_another_device_than_the_workers_is_refused(job: Job, pinned: Pinned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HERE, "server")
    other = another_job(pinned, "on the wrong device")
    with pytest.raises(InputError, match=r"^target.name: expected server, the device of this worker"):
        validate_on.run(other, job.exported, job.validated, "edge")


def test_where_nothing_was_validated_nothing_is_judged(job: Job) -> None:
    from secateur.errors import NothingToDo

    with pytest.raises(NothingToDo, match="the plan was not to prune"):
        gate.run(job.pinned, None, None, None)
