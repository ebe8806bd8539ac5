"""The cut: it removes what the plan asks, proves it, keeps its lineage, and stops when nothing is left to do."""

import functools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from services import ALIGN, CHANNELS, Job, another_job, recipe_for

from secateur import program as programs
from secateur.curves import SHARES
from secateur.errors import InputError, NothingToDo
from tasks import cut, recipe, sparse_learning, tracking
from tasks.references import Baseline, Cut, Cycle, Figures, File, Pinned, Plan

NOWHERE = File("runs:/0/none", "")
DENSE_MACS = 1_000_000


def figures(macs: int) -> Figures:
    """What a program of so many multiply-accumulates measured."""
    return Figures(NOWHERE, 10_000, macs, 0, 1.0, 1.0, 1.0, None, 1.0, 0)


BASELINE = Baseline(figures(DENSE_MACS))


def cycle(macs: int, speedup: float, low: float = 0.0, delta: float = 0.0) -> Cycle:
    """A finished first cycle."""
    return Cycle(1, "", NOWHERE, figures(macs), 0.5, delta, speedup, low, speedup)


def digest_of(file: File) -> str:
    """The digest of a stored program."""
    with tracking.fetched(file) as path:
        return programs.digest(programs.load(path))


def job_for(job: Job, **changes: Any) -> Any:
    """The shared job's model as a job of its own, with these sections of the recipe."""
    wanted = recipe.Recipe.model_validate(recipe_for("data.npz", **changes)).model_dump(mode="json")
    return replace(another_job(job.pinned, f"cut {tracking.digest(changes)}"), recipe=wanted)


def job_that_learns(job: Job, name: str, **learning: Any) -> Pinned:
    """The shared job, data included, as a job of its own with this sparse learning."""
    prune = {"align": ALIGN, "sparse_learning": learning}
    filled = recipe.Recipe.model_validate({**job.pinned.recipe, "prune": prune}).model_dump(mode="json")
    return replace(another_job(job.pinned, name), recipe=filled)


def wish(**goal: float) -> recipe.Recipe:
    """A recipe with this goal."""
    return recipe.Recipe.model_validate({"model": "m", "data": {"source": "digits"}, "goal": goal})


