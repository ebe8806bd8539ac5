#!/usr/bin/env bash
# Before Airflow's components start: its database, the administrator, a pool for each device that is measured on.
# Run again, it brings the database to this version and leaves the rest.
set -euo pipefail
airflow db migrate
# the password comes by standard input, twice as it is asked for, and so stands in no list of processes
printf '%s\n%s\n' "$AIRFLOW_ADMIN_PASSWORD" "$AIRFLOW_ADMIN_PASSWORD" \
    | airflow users create --username admin --role Admin --firstname Admin --lastname Admin --email admin@localhost
pools=$(mktemp --suffix .json)
secateur pools > "$pools"
airflow pools import "$pools"
