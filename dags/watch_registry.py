"""The DAG `watch_registry`: starts `prune_model` for new versions of the models that ask for it. Wiring only: see `tasks/watch.py`."""

from airflow.sdk import Asset, AssetWatcher, dag

from tasks import watch
from tasks.airflow_glue import URGENT, NewVersions, start_run, step

registry = Asset("secateur_registry", watchers=[AssetWatcher(name="new_versions", trigger=NewVersions())])


def start() -> list[str]:
    """Start `prune_model` for every version that waits, in order, each once; returns the runs' ids."""
    return watch.run(lambda arrival: start_run("prune_model", arrival.run_id, arrival.conf))


@dag(
    schedule=[registry],
    catchup=False,
    max_active_runs=1,  # two at once would start runs out of order
    default_args=URGENT,
    tags=["secateur"],
    dag_display_name="Watch the registry",
)
def watch_registry() -> None:
    """
    ### Prune every new version of the models that ask for it

    A registered model asks by the tag `secateur.recipe`, whose value is a recipe's name. The asset's watcher polls the
    registry; each version above the model's tag `secateur.seen` gets one run of `prune_model`, in order. Events only say that
    it is worth a look: several that come at once are one run of this DAG, and none is needed twice. `docs/triggering.md`.
    """
    step(start, task_id="start")()


watch_registry()
