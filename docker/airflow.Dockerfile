# Airflow's control plane with Secateur's DAGs: API server, scheduler, DAG processor, triggerer. Steps run on worker.Dockerfile.
#   docker build -f docker/airflow.Dockerfile -t secateur-airflow .
# The slim form of the official image: the full one has some sixty providers more, whose versions would fight the lock's.
ARG AIRFLOW=slim-3.3.2-python3.11
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY secateur secateur
COPY tasks tasks
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM apache/airflow:${AIRFLOW}
LABEL org.opencontainers.image.title="secateur-airflow" \
    org.opencontainers.image.description="Airflow's control plane with Secateur's DAGs." \
    org.opencontainers.image.licenses="Apache-2.0"
USER 50000:0
WORKDIR /opt/secateur
COPY requirements.lock docker/airflow.txt ./
# Airflow is named on every line that installs, at the version of the base: a lock of another one ends the build.
RUN pip install --no-cache-dir -c requirements.lock -r airflow.txt "apache-airflow==${AIRFLOW_VERSION}"
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps "apache-airflow==${AIRFLOW_VERSION}" /wheels/*.whl
COPY dags dags
COPY recipes recipes
ENV AIRFLOW__CORE__DAGS_FOLDER=/opt/secateur/dags \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    SECATEUR_RECIPES=/opt/secateur/recipes \
    PYTHONUNBUFFERED=1
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import httpx; httpx.get('http://127.0.0.1:8080/api/v2/monitor/health', trust_env=False).raise_for_status()"]
# the arguments of Airflow's own entry point; compose and the chart name the other components
CMD ["api-server", "--host", "0.0.0.0", "--port", "8080"]