@pytest.mark.usefixtures("services")
class TestSurgery:
    """On the shared job."""

    def test_the_artifact_has_lost_what_the_cut_says(self, job: Job) -> None:
        with tracking.fetched(job.cuts[0].program) as path:
            program, lineage = programs.load(path), programs.lineage(path)
        counted = sum(parameter.numel() for _, parameter in program.named_parameters())
        dense = job.baseline.figures.params
        assert counted < dense
        assert job.cuts[0].sparsity == pytest.approx(1 - counted / dense)
        step = ALIGN / CHANNELS  # of the units of one axis
        assert abs(job.cuts[0].sparsity - job.plan.shares[0]) < step
        assert lineage["parent"] == job.pinned.program_digest
        assert lineage["data"] == job.pinned.data_digest
        (record,) = lineage["cuts"]
        assert record["cycle"] == 1
        assert all(len(units) % ALIGN == 0 and len(units) < CHANNELS for units in record["kept"].values())

    def test_every_cycle_is_a_child_of_the_jobs_run(self, job: Job) -> None:
        run = tracking.client().get_run(job.cuts[0].run_id)
        assert run.data.tags["mlflow.parentRunId"] == job.pinned.run_id
        assert run.data.tags["secateur.source"] == f"models:/{job.pinned.model}/1"

    def test_the_same_cut_again_removes_the_same_weights(self, job: Job) -> None:
        again = cut.run(another_job(job.pinned, "cut again"), job.baseline, job.plan, 1, None)

        def digest(of: Cut) -> str:
            with tracking.fetched(of.program) as path:
                return programs.digest(programs.load(path))

        assert digest(again) == digest(job.cuts[0])

    def test_criteria_and_allocations_that_look_at_data_get_examples_of_the_training_split(self, job: Job) -> None:
        choice = {"criterion": "taylor", "allocation": "sensitivity", "calibration": 40, "align": ALIGN}
        filled = recipe.Recipe.model_validate({**job.pinned.recipe, "prune": choice}).model_dump(mode="json")
        wanted = replace(another_job(job.pinned, "cut by data"), recipe=filled)
        made = cut.run(wanted, job.baseline, job.plan, 1, None)
        with tracking.fetched(made.program) as path:
            (record,) = programs.lineage(path)["cuts"]
        curves = json.loads(tracking.get_bytes(made.run_id, f"cut/{cut.CURVES}") or b"")["curves"]
        assert record["criterion"] == "taylor"
        assert set(record["kept"]) <= set(curves)
        assert all(len(curve) == 1 + len(SHARES) for curve in curves.values())

    @pytest.mark.parametrize(
        "learning",
        [
            {"method": "group_lasso", "strength": 0.001, "epochs": 2},
            {"method": "growing", "strength": 0.1, "every": 1, "epochs": 2},
        ],
        ids=lambda learning: learning["method"],
    )
    def test_sparse_learning_comes_before_the_first_cut_and_no_other(self, job: Job, learning: dict[str, Any]) -> None:
        wanted = job_that_learns(job, f"learns by {learning['method']}", **learning)
        made = cut.run(wanted, job.baseline, job.plan, 1, None)
        assert made.sparsity == job.cuts[0].sparsity
        with tracking.fetched(made.program) as path:
            lineage = programs.lineage(path)
        assert lineage["origin"] == job.pinned.program_digest != lineage["parent"]
        assert lineage["cuts"][0]["sparse_learning"].items() >= learning.items()
        metrics = tracking.client().get_run(made.run_id).data.metrics
        assert metrics["sparse_learning_epochs"] == 2
        assert metrics["sparse_learning_seconds"] > 0
        told = tracking.client().get_metric_history(made.run_id, "sparse_learning_accuracy")
        assert [metric.step for metric in told] == [0, 1, 2]

        second = cut.run(wanted, job.baseline, job.plan, 2, job.cycles[0])
        with tracking.fetched(second.program) as path:
            assert "sparse_learning" not in programs.lineage(path)["cuts"][-1]
        assert "sparse_learning_epochs" not in tracking.client().get_run(second.run_id).data.metrics

    def test_sparse_learning_that_was_killed_goes_on_from_its_checkpoint(
        self, job: Job, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wanted = job_that_learns(job, "learns and is killed", method="group_lasso", epochs=3)
        run_id = tracking.child_run(wanted, "killed", 9)
        learn = functools.partial(sparse_learning.learn, wanted, run_id, wanted.program, None)
        first = digest_of(learn())
        assert capsys.readouterr().out.count("validation accuracy") == 4
        again = digest_of(learn())
        assert capsys.readouterr().out.count("validation accuracy") == 0
        assert again == first

    def test_a_goal_out_of_reach_is_refused_with_what_can_be_reached(self, job: Job) -> None:
        steep = Plan("sparsity", (0.9999,), (1,), ())
        with pytest.raises(InputError, match="expected a share of at most"):
            cut.run(job_for(job, goal={"sparsity": 0.9999}), job.baseline, steep, 1, None)

    def test_more_cycles_than_the_plan_has_are_nothing_to_do(self, job: Job) -> None:
        with pytest.raises(NothingToDo, match="cycle 3: the plan has 2"):
            cut.run(job.pinned, job.baseline, job.plan, 3, job.cycles[1])

    def test_a_cycle_over_the_accuracy_budget_stops_the_next_and_says_so(self, job: Job) -> None:
        bad = replace(job.cycles[0], accuracy_delta=-0.25)
        with pytest.raises(
            NothingToDo, match=r"cycle 1 lost 0\.2500 of accuracy on validation, more than the budget of 0\.2"
        ):
            cut.run(job.pinned, job.baseline, job.plan, 2, bad)

    def test_a_speedup_that_is_reached_stops_the_next_cycle(self, job: Job) -> None:
        fast = replace(job.cycles[0], speedup=2.3, speedup_low=2.1)
        two = Plan("macs", (0.3, 0.5), (1, 1), ())
        with pytest.raises(NothingToDo, match=r"2x is reached \(2\.30x measured\)"):
            cut.run(job_for(job, goal={"speedup": 2.0}), job.baseline, two, 2, fast)

    def test_a_share_that_is_gone_already_is_nothing_to_do(self, job: Job) -> None:
        gone = job.cycles[0].sparsity
        two = replace(job.plan, shares=(gone, gone - 0.01))
        with pytest.raises(NothingToDo, match=r"% sparsity is already gone"):
            cut.run(job.pinned, job.baseline, two, 2, job.cycles[0])


def test_without_a_speedup_goal_the_plan_is_followed() -> None:
    shares = (0.2, 0.4)
    assert cut.aim(wish(sparsity=0.4), Plan("sparsity", shares, (1, 1), ()), 2, BASELINE, cycle(800_000, 1.1)) == 0.4


def test_the_first_cycle_of_a_speedup_starts_where_the_plan_does() -> None:
    assert cut.aim(wish(speedup=4.0), Plan("macs", (0.5, 0.75), (1, 1), ()), 1, BASELINE, None) == 0.5


def test_a_measured_speedup_says_how_much_more_must_go() -> None:
    two = Plan("macs", (0.5, 0.75), (1, 1), ())
    # half of the work was half of the time: a quarter of the work will be a quarter of the time
    assert cut.aim(wish(speedup=4.0), two, 2, BASELINE, cycle(DENSE_MACS // 2, 2.0)) == pytest.approx(0.75)
    # half of the work bought only the square root of it
    slow = cut.aim(wish(speedup=2.0), two, 2, BASELINE, cycle(DENSE_MACS // 2, 2**0.5))
    assert slow == pytest.approx(0.75)


def test_what_is_left_to_gain_is_shared_by_the_cycles_that_are_left() -> None:
    three = Plan("macs", (0.3, 0.6, 0.875), (1, 1, 1), ())
    # from 2x to 8x in two cycles: 4x after the next
    assert cut.aim(wish(speedup=8.0), three, 2, BASELINE, cycle(DENSE_MACS // 2, 2.0)) == pytest.approx(0.75)


@given(
    goal=st.floats(1.01, 50),
    speedup=st.floats(0.2, 50),
    left=st.integers(DENSE_MACS // 100, DENSE_MACS - 1),
    cycles=st.integers(2, 5),
)
def test_as_long_as_the_goal_is_not_reached_more_is_asked_and_never_everything(
    goal: float, speedup: float, left: int, cycles: int
) -> None:
    assume(speedup < goal)
    schedule = Plan("macs", (0.5,) * cycles, (1,) * cycles, ())
    share = cut.aim(wish(speedup=goal), schedule, 2, BASELINE, cycle(left, speedup))
    assert 1 - left / DENSE_MACS <= share <= 1
