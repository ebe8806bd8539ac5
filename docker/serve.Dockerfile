# The reference server: champions over HTTP by the Open Inference Protocol v2, without torch, MLflow or Airflow.
#   docker build -f docker/serve.Dockerfile -t secateur-serve .
#   docker run -p 127.0.0.1:8500:8500 -e SECATEUR_SERVE_TOKEN -e SECATEUR_BUCKET=s3://... -e AWS_ENDPOINT_URL_S3=... \
#       secateur-serve
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /build
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY docker/serve.txt docker/serve.txt
COPY secateur secateur
COPY tasks tasks
RUN python -m venv /opt/secateur \
    && /opt/secateur/bin/pip install --no-cache-dir -c requirements.lock -r docker/serve.txt \
    && /opt/secateur/bin/pip install --no-cache-dir --no-deps .

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="secateur-serve" \
    org.opencontainers.image.description="Serves what Secateur promoted, and keeps the inference log." \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/secateur /opt/secateur
ENV PATH=/opt/secateur/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 50000:0
WORKDIR /tmp
EXPOSE 8500
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import httpx; httpx.get('http://127.0.0.1:8500/v2/health/live', trust_env=False).raise_for_status()"]
# all addresses of the container, of which only what `-p` names can be reached
ENTRYPOINT ["secateur", "serve", "--host", "0.0.0.0", "--port", "8500"]
