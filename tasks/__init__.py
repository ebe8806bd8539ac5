"""The steps of the pipeline, one file each, and what they stand on: recipes, MLflow, the bucket."""

DAGS = ("monitor_model", "prune_model", "rollback_model", "sweep_model", "watch_registry")  # of the folder `dags`
