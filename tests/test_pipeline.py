"""The whole way: promoted, remembered, refused by the gate, killed in the middle and ended as it would have been."""

import importlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from services import ALIGN, CHANNELS, Job, Servers, another_job, recipe_for, runs_since, versions_of, walk, write_recipe
from test_champion import serving

from secateur.errors import NothingToDo
from tasks import baseline, bucket, gate, journal, plan, promote, recover, registry, resolve, rollback, tracking
from tasks.references import Cut, File, Pinned, Plan, Promotion

pytestmark = pytest.mark.usefixtures("services")

METRICS = {
    *("sparsity", "params", "macs", "size_bytes", "accuracy", "accuracy_delta", "accuracy_before_recovery"),
    *("latency_p50_ms", "speedup", "speedup_low", "speedup_high", "theoretical_speedup"),
    *("recovery_epochs", "recovery_seconds"),
}
LONG = 12  # epochs: enough to be killed in the middle of
KILLED = -9
GONE = 17

# --- one run


def test_a_model_ends_promoted_with_its_dense_version_to_roll_back_to(job: Job) -> None:
    assert job.verdict.outcome == "pass"
    assert {rule.name for rule in job.verdict.rules} == {"accuracy", "speedup", "parity"}
    assert job.promotion == Promotion(job.pinned.model, "2", "1", "s3://models/tiny-onnx/2/model.onnx")
    assert versions_of(job.pinned.model) == ["1", "2"]
    assert serving(job.pinned.model) == ("2", "2", "2")
    assert registry.onnx_file(job.pinned.model, "1").sha256 == job.exported.dense.sha256
    assert registry.onnx_file(job.pinned.model, "2").sha256 == job.exported.pruned.sha256
    bucket.check_serves("tiny-onnx", "1")


def test_every_cycle_is_smaller_than_the_one_before_and_the_last_meets_the_goal(job: Job) -> None:
    left = [figures.params for figures in (job.baseline.figures, *(cycle.figures for cycle in job.cycles))]
    assert len(left) == 3
    assert left == sorted(left, reverse=True)
    assert len(set(left)) == 3
    assert job.cycles[-1].sparsity == pytest.approx(0.5, abs=ALIGN / CHANNELS)


def test_every_cycle_logs_the_same_names_at_its_own_step(job: Job) -> None:
    client = tracking.client()
    assert all(set(client.get_run(cycle.run_id).data.metrics) >= METRICS for cycle in job.cycles)
    parent = client.get_run(job.pinned.run_id).data.metrics
    assert set(parent) >= METRICS
    assert all(math.isfinite(value) for value in parent.values())
    for number, cycle in enumerate(job.cycles, 1):
        history = client.get_metric_history(cycle.run_id, "accuracy_delta")
        assert [metric.step for metric in history] == [number]
    assert {metric.step for metric in client.get_metric_history(job.pinned.run_id, "accuracy")} == {0, 1, 2}


def test_the_verdict_and_its_evidence_are_an_artifact_and_the_reason_opens_the_run(job: Job) -> None:
    client = tracking.client()
    evidence = tracking.get_json(job.pinned.run_id, "gate/verdict.json")
    assert evidence is not None
    assert evidence["verdict"]["outcome"] == "pass"
    assert evidence["data_digest"] == job.pinned.data_digest
    assert evidence["files"]["pruned"]["sha256"] == job.exported.pruned.sha256
    assert tracking.digest(evidence) == job.verdict.evidence
    run = client.get_run(job.pinned.run_id)
    assert run.data.tags["mlflow.note.content"] == f"**pass** · {job.verdict.reason}"
    assert run.info.status == client.get_run(job.cycles[0].run_id).info.status == "FINISHED"


def test_what_steps_hand_over_is_json_and_small(job: Job) -> None:
    for value in vars(job).values():
        assert len(json.dumps(value, default=vars)) < 8_000


# --- the memory


def test_the_same_inputs_again_are_answered_from_memory(job: Job) -> None:
    before = versions_of(job.pinned.model), journal.entries(job.pinned.model)
    started = time.time()
    again = walk(job.pinned.model, "tiny", dag_run_id="second")
    assert runs_since(started) == []
    assert again == replace(job, pinned=again.pinned)
    assert again.pinned.key == job.pinned.key
    assert (versions_of(job.pinned.model), journal.entries(job.pinned.model)) == before


