"""A sweep's steps: trials end before the gate, rungs go on where they were left, the best are judged, one is promoted."""

import json
import re
import time
import xml.etree.ElementTree
from dataclasses import replace
from typing import Any

import pytest
from services import (
    CHANNELS,
    MODEL,
    Job,
    Servers,
    another_job,
    recipe_for,
    register,
    runs_since,
    using,
    walk,
    write_recipe,
)

from secateur import planner
from secateur.errors import InputError, NothingToDo
from secateur.gate import judging
from tasks import baseline, cut, gate, plan, promote, recipe, registry, resolve, select, sweep, tracking, trial
from tasks.references import Dense, Ended, GateResult, Pinned, Plan, Recovered, Standing, Standings, Start, Sweeping
from tasks.report import side_by_side

pytestmark = pytest.mark.usefixtures("services")

HALVED = {"eta": 2, "rungs": 2}

NAMES = ("0.3", "0.4", "0.5", "0.6")
AT_RUNG = {"candidates": 4, "finalists": 2, "rungs": 2, "eta": 2}


@pytest.fixture(scope="module")
def begun(servers: Servers, tiny: str) -> Sweeping:
    """A sweep of four candidates over the recipe `tiny`, two of which go on."""
    matrix = {"goal.sparsity": [float(name) for name in NAMES]}
    with using(servers):
        write_sweep("small", {"base": "tiny", "matrix": matrix, "halving": HALVED, "finalists": 2})
        return sweep.begin(tiny, "latest", "small", False, "a sweep")


@pytest.fixture
def small(begun: Sweeping) -> Sweeping:
    """The same sweep, of which nothing is known yet."""
    return replace(begun, run_id=new_run(begun.experiment_id), dag_run_id="small")


def new_run(experiment_id: str) -> str:
    """A run of MLflow with nothing in it."""
    return str(tracking.client().create_run(experiment_id).info.run_id)


def leaves(
    begun: Sweeping,
    name: str,
    rung: int,
    seen: tuple[float, float, float] | None,
    outcome: str = "pass",
    *,
    recipe_changed: bool = False,
) -> None:
    """What a trial leaves in MLflow: a change of accuracy, a speedup and a size in bytes; or that it was not pruned."""
    run_id = new_run(begun.experiment_id)
    tracking.put_json(begun.run_id, f"jobs/small/{name}/{rung}.json", {"run_id": run_id})
    content = recipe.load(f"small:{name}:{rung}").model_dump(mode="json", exclude={"monitor"})
    tracking.put_json(run_id, "recipe.json", content | ({"seed": 9} if recipe_changed else {}))
    if seen is None:
        row = planner.Row("method", "none", "the dense model is within the goal as it is")
        tracking.put_json(run_id, "steps/plan.json", {"key": "", "result": Plan("none", "sparsity", (), (), (row,))})
        return
    change, speedup, size = seen
    rule = {"name": "accuracy", "estimate": change, "low": change - 0.01, "high": change + 0.01}
    ratios = {"speedup": speedup, "speedup_low": 0.98 * speedup, "speedup_high": 1.02 * speedup}
    verdict = {"outcome": outcome, "reason": f"it is {outcome} on validation", "rules": [rule]}
    tracking.put_json(run_id, trial.VERDICT, {"verdict": verdict, "validated": {"ships": "pruned", **ratios}})
    of_file = {
        "pruned.validation_accuracy": 0.98 + change,
        "pruned.size_bytes": size,
        "pruned.latency_p50_ms": 0.2 / speedup,
    }
    of_dense = {"dense.validation_accuracy": 0.98, "dense.size_bytes": 1000.0, "dense.latency_p50_ms": 0.2}
    tracking.log(run_id, {**of_file, **of_dense, "sparsity": float(name)})


def after_rung(
    begun: Sweeping,
    rung: int,
    before: Standings | None,
    seen: dict[str, tuple[float, float, float]],
    others: tuple[str, ...] = (),
    outcome: str = "pass",
) -> Standings:
    """The comparison after a rung whose runs have seen this; those of `others` succeeded too."""
    for name, figures in seen.items():
        leaves(begun, name, rung, figures, outcome)
    ended = [Ended(f"{begun.dag_run_id}__{begun.run_id[:8]}__{name}__{rung}", "success") for name in (*seen, *others)]
    return sweep.compare(begun, rung, before, ended)


