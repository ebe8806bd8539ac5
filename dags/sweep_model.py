"""The DAG `sweep_model`: many recipes for one model version, compared; the best one is promoted. Wiring only; see `tasks/sweep.py`."""

from typing import Any

from airflow.sdk import chain, dag

from tasks import airflow_params, sweep
from tasks.airflow_glue import linked, runs, step
from tasks.report import side_by_side
from tasks.sections.sweep import MOST_FINALISTS, MOST_RUNGS

AT_ONCE = 8  # runs of a sweep; the installation's limit of active runs of a DAG counts beside it


@dag(
    schedule=None,
    catchup=False,
    params=airflow_params.SWEEP,
    tags=["secateur"],
    dag_display_name="Sweep recipes for a model",
)
def sweep_model() -> None:
    """
    ### Compare many recipes for one model, and promote the best

    Each candidate of the **sweep** is a run of `prune_model` that ends before the gate: it is compared on validation, with bounds
    corrected for the number of candidates. With halving, the better part of a rung goes on to more recovery. The best go to
    the gate, one after the other until one is promoted; no other candidate ever sees the test split. `docs/sweeping.md`.
    """
    begun = step(sweep.begin, task_id="begin")(
        "{{ params.model }}", "{{ params.version }}", "{{ params.sweep }}", "{{ params.fresh }}", "{{ run_id }}"
    )
    standings: Any = None
    for rung in range(1, MOST_RUNGS + 1):
        ended = runs(
            f"rung_{rung}", "prune_model", step(sweep.starts, task_id=f"start_{rung}")(begun, rung, standings), AT_ONCE
        )
        compare = step(sweep.compare, task_id=f"compare_{rung}", trigger_rule="none_failed")
        standings = compare(begun, rung, standings, ended)
    told = step(side_by_side.run, task_id="report", trigger_rule="none_failed")(begun, standings)
    before = standings
    for place in range(1, MOST_FINALISTS + 1):
        wanted = step(sweep.final, task_id=f"finalist_{place}", trigger_rule="none_failed")(begun, standings, place)
        judged = runs(f"final_{place}", "prune_model", wanted, 1)
        chain(before, wanted, judged)
        before = judged
    chain(before, linked(told, "Report"))


sweep_model()
