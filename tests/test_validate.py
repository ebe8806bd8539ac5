"""The files that could ship are measured against the dense one; which of them does ship."""

from dataclasses import replace

import pytest
from services import Job
from test_precisions import asking

from secateur.compare import Comparison
from secateur.measure import Latency
from secateur.noise import summed
from tasks import baseline, datasets, export, gate, tracking, validate
from tasks.figures import Counts
from tasks.recipe import Recipe
from tasks.references import Exported

DENSE, DROP = 0.9, 0.02
NOTHING = Counts(0, 0, 0, None)


def candidate(accuracy: float, low: float, goal: float = 1.0) -> validate.Candidate:
    """A file of this accuracy that is at least so much faster, and reaches so much of the goal."""
    latency = Latency(1.0, 1.0, None, 1.0, 100)
    return validate.Candidate(
        Comparison(1.1 * low, low, 1.2 * low, 0.95, 6, 30, latency, latency, summed([]), 1.0),
        accuracy,
        0,
        NOTHING,
        goal,
    )


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({"pruned": (0.9, 1.5)}, "pruned"),
        ({"pruned": (0.9, 1.5), "dense_int8": (0.9, 1.4), "pruned_int8": (0.885, 2.5)}, "pruned_int8"),
        ({"pruned": (0.9, 1.5), "dense_int8": (0.9, 1.4), "pruned_int8": (0.87, 2.5)}, "pruned"),
        ({"pruned": (0.87, 1.5), "dense_int8": (0.9, 1.4), "pruned_int8": (0.86, 2.5)}, "dense_int8"),
        ({"pruned": (0.9, 1.5), "dense_int8": (0.9, 1.5), "pruned_int8": (0.9, 1.5)}, "pruned"),
        ({"pruned": (0.8, 1.5), "dense_int8": (0.85, 1.1), "pruned_int8": (0.7, 2.5)}, "dense_int8"),
        ({"pruned": (0.9, 1.0), "dense_int8": (0.9, 1.4, 0.5), "pruned_int8": (0.9, 1.3)}, "pruned_int8"),
        ({"pruned": (0.9, 1.0), "dense_int8": (0.9, 1.4, 0.5), "pruned_int8": (0.87, 1.3)}, "pruned"),
        ({"pruned": (0.9, 1.0, 0.9), "dense_int8": (0.9, 1.4, 0.5), "pruned_int8": (0.87, 1.3)}, "pruned"),
        ({"pruned": (0.9, 1.0, 0.9), "dense_int8": (0.9, 1.4, 0.5), "pruned_int8": (0.9, 1.3, 0.9)}, "pruned_int8"),
    ],
)
def test_the_fastest_file_within_the_budget_that_reaches_the_goal_ships_else_the_nearest_or_the_most_accurate(
    found: dict[str, tuple[float, ...]], chosen: str
) -> None:
    ships, reason = validate.choose(
        {name: candidate(*figures) for name, figures in found.items()}, DENSE, DROP, "accuracy"
    )
    assert ships == chosen
    assert reason.startswith(f"{chosen}: ")
    assert ("none of" in reason) == all(accuracy < DENSE - DROP for accuracy, *_ in found.values())


@pytest.mark.usefixtures("services")
@pytest.mark.slow
def test_all_files_are_measured_against_the_dense_one_and_the_one_that_ships_gives_the_figures(job: Job) -> None:
    pinned = asking(job, "measures int8", True, fp16=True)
    base = baseline.run(pinned)
    exported: Exported = export.run(pinned, base, job.selected)
    assert list(exported.candidates) == ["pruned", "dense_int8", "pruned_int8", "dense_fp16", "pruned_fp16"]
    assert len({file.sha256 for file in exported.candidates.values()}) == 5
    validated = validate.run(pinned, base, exported)
    run = tracking.client().get_run(pinned.run_id).data
    for name in exported.candidates:
        low, middle, high = (run.metrics[f"{name}.{end}"] for end in ("speedup_low", "speedup", "speedup_high"))
        assert low <= middle <= high
        assert run.metrics[f"{name}.validation_accuracy"] > 0.5
    assert run.metrics["pruned_fp16.size_bytes"] < run.metrics["pruned.size_bytes"]
    assert run.metrics["pruned_int8.size_bytes"] < run.metrics["dense_int8.size_bytes"]
    assert run.tags["secateur.ships"].startswith(f"{validated.ships}: ")
    assert run.metrics["speedup_low"] == run.metrics[f"{validated.ships}.speedup_low"] == validated.speedup_low
    assert gate.run(pinned, exported, validated).ships == validated.ships


@pytest.mark.usefixtures("services")
def test_a_file_that_keeps_a_goals_limit_at_no_rate_is_no_error_and_reaches_nothing_of_it(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {**job.pinned.recipe, "goal": {"qps": {"rate": 100, "p99_ms": 1e-4}}}
    recipe = Recipe.model_validate(asked)
    dense = replace(job.baseline.figures, requests_per_s=10.0)
    validation = datasets.load(recipe, job.pinned.inputs).validation
    assert job.exported.pruned is not None
    with tracking.fetched(job.exported.dense) as first, tracking.fetched(job.exported.pruned) as second:
        found = validate._measured(recipe, dense, first, second, validation, NOTHING)
    assert found.share_of_goal == 0
    assert not found.reaches
    assert "is not known to reach qps" in capsys.readouterr().out