def at_the_end(begun: Sweeping, outcome: str = "pass") -> Standings:
    """After the last rung, to which 0.4 and the faster 0.6 have come."""
    slow: dict[str, Any] = {
        "ships": "pruned",
        "outcome": "pass",
        "metric": 0.98,
        "speedup": (1.1, 1.0, 1.2),
        "p50_ms": 0.18,
    }
    measured = [Standing(name, 1, "measured", "it is pass", f"small__{name}__1", **slow) for name in NAMES]
    first = Standings(1, tuple(replace(one, goes_on=one.name in ("0.4", "0.6")) for one in measured))
    seen = {"0.4": (0.0, 1.5, 800.0), "0.6": (-0.01, 2.0, 700.0)}
    return after_rung(begun, 2, first, seen, outcome=outcome)


def judged(standings: Standings, name: str, outcome: str) -> None:
    """What the run that has a finalist judged leaves in MLflow."""
    run_id = next(one.run_id for one in standings.candidates if one.name == name)
    verdict = GateResult("pruned", outcome, f"it is {outcome}", (), "digest")
    tracking.put_json(run_id, "steps/gate.json", {"key": "", "result": verdict})
    if outcome == "pass":
        tracking.log(run_id, {}, promoted="models:/tiny-onnx/2")


def ended(begun: Sweeping, standings: Standings) -> tuple[str | None, str]:
    """Who won, and why."""
    return sweep.winner(begun, standings, sweep.judged(begun, standings))


def trial_of(job: Job, name: str, place: dict[str, int]) -> Pinned:
    """The shared job as a candidate of a sweep."""
    pinned = another_job(job.pinned, name)
    return replace(pinned, trial=True, recipe={**pinned.recipe, "trial": place})


def at_rung(pinned: Pinned, rung: int) -> dict[str, Any]:
    return {**pinned.recipe, "trial": {**AT_RUNG, "rung": rung}}


def looks_at(model: str) -> int:
    """How many files of a model test splits have judged."""
    found = tracking.find_run(tracking.experiment_of(model), f"looks:{model}")
    return len(tracking.client().get_run(found).data.params) if found else 0


def epochs_of(run_id: str) -> tuple[int, ...]:
    """The epochs that a job's plan gave its cycles."""
    found = tracking.recalled(run_id, "plan", Plan)
    assert found is not None
    return found.epochs


def npz() -> str:
    """Where the examples of the recipe `tiny` are."""
    path = recipe.load("tiny").data.path
    assert path
    return str(path)


def write_sweep(name: str, content: dict[str, Any]) -> str:
    """Put a sweep beside the recipes, its candidates in this order."""
    return write_recipe(name, json.dumps(content))  # which is YAML


def pruned(start: Start) -> Ended:
    """What Airflow does with a start: a run of `prune_model`, which fails where a step does."""
    conf = start.conf
    try:
        walk(
            conf["model"],
            conf["recipe"],
            fresh=conf["fresh"],
            dag_run_id=start.run_id,
            trial=conf["trial"],
            sweep=conf["sweep_run"],
        )
    except InputError as error:
        sweep.note_failure(conf["sweep_run"], conf["recipe"], f"resolve: {error}")
        return Ended(start.run_id, "failed")
    return Ended(start.run_id, "success")


