"""The DAG `prune_model`: from a registered model version to a promoted ONNX version. Wiring only: the steps are `tasks`."""

from typing import Any

from airflow.sdk import chain, dag, task_group

from tasks import (
    airflow_params,
    ask,
    baseline,
    cut,
    evaluate,
    export,
    gate,
    plan,
    promote,
    recover,
    report,
    resolve,
    select,
    validate,
    validate_on,
)
from tasks.airflow_glue import BEHIND_CUTS, approval, each, linked, step
from tasks.placement import BENCH

MAX_CYCLES = 5


def one_cycle(number: int, pinned: Any, base: Any, schedule: Any, previous: Any) -> Any:
    """Cut, recover, evaluate: cycle `number` of the schedule. Skipped, as all after it, when nothing is left to do."""

    @task_group(group_id=f"cycle_{number}")
    def cycle() -> Any:
        smaller = step(cut.run, pool=BENCH)(pinned, base, schedule, number, previous)
        recovered = step(recover.run)(pinned, schedule, smaller)
        return step(evaluate.run, pool=BENCH, **BEHIND_CUTS)(pinned, base, recovered)

    return cycle()


@dag(schedule=None, catchup=False, params=airflow_params.PRUNE, tags=["secateur"], dag_display_name="Prune a model")
def prune_model() -> None:
    """
    ### Prune a registered model, prove that it is still good, promote it

    Give a **model** of the MLflow registry, its **version** and a **recipe**. The model is measured, cut in up to five
    cycles (cut, recover, evaluate; a cycle with nothing left to do is skipped), exported to ONNX, and judged against the
    dense model on data that nothing before has seen. Only a verdict *pass* is promoted, or what a person approves where the
    recipe asks one: otherwise `promote` is skipped, the champion stays, and the run's description says why. `plan` may find
    that the model is better not pruned: then everything after it is skipped, and its log says why. `report` ends every
    run with a page of it, linked from its task. Everything is in MLflow, under the experiment of the source model.
    """
    pinned = step(resolve.run)(
        "{{ params.model }}",
        "{{ params.version }}",
        "{{ params.recipe }}",
        "{{ params.fresh }}",
        "{{ run_id }}",
        "{{ params.trial }}",
        "{{ params.sweep_run or '' }}",
    )
    base = step(baseline.run, pool=BENCH)(pinned)
    schedule = step(plan.run)(pinned, base)
    cycles: list[Any] = []
    for number in range(1, MAX_CYCLES + 1):
        cycles.append(one_cycle(number, pinned, base, schedule, cycles[-1] if cycles else None))
    selected = step(select.run, trigger_rule="none_failed_min_one_success")(pinned, base, schedule, cycles)
    exported = step(export.run)(pinned, base, selected)
    validated = step(validate.run, pool=BENCH, **BEHIND_CUTS)(pinned, base, exported)
    others = step(validate_on.targets, task_id="other_targets")(pinned, validated)
    given = {"pinned": pinned, "exported": exported, "validated": validated}
    elsewhere = each(validate_on.run, given, pool=BENCH, target=others)
    verdict = step(gate.run, trigger_rule="none_failed", pool=BENCH)(pinned, exported, validated, elsewhere)
    answers = approval(step(ask.run)(pinned, verdict))
    promoted = step(promote.run, trigger_rule="none_failed")(pinned, exported, verdict, answers)
    reported = linked(step(report.run, trigger_rule="none_failed")(pinned), "Report")  # also of what was not promoted
    chain(promoted, reported)


prune_model()
