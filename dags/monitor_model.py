"""The DAG `monitor_model`: watches what serves, hourly, and steps back to the dense model. Wiring only; see `tasks/monitoring/`."""

from airflow.sdk import dag

from tasks import airflow_params
from tasks.airflow_glue import URGENT, Notifier, approval, each, start_run, step
from tasks.monitoring import act, look
from tasks.monitoring.look import Look
from tasks.references import Answer


def models(model: str) -> list[str]:
    """The models to look at."""
    return [model] if model else look.models()


def follow(looks: list[Look] | None, answers: tuple[Answer, ...] = ()) -> list[str]:
    """Start what follows from breaches of ours: a rollback, and a pruning where the recipe wants one."""
    return act.run(looks or (), answers, start_run)


def tell(looks: list[Look] | None, done: list[str] | None) -> list[str]:
    """Tell people of what changed and what was done."""
    news = act.told(looks or (), done or [])
    if news:
        Notifier("\n".join(news)).send()  # once: who is told twice after a fault stops reading
    return news


@dag(
    schedule="@hourly",
    catchup=False,
    max_active_runs=1,  # two at once would look at the same hours
    params=airflow_params.MONITOR,
    on_failure_callback=Notifier("monitor_model {{ run_id }} failed: what serves was not looked at"),
    default_args=URGENT,
    tags=["secateur"],
    dag_display_name="Monitor what serves",
)
def monitor_model() -> None:
    """
    ### Watch what serves, and step back to the dense model where pruning made it worse

    Each look reads the inference log since the last one, gives some of its inputs to the dense model too, and judges: *healthy*,
    *watch*, *breach* or *unknown*. A breach of ours, where the dense model would serve better, starts `rollback_model`, asks a person
    or only tells, as the recipe's `monitor.policy` says. `docs/monitoring.md`.
    """
    looks = each(look.run, model=step(models, task_id="models")("{{ params.model or '' }}"))
    answers = approval(step(act.ask, task_id="ask", trigger_rule="all_done")(looks))
    done = step(follow, task_id="follow", trigger_rule="all_done")(looks, answers)
    step(tell, task_id="tell", trigger_rule="all_done")(looks, done)


monitor_model()
