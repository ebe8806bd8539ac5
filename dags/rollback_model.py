"""The DAG `rollback_model`: serve an earlier version again. Wiring only; the step is in `tasks/rollback.py`."""

from airflow.sdk import dag

from tasks import airflow_params, rollback
from tasks.airflow_glue import URGENT, step


@dag(
    schedule=None,
    catchup=False,
    params=airflow_params.ROLLBACK,
    default_args=URGENT,
    tags=["secateur"],
    dag_display_name="Roll a model back",
)
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
