"""The DAG `rollback_model`: serve an earlier version again. Wiring only; the step is in `tasks/rollback.py`."""

from airflow.sdk import Param, dag

from tasks import rollback
from tasks.airflow_glue import step

PARAMS = {
    "model": Param(
        type="string",
        title="Model",
        description="Name of the source model, such as `digits-cnn`; its deployable versions are those of `<model>-onnx`.",
        pattern=r"^[^/:]+$",
        minLength=1,
    ),
    "to": Param(
        "previous",
        type="string",
        title="To",
        description="Version of `<model>-onnx` that shall serve: a number, or `previous`.",
        pattern=r"^([1-9][0-9]*|previous)$",
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

    The version is loaded in ONNX Runtime first; only then the alias `champion` moves, the bucket's pointer follows, and the
    promotion journal gets an entry. `to` is a version of `<model>-onnx`, or `previous`: the one that served before.
    """
    step(rollback.run)(
        "{{ params.model }}",
        "{{ params.to }}",
        "{{ params.reason }}",
        "{{ params.who or dag_run.triggering_user_name or 'unknown' }}",
    )


rollback_model()