@pytest.mark.slow
def test_a_sweep_compares_halves_judges_and_promotes_one(tiny: str) -> None:
    model = "tiny-swept"  # whose test split nothing else has judged
    register(model)
    write_recipe(
        "quick", recipe_for(npz(), model, budget={"accuracy_drop": 0.2, "recovery_epochs": 4, "measuring_s": 3})
    )
    goals = [{"sparsity": 0.3}, {"sparsity": 0.5}, {"kv_cache": 0.5}]
    write_sweep("whole", {"base": "quick", "matrix": {"goal": goals}, "halving": HALVED})
    begun = sweep.begin(model, "latest", "whole", False, "sweep-1")
    before = looks_at(model)
    first = sweep.compare(begun, 1, None, [pruned(start) for start in sweep.starts(begun, 1, None)])
    states = {one.name: one.state for one in first.candidates}
    assert states == {"sparsity-0.3": "measured", "sparsity-0.5": "measured", "kv_cache-0.5": "failed"}
    assert "expected a model with attention" in first.candidates[2].reason
    (second,) = sweep.starts(begun, 2, first)
    standings = sweep.compare(begun, 2, first, [pruned(second)])
    assert looks_at(model) == before  # no trial has seen the test split

    going = next(one for one in standings.candidates if one.rung == 2)
    shorter = next(one for one in first.candidates if one.name == going.name)
    assert going.sparsity == shorter.sparsity
    assert going.metric >= shorter.metric  # it went on, and keeps what was best
    trained = tracking.recalled(going.run_id, "recover_1", Recovered)
    assert trained is not None
    assert trained.accuracy_before == pytest.approx(shorter.metric, abs=0.03)  # torch's, not ONNX Runtime's
    assert trained.epochs + sum(epochs_of(shorter.run_id)) == 4

    (last,) = sweep.final(begun, standings, 1)
    assert pruned(last).state == "success"
    assert looks_at(model) == before + 1
    assert sweep.final(begun, standings, 2) == []
    swept = side_by_side.run(begun, standings)
    assert swept.winner == going.name
    assert registry.champion(model) is not None
    assert b"<svg" in (tracking.get_bytes(begun.run_id, "report/report.html") or b"")


# --- before anything starts


