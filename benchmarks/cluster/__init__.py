"""Airflow and MLflow on Postgres under many prunings whose science is left out: how many, how fast, and what breaks first."""
