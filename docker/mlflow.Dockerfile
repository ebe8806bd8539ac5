# MLflow's server, for Postgres and S3, with its own login.
#   docker build -f docker/mlflow.Dockerfile -t secateur-mlflow .
#   docker run -p 127.0.0.1:5000:5000 -e MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://... -e MLFLOW_ARTIFACTS_DESTINATION=s3://... secateur-mlflow
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /build
COPY requirements.lock docker/mlflow.txt ./
RUN python -m venv /opt/secateur \
    && /opt/secateur/bin/pip install --no-cache-dir -c requirements.lock -r mlflow.txt

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="secateur-mlflow" \
    org.opencontainers.image.description="MLflow's server at the versions that Secateur is tested with." \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/secateur /opt/secateur
# The job runner serves features for language-model traces; nothing here uses it.
ENV PATH=/opt/secateur/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
USER 50000:0
WORKDIR /tmp
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:5000/health')"]
ENTRYPOINT ["mlflow"]
# all addresses of the container, of which only what `-p` names can be reached; it answers to the names of MLFLOW_SERVER_ALLOWED_HOSTS
CMD ["server", "--host", "0.0.0.0", "--port", "5000", "--workers", "2"]