def test_fresh_measures_and_trains_again_and_ends_with_the_same_program(job: Job) -> None:
    fresh = resolve.run(job.pinned.model, "latest", "tiny", True, "third")
    assert fresh.run_id != job.pinned.run_id
    base = baseline.run(fresh)
    assert base.figures.latency_p50_ms != job.baseline.figures.latency_p50_ms
    assert base.figures.onnx.sha256 == job.exported.dense.sha256
    assert plan.run(fresh, base) == job.plan
    smaller = replace(job.cuts[0], run_id=tracking.child_run(fresh, "cycle 1", 1))
    assert digest_of(recover.run(fresh, job.plan, smaller).program) == digest_of(job.recovered[0].program)


def test_the_same_file_with_new_evidence_is_not_registered_again(job: Job) -> None:
    model = "proven-twice"
    for proof in ("first", "second"):
        verdict = replace(job.verdict, evidence=proof)
        promote.run(another_job(job.pinned, f"{model} {proof}", model), job.exported, verdict)
    assert versions_of(model) == ["1", "2"]
    assert rollback.run(model, "previous", "the first promotion was a mistake", "test").version == "1"


def test_a_promotion_says_what_serves_also_after_a_rollback(job: Job) -> None:
    model = "promoted-after-rollback"
    pinned = another_job(job.pinned, model, model)
    promote.run(pinned, job.exported, job.verdict)
    rollback.run(model, "1", "wait", "test")
    promotion = promote.run(pinned, job.exported, job.verdict)
    assert promotion.version == registry.champion(model)


# --- the gate says no


def test_an_impossible_gate_ends_green_unpromoted_and_says_why(job: Job) -> None:
    model = job.pinned.model
    before = serving(model), versions_of(model), journal.entries(model)
    wanted = recipe_for(job.pinned.recipe["data"]["path"], gate={"speedup": 50})
    pinned = resolve.run(model, "latest", write_recipe("impossible", wanted), False, "impossible")
    verdict = gate.run(pinned, job.exported, job.validated)  # measuring again would find the same
    assert verdict.outcome == "fail"
    assert [rule.name for rule in verdict.rules if rule.outcome == "fail"] == ["speedup"]
    with pytest.raises(NothingToDo, match=r"^fail: speedup: .* asked for at least 50\.00x$"):
        promote.run(pinned, job.exported, verdict)
    assert (serving(model), versions_of(model), journal.entries(model)) == before
    run = tracking.client().get_run(pinned.run_id)
    assert run.data.tags["mlflow.note.content"] == f"**fail** · {verdict.reason}"
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("outcome", ["fail", "inconclusive"])
def test_only_a_pass_is_promoted(job: Job, outcome: str) -> None:
    pinned = another_job(job.pinned, f"not promoted: {outcome}", f"model-{outcome}")
    with pytest.raises(NothingToDo, match=f"{outcome}: "):
        promote.run(pinned, job.exported, replace(job.verdict, outcome=outcome))
    assert versions_of(pinned.model) == []
    assert bucket.pointer(registry.onnx_name(pinned.model)) is None


# --- killed


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes like a worker's: forked from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "torch.export", "mlflow", "mlflow.onnx", "boto3", "onnxruntime", "secateur"]
    )
    return context


def digest_of(file: File) -> str:
    """The digest of a stored program."""
    from secateur import program as programs

    with tracking.fetched(file) as path:
        return programs.digest(programs.load(path))


def weights_of(file: File) -> dict[str, Any]:
    """The tensors of a stored program."""
    from secateur import program as programs

    with tracking.fetched(file) as path:
        return programs.load(path).state_dict


def in_worker(servers: Servers, step: Callable[..., Any], *args: Any) -> None:
    """The body of a process that works a step."""
    os.environ.update(servers)
    step(*args)


def promote_and_die(servers: Servers, module: str, name: str, call: int, *args: Any) -> None:
    """The body of a process that is gone when `module.name` has done its work for the `call`-th time."""
    os.environ.update(servers)
    owner = importlib.import_module(module)
    work, seen = getattr(owner, name), []

    def worked(*inner: Any, **options: Any) -> Any:
        result = work(*inner, **options)
        seen.append(name)
        if len(seen) == call:
            os._exit(GONE)
        return result

    setattr(owner, name, worked)
    promote.run(*args)


