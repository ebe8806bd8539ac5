# Runs the steps: a Celery worker, or the pod of a step. Every step needs it: `resolve` and `plan` already open the model with torch.
#   docker build -f docker/worker.Dockerfile -t secateur-worker .                      (GPUs' torch, processor's ONNX Runtime)
#   ... --build-arg PIP_EXTRA_INDEX_URL=<the index of torch's builds for processors>   (a small torch, without GPUs)
#   ... --build-arg RUNTIME=onnxruntime-gpu==1.31.1                                    (the lock has none for GPUs)
ARG AIRFLOW=secateur-airflow:0.1.0

FROM ${AIRFLOW}
LABEL org.opencontainers.image.title="secateur-worker" \
    org.opencontainers.image.description="Runs Secateur's steps." \
    org.opencontainers.image.licenses="Apache-2.0"
ARG PIP_EXTRA_INDEX_URL
ARG RUNTIME=onnxruntime
WORKDIR /opt/secateur
COPY docker/worker.txt ./
RUN pip install --no-cache-dir -c requirements.lock -r worker.txt "${RUNTIME}" "apache-airflow==${AIRFLOW_VERSION}" \
    && mkdir -m 0770 "${AIRFLOW_HOME}/scratch"
HEALTHCHECK --interval=30s --timeout=30s --start-period=60s --retries=5 \
    CMD ["bash", "-c", "celery --app airflow.providers.celery.executors.celery_executor.app inspect ping --destination celery@$HOSTNAME"]
CMD ["celery", "worker"]
