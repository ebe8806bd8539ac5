# An S3 server for one machine: the rclone of the lock, the one that the tests run against. A company's own S3 takes its place.
#   docker build -f docker/s3.Dockerfile -t secateur-s3 .
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /build
COPY requirements.lock docker/s3.txt ./
RUN python -m venv /opt/secateur \
    && /opt/secateur/bin/pip install --no-cache-dir -c requirements.lock -r s3.txt

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="secateur-s3" \
    org.opencontainers.image.description="An S3 server for one machine." \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/secateur /opt/secateur
# a volume takes its owner from the folder that it is mounted on
RUN install -d -o 50000 -g 0 -m 0770 /srv/s3
ENV PATH=/opt/secateur/bin:$PATH RCLONE_CONFIG="" RCLONE_CACHE_DIR=/tmp/rclone
USER 50000:0
WORKDIR /srv/s3
EXPOSE 9000
# who does not sign is refused, and that is an answer
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 9000), 3)"]
ENTRYPOINT ["rclone"]
CMD ["serve", "s3", "--addr", "0.0.0.0:9000", "/srv/s3"]