def recovery_of(job: Job, name: str) -> tuple[Pinned, Plan, Cut]:
    """A long recovery of the shared cut, as a job of its own."""
    pinned = another_job(job.pinned, name)
    schedule = replace(job.plan, epochs=(LONG, 0))
    return pinned, schedule, replace(job.cuts[0], run_id=tracking.child_run(pinned, "cycle 1", 1))


def reached_epoch(run_id: str) -> int:
    """The last epoch that a recovery logged."""
    return max((m.step for m in tracking.client().get_metric_history(run_id, "recovery_accuracy")), default=0)


def test_a_recovery_killed_in_the_middle_goes_on_and_ends_with_the_same_program(
    job: Job, services: Servers, processes: Any
) -> None:
    undisturbed = recover.run(*recovery_of(job, "undisturbed"))
    inputs = recovery_of(job, "killed")
    run_id = inputs[2].run_id
    worker = processes.Process(target=in_worker, args=(services, recover.run, *inputs))
    worker.start()
    while worker.is_alive() and not reached_epoch(run_id):  # it is logged when its checkpoint is written
        time.sleep(0.01)
    worker.kill()
    worker.join()
    assert worker.exitcode == KILLED
    assert 0 < reached_epoch(run_id) < LONG, "it was not killed in the middle"

    resumed = recover.run(*inputs)
    assert digest_of(resumed.program) == digest_of(undisturbed.program)
    assert resumed.accuracy_before == undisturbed.accuracy_before
    steps = [metric.step for metric in tracking.client().get_metric_history(run_id, "recovery_accuracy")]
    assert steps.count(0) == steps.count(1) == steps.count(LONG) == 1, "it began again"


@pytest.mark.slow
def test_a_recovery_of_two_processes_killed_in_the_middle_ends_as_that_of_one(
    job: Job, services: Servers, processes: Any
) -> None:
    alone = recover.run(*recovery_of(job, "one process"))
    pinned, schedule, smaller = recovery_of(job, "two processes")
    recipe = pinned.recipe | {"recovery": pinned.recipe["recovery"] | {"processes": 2}}
    inputs = replace(pinned, recipe=recipe), schedule, smaller
    worker = processes.Process(target=in_worker, args=(services, recover.run, *inputs))
    worker.start()
    while worker.is_alive() and not reached_epoch(smaller.run_id):
        time.sleep(0.01)
    worker.kill()
    worker.join()
    assert worker.exitcode == KILLED

    together = recover.run(*inputs)
    one, two = (weights_of(recovered.program) for recovered in (alone, together))
    for name, weight in one.items():
        assert weight.allclose(two[name], rtol=1e-3, atol=1e-4), name
    steps = [metric.step for metric in tracking.client().get_metric_history(smaller.run_id, "recovery_accuracy")]
    assert sorted(set(steps)) == list(range(LONG + 1))
    assert steps.count(0) == steps.count(LONG) == 1, "each process logged, or it began again"


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        ("tasks.registry", "register_onnx", 2),
        ("tasks.bucket", "publish", 2),
        ("tasks.registry", "set_champion", 1),
        ("tasks.bucket", "point", 1),
    ],
    ids=["registered", "published", "alias", "pointer"],
)
def test_a_promotion_killed_between_its_parts_and_run_again_leaves_one_of_each(
    job: Job, services: Servers, processes: Any, module: str, name: str, call: int
) -> None:
    model = f"killed-after-{name.replace('_', '-')}-{call}"
    inputs = another_job(job.pinned, model, model), job.exported, job.verdict
    worker = processes.Process(target=promote_and_die, args=(services, module, name, call, *inputs))
    worker.start()
    worker.join(60)
    assert worker.exitcode == GONE

    promotion = promote.run(*inputs)
    assert promotion.version == "2"
    assert versions_of(model) == ["1", "2"]
    assert serving(model) == ("2", "2", "2")
    (entry,) = journal.entries(model)
    assert (entry.from_version, entry.to_version) == ("1", "2")
