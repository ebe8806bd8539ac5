"""The cut: it removes what the plan asks, proves it, keeps its lineage, and stops when nothing is left to do."""

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from services import ALIGN, CHANNELS, Job, another_job, recipe_for

from secateur import onnx_export
from secateur import program as programs
from secateur.curves import SHARES
from secateur.errors import InputError, NothingToDo
from tasks import cut, methods, plan, recipe, sparse_learning, tracking
from tasks.references import Cut, File, Pinned, Plan


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
        curves = json.loads(tracking.get_bytes(made.run_id, f"cut/{methods.CURVES}") or b"")["curves"]
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
        steep = Plan("structured", "sparsity", (0.9999,), (1,), ())
        with pytest.raises(InputError, match="expected a share of at most"):
            cut.run(job_for(job, goal={"sparsity": 0.9999}), job.baseline, steep, 1, None)

    def test_a_goal_that_is_measured_is_aimed_at_until_the_cut_measures_it(self, job: Job) -> None:
        limit = job.baseline.figures.size_bytes / 1.5e6
        wish = {**job.pinned.recipe, "goal": {"size_mb": limit}, "prune": {"align": 1, "cycles": 1}}
        filled = recipe.Recipe.model_validate(wish).model_dump(mode="json")
        pinned = replace(another_job(job.pinned, "cut to a size"), recipe=filled)
        made = cut.run(pinned, job.baseline, plan.run(pinned, job.baseline), 1, None)
        aims = (tracking.get_bytes(made.run_id, "cut/aims.txt") or b"").decode().splitlines()
        measured = [float(line.rpartition("measured ")[2].removesuffix(" MB")) for line in aims]
        assert 1 < len(measured) <= cut.AIMS
        assert all(line.startswith("wanted 1.500x, asked ") for line in aims)
        assert 0.94 * limit <= max(size for size in measured if size <= limit) <= limit
        with tracking.fetched(made.program) as path:
            program = programs.load(path)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "cut.onnx"
            onnx_export.export(program, file)
            assert file.stat().st_size / 1e6 == pytest.approx(max(s for s in measured if s <= limit), rel=1e-3)

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
        fast = replace(job.cycles[0], speedup=2.3)
        two = Plan("structured", "speedup", (0.3, 0.5), (1, 1), ())
        with pytest.raises(NothingToDo, match=r"speedup 2 is reached \(2\.30x\)"):
            cut.run(job_for(job, goal={"speedup": 2.0}), job.baseline, two, 2, fast)

    def test_a_share_that_is_gone_already_is_nothing_to_do(self, job: Job) -> None:
        gone = job.cycles[0].sparsity
        two = replace(job.plan, shares=(gone, gone - 0.01))
        with pytest.raises(NothingToDo, match=r"sparsity 0\.5 is reached"):
            cut.run(job.pinned, job.baseline, two, 2, job.cycles[0])


def test_a_cycle_wants_what_the_plan_says() -> None:
    assert cut.ratio_of(Plan("structured", "speedup", (0.5, 0.75), (1, 1), ()), 2, 2.0) == pytest.approx(4.0)


def test_where_cycles_came_further_than_planned_the_rest_is_shared_by_those_that_are_left() -> None:
    three = Plan("structured", "speedup", (0.3, 0.4, 0.875), (1, 1, 1), ())
    # from 2x to 8x in two cycles: 4x after the next
    assert cut.ratio_of(three, 2, 2.0) == pytest.approx(4.0)


@given(
    last=st.floats(1.01, 50),
    share=st.floats(0, 1),
    reached=st.floats(0.2, 50),
    cycles=st.integers(2, 5),
)
def test_as_long_as_the_goal_is_not_reached_a_cycle_wants_more_than_there_is_and_no_more_than_the_goal(
    last: float, share: float, reached: float, cycles: int
) -> None:
    assume(reached < last)
    final = 1 - 1 / last
    plan = Plan("structured", "speedup", (*[share * final] * (cycles - 1), final), (1,) * cycles, ())
    for cycle in range(1, cycles + 1):
        assert reached < cut.ratio_of(plan, cycle, reached) <= last * (1 + 1e-9)