@pytest.mark.parametrize(
    ("model", "version", "name", "said"),
    [
        ("other", "latest", "small", "sweep small: is for model 'tiny', got model 'other'"),
        (MODEL, "99", "small", "version: expected one of 1"),
        (MODEL, "latest", "none", "recipe: expected one of"),
        (MODEL, "latest", "tiny", "sweep tiny: expected base with matrix, or recipes; this is one recipe"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence_and_leaves_no_run(
    small: Sweeping, model: str, version: str, name: str, said: str
) -> None:
    started = time.time()
    with pytest.raises(InputError) as caught:
        sweep.begin(model, version, name, False, "bad")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert runs_since(started) == []


def test_the_same_sweep_again_is_the_same_run_unless_it_is_asked_to_be_fresh(begun: Sweeping) -> None:
    assert (begun.version, begun.rungs, begun.finalists) == ("1", 2, 2)
    assert sweep.begin(MODEL, "1", "small", False, "b").run_id == begun.run_id
    assert sweep.begin(MODEL, "1", "small", True, "b").run_id != begun.run_id


def test_a_run_s_id_follows_from_sweep_candidate_and_rung(small: Sweeping) -> None:
    starts = sweep.starts(small, 1, None)
    assert [start.run_id for start in starts] == [f"small__{small.run_id[:8]}__{name}__1" for name in NAMES]
    assert starts == sweep.starts(small, 1, None)
    anew = sweep.starts(replace(small, run_id="another"), 1, None)  # it was cleared, and began with another release
    assert not {start.run_id for start in anew} & {start.run_id for start in starts}
    assert starts[0].conf == {
        "model": MODEL,
        "version": "1",
        "recipe": "small:0.3:1",
        "fresh": False,
        "trial": True,
        "sweep_run": small.run_id,
    }


# --- after a rung


def test_a_rung_is_compared_and_the_better_half_goes_on(small: Sweeping) -> None:
    seen = {
        "0.3": (0.0, 1.2, 900.0),
        "0.4": (-0.01, 1.5, 800.0),
        "0.5": (-0.02, 1.1, 850.0),
        "0.6": (-0.05, 2.0, 700.0),
    }
    standings = after_rung(small, 1, None, seen)
    told = {one.name: (one.front, one.goes_on) for one in standings.candidates}
    # 0.5 is beaten by 0.4 in everything; of the others 0.4 and 0.6 are worth most, both within the budget
    assert told == {"0.3": (True, False), "0.4": (True, True), "0.5": (False, False), "0.6": (True, True)}
    assert [start.conf["recipe"] for start in sweep.starts(small, 2, standings)] == ["small:0.4:2", "small:0.6:2"]
    assert sweep.starts(small, 3, standings) == []
    last = after_rung(small, 2, standings, {"0.4": (0.0, 1.5, 800.0), "0.6": (-0.01, 2.0, 700.0)})
    assert {one.name: one.rung for one in last.candidates} == {"0.3": 1, "0.4": 2, "0.5": 1, "0.6": 2}
    assert sweep.compare(small, 3, last, []) == last


def test_what_failed_is_told_with_its_reason_and_keeps_no_other_from_being_compared(small: Sweeping) -> None:
    sweep.note_failure(small.run_id, "small:0.3:1", "resolve: data.path: no such file")
    leaves(small, "0.5", 1, (0.0, 1.5, 800.0), recipe_changed=True)
    leaves(small, "0.6", 1, None)
    standings = after_rung(small, 1, None, {"0.4": (0.0, 1.5, 800.0)}, ("0.5", "0.6"))
    told = {one.name: (one.state, one.reason) for one in standings.candidates}
    assert told["0.3"] == ("failed", "resolve: data.path: no such file")
    assert told["0.4"][0] == "measured"
    assert told["0.5"] == ("failed", "its recipe was changed while the sweep went on; start the sweep again")
    assert told["0.6"] == ("not pruned", "the dense model is within the goal as it is")
    assert [start.conf["recipe"] for start in sweep.starts(small, 2, standings)] == ["small:0.4:2"]


def test_a_sweep_in_which_all_failed_ends_with_the_reason(small: Sweeping) -> None:
    standings = sweep.compare(small, 1, None, None)
    assert {one.reason for one in standings.candidates} == {sweep.UNKNOWN}
    assert sweep.starts(small, 2, standings) == sweep.final(small, standings, 1) == []
    swept = side_by_side.run(small, sweep.compare(small, 2, standings, []))
    assert swept.winner is None
    assert swept.reason == f"of 4 candidates, 0 measured: nothing could be compared; 0.3: {sweep.UNKNOWN}"


# --- the winner


def test_finalists_are_judged_one_after_the_other_until_one_is_promoted(small: Sweeping) -> None:
    standings = at_the_end(small)
    (first,) = sweep.final(small, standings, 1)
    assert (first.run_id, first.conf["recipe"], first.conf["trial"]) == (
        f"small__{small.run_id[:8]}__0.6__final",
        "small:0.6:2",
        False,
    )
    judged(standings, "0.6", "inconclusive")
    (second,) = sweep.final(small, standings, 2)
    assert second.conf["recipe"] == "small:0.4:2"
    assert sweep.final(small, standings, 3) == []
    judged(standings, "0.4", "pass")
    won, reason = ended(small, standings)
    assert won == "0.4"
    assert reason.endswith("test split: it is pass")
    assert list(sweep.judged(small, standings)) == ["0.6", "0.4"]


def test_nobody_is_judged_after_one_was_promoted(small: Sweeping) -> None:
    standings = at_the_end(small)
    judged(standings, "0.6", "pass")
    assert sweep.final(small, standings, 2) == []
    assert ended(small, standings)[0] == "0.6"


def test_without_a_pass_nobody_wins_and_every_verdict_is_told(small: Sweeping) -> None:
    standings = at_the_end(small)
    for name in ("0.6", "0.4"):
        judged(standings, name, "fail")
    won, reason = ended(small, standings)
    assert won is None
    assert reason.endswith("no finalist was promoted; 0.6: fail: it is fail; 0.4: fail: it is fail")


def test_who_fails_on_validation_never_sees_the_test_split(small: Sweeping) -> None:
    standings = at_the_end(small, outcome="fail")
    assert sweep.final(small, standings, 1) == []
    assert "the test split was not looked at" in ended(small, standings)[1]


def test_a_last_rung_that_nobody_comes_through_is_told_with_a_reason(small: Sweeping) -> None:
    standings = at_the_end(small)
    lost = [replace(one, state="failed", reason="killed") if one.rung == 2 else one for one in standings.candidates]
    standings = replace(standings, candidates=tuple(lost))
    assert sweep.final(small, standings, 1) == []
    assert ended(small, standings)[1].endswith("none came through the last rung; 0.4: killed")


def test_a_finalist_whose_run_failed_is_told_with_its_reason(small: Sweeping) -> None:
    standings = at_the_end(small)
    sweep.note_failure(small.run_id, "small:0.6:2", "promote: ChangeError: S3 is down")
    assert ended(small, standings)[1].endswith("the finalist 0.6 was not judged; promote: ChangeError: S3 is down")


def test_the_page_shows_every_candidate_and_escapes_what_was_said(small: Sweeping) -> None:
    standings = at_the_end(small)
    hostile = replace(standings.candidates[0], state="failed", reason="<script>alert(1)</script>")
    standings = replace(standings, candidates=(hostile, *standings.candidates[1:]))
    dense = Dense(0.98, 0.2, None, 1000.0)
    text = side_by_side.page(small, standings, dense, "0.6", "it is the fastest", {})
    assert text == side_by_side.page(small, standings, dense, "0.6", "it is the fastest", {})
    assert "<script" not in text
    for name in NAMES:
        assert re.search(rf"<th>\d\. (<a [^>]*>)?{name}", text)
    pictures = [xml.etree.ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(pictures) == 2
    assert "bytes of the file removed" in text


# --- what a trial does, and what it leaves alone


def test_a_trial_is_judged_on_validation_takes_no_look_and_is_not_promoted(job: Job) -> None:
    pinned = trial_of(job, "a trial", {"candidates": 5, "finalists": 1})
    before, served = looks_at(MODEL), registry.champion(MODEL)
    with pytest.raises(NothingToDo, match=r"^a trial, judged on validation alone: pass: accuracy changed by"):
        gate.run(pinned, job.exported, job.validated)
    with pytest.raises(NothingToDo, match="a trial: what wins a sweep is promoted by a run of its own"):
        promote.run(pinned, job.exported, job.verdict)
    assert (looks_at(MODEL), registry.champion(MODEL)) == (before, served)
    said = tracking.get_json(pinned.run_id, trial.VERDICT)
    assert said is not None
    rule = next(rule for rule in said["verdict"]["rules"] if rule["name"] == "accuracy")
    assert rule["confidence"] == said["confidence"] == pytest.approx(0.99)  # 0.95, for five at once
    assert f"on {said['validation_examples']} validation examples" in rule["sentence"]


def test_the_gate_shares_the_error_over_the_finalists_and_measured_figures_over_all(job: Job) -> None:
    wanted = recipe.Recipe.model_validate(trial_of(job, "x", {"candidates": 10, "finalists": 2}).recipe)
    limits = gate.limits(wanted, 1, precision="")
    assert judging.confidence_of(limits) == pytest.approx(0.975)
    assert judging.figures_confidence(limits) == wanted.measured_with == pytest.approx(0.995)
    assert judging.confidence_of(replace(limits, look=10)) == pytest.approx(0.995)  # a worn test split asks for more


def test_a_short_rung_goes_to_the_goal_whatever_it_loses_on_the_way(job: Job) -> None:
    lossy = [replace(cycle, accuracy_delta=-0.5 * cycle.cycle) for cycle in job.cycles]
    usual, short = another_job(job.pinned, "usual"), trial_of(job, "short", {**AT_RUNG, "rung": 1})
    with pytest.raises(NothingToDo, match="more than the budget"):
        cut.run(usual, job.baseline, job.plan, 2, lossy[0])
    assert cut.run(short, job.baseline, job.plan, 2, lossy[0]).cycle == 2
    assert select.run(usual, job.baseline, job.plan, lossy).cycle == lossy[0]
    assert select.run(short, job.baseline, job.plan, lossy).cycle == lossy[-1]


def test_a_rung_goes_on_with_what_the_one_before_left_and_measures_no_baseline_again(job: Job, small: Sweeping) -> None:
    first = resolve.run(MODEL, "latest", "small:0.5:1", False, "one", True)
    with pytest.raises(InputError, match="expected the rung before to have ended"):
        plan.run(replace(first, begun=first.run_id, recipe=at_rung(first, 2)), job.baseline)
    for step in ("baseline", "plan", "select", "cut_1", "cut_2"):
        tracking.put_json(
            first.run_id, f"steps/{step}.json", tracking.get_json(job.pinned.run_id, f"steps/{step}.json")
        )
    planned = replace(job.plan, budget=8)
    tracking.put_json(first.run_id, "steps/plan.json", {"key": "", "result": planned})

    second = resolve.run(MODEL, "latest", "small:0.5:2", False, "two", True)
    assert second.begun == first.run_id
    assert second.run_id != first.run_id
    assert baseline.run(second) == job.baseline
    rest = plan.run(second, job.baseline)
    assert (rest.shares, rest.epochs) == (job.plan.shares[-1:], (8 - sum(job.plan.epochs),))
    taken = cut.run(second, job.baseline, rest, 1, None)
    assert job.selected.cycle is not None
    assert (taken.program, taken.sparsity) == (job.selected.cycle.program, job.selected.cycle.sparsity)
    widths = tracking.get_json(taken.run_id, "cut/widths.json")
    assert widths
    assert {axis["before"] for axis in widths} == {CHANNELS}  # of the dense model, not of the last cut
    with pytest.raises(NothingToDo, match="the plan has 1"):
        cut.run(second, job.baseline, rest, 2, job.selected.cycle)


def test_a_rung_without_the_one_before_is_refused(small: Sweeping) -> None:
    with pytest.raises(InputError, match=r"small:0.6:2: expected rung 1 of this candidate to have run"):
        resolve.run(MODEL, "latest", "small:0.6:2", False, "alone", True)


def test_a_trial_and_the_run_that_is_judged_are_one_job_and_the_sweep_knows_it(small: Sweeping) -> None:
    tried = resolve.run(MODEL, "latest", "small:0.4:1", True, "t", True, small.run_id)
    final = resolve.run(MODEL, "latest", "small:0.4:1", True, "f", False, small.run_id)
    assert (tried.run_id, tried.trial, final.trial) == (final.run_id, True, False)
    assert tracking.get_json(small.run_id, "jobs/small/0.4/1.json") == {"run_id": tried.run_id}
    tags = tracking.client().get_run(tried.run_id).data.tags
    assert tags["mlflow.parentRunId"] == small.run_id
    assert resolve.run(MODEL, "latest", "small:0.4:1", True, "alone").run_id != tried.run_id


def test_another_job_than_the_one_that_was_compared_is_not_judged(
    small: Sweeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = resolve.run(MODEL, "latest", "small:0.4:1", True, "t", True, small.run_id)
    monkeypatch.setattr(tracking, "code_digest", lambda: "another release")
    with pytest.raises(InputError, match=rf"the sweep compared, MLflow run {tried.run_id}, got a new one: "):
        resolve.run(MODEL, "latest", "small:0.4:1", True, "f", False, small.run_id)
    assert tracking.get_json(small.run_id, "jobs/small/0.4/1.json") == {"run_id": tried.run_id}


def test_candidates_of_other_data_or_code_are_not_compared(small: Sweeping) -> None:
    seen = {"0.3": (0.0, 1.5, 700.0), "0.4": (-0.01, 2.0, 600.0)}
    for name, figures in seen.items():
        leaves(small, name, 1, figures)
    changed = tracking.get_json(small.run_id, "jobs/small/0.4/1.json")
    assert changed
    tracking.client().set_tag(changed["run_id"], "secateur.data", "of tomorrow")
    ended = [Ended(start.run_id, "success") for start in sweep.starts(small, 1, None)]
    first, other, *_ = sweep.compare(small, 1, None, ended).candidates
    assert (first.state, other.state) == ("measured", "failed")
    assert other.reason.startswith("its code or data is not that of 0.3")


def test_a_run_that_noted_no_job_is_one_that_failed(small: Sweeping) -> None:
    ended = [Ended(sweep.starts(small, 1, None)[0].run_id, "success")]
    (first, *_) = sweep.compare(small, 1, None, ended).candidates
    assert (first.state, first.reason) == ("failed", sweep.UNKNOWN)
