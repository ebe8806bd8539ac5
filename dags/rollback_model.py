"""The DAG `rollback_model`: serve an earlier version again. Wiring only; the step is in `tasks/rollback.py`."""

from airflow.sdk import Param, dag

from tasks import rollback
from tasks.airflow_glue import MODEL_PATTERN, step

PARAMS = {
    "model": Param(
        type="string",
        title="Model",
        description="Name of the source model, such as `digits-cnn`; its deployable versions are those of `<model>-onnx`.",
        pattern=MODEL_PATTERN,
    ),
    "to": Param(
        "previous",
        type="string",
        title="To",
        description="Version of `<model>-onnx` that shall serve: a number, `previous` (the last that served before), or `dense`.",
        pattern=r"^([1-9][0-9]{0,8}|previous|dense)$(?!\n)",
    ),
    "reason": Param(
        type="string", title="Reason", description="Why; it is kept in the promotion journal.", minLength=1
    ),
    "who": Param(
        None, type=["null", "string"], title="Who", description="Who asks for it; empty: the user who triggers the run."
    ),
}


@dag(schedule=None, catchup=False, params=PARAMS, tags=["secateur"], dag_display_name="Roll a model back")
def rollback_model() -> None:
    """
    ### Serve an earlier version of a model again

    The version's file is fetched, checked and answers a request on its target first; only then an entry of the promotion journal
    is begun, the bucket's pointer and the alias `champion` move, and the entry is ended. `to` is a version of `<model>-onnx` that
    served, `previous`, the last of them, or `dense`.
    """
    step(rollback.run)(
        "{{ params.model }}",
        "{{ params.to }}",
        "{{ params.reason }}",
        "{{ params.who or dag_run.triggering_user_name or 'unknown' }}",
        "rollback_model {{ run_id }}",
    )


rollback_model()
