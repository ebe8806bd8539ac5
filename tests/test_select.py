"""Selection: the fastest cycle within the accuracy budget; if there is none, the most accurate."""

from dataclasses import replace

import pytest
from services import Job, another_job

from secateur.errors import InputError
from tasks import select, tracking
from tasks.references import Cycle, Pinned

pytestmark = pytest.mark.usefixtures("services")

# accuracy given up and speedup, cycle by cycle; the shared recipe allows 0.2
MILD, MIDDLE, STEEP = (-0.01, 1.5), (-0.2, 2.0), (-0.21, 4.0)


@pytest.fixture
def pinned(job: Job, request: pytest.FixtureRequest) -> Pinned:
    """A job of its own."""
    return another_job(job.pinned, request.node.name)


def cycles(job: Job, *ends: tuple[float, float]) -> list[Cycle | None]:
    """Finished cycles that ended so, and one that was skipped."""
    template = vars(job.cycles[0])
    made = [
        Cycle(**{**template, "cycle": number, "accuracy_delta": delta, "speedup": speedup})
        for number, (delta, speedup) in enumerate(ends, 1)
    ]
    return [*made, None]


@pytest.mark.parametrize(
    ("ends", "chosen"),
    [
        ((MILD,), 1),
        ((MILD, MIDDLE), 2),
        ((MIDDLE, MILD), 1),
        ((MILD, MIDDLE, STEEP), 2),
        ((STEEP, (-0.5, 9.0)), 1),
        (((0.1, 1.1), (0.0, 1.2)), 2),
    ],
)
def test_the_fastest_within_the_budget_goes_on(
    job: Job, pinned: Pinned, ends: tuple[tuple[float, float], ...], chosen: int
) -> None:
    best = select.run(pinned, job.baseline, job.plan, cycles(job, *ends)).cycle
    assert best is not None
    assert best.cycle == chosen


def test_of_cycles_that_make_zeros_the_one_nearest_to_the_goal_goes_on_whatever_their_times(
    job: Job, pinned: Pinned
) -> None:
    params = job.baseline.figures.params
    sparser = [
        replace(cycle, figures=replace(job.baseline.figures, zeros=params * cycle.cycle // 4))
        for cycle in cycles(job, (0.0, 1.01), (0.0, 0.99), (-0.5, 1.02))
        if cycle
    ]
    selected = select.run(pinned, job.baseline, replace(job.plan, method="unstructured"), [*sparser, None])
    assert selected.cycle == sparser[1]
    assert selected.reason.startswith(
        "cycle 2: the furthest of 2 within 0.2 of the dense accuracy; goal sparsity 0.5 is reached"
    )


def test_the_reason_is_kept_and_says_when_none_is_within_the_budget(job: Job, pinned: Pinned) -> None:
    selected = select.run(pinned, job.baseline, job.plan, cycles(job, STEEP))
    assert selected.reason == (
        "cycle 1: none is within 0.2 of the dense accuracy, this is the nearest; goal sparsity 0.5 needs 2.00x, 1.31x is reached: "
        "cycle 1 lost 0.2100; more recovery or a larger budget may get further"
    )
    assert tracking.client().get_run(pinned.run_id).data.tags["secateur.selected"] == selected.reason


def test_without_a_finished_cycle_there_is_nothing_to_select(job: Job, pinned: Pinned) -> None:
    with pytest.raises(InputError, match="cycles: expected at least one finished cycle, got none"):
        select.run(pinned, job.baseline, job.plan, [None, None])
