"""What Prometheus is told of a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric

if TYPE_CHECKING:
    from secateur.inference_log.writer import Writer
    from tasks.serving.served import Served

VERDICTS = ("healthy", "watch", "breach", "unknown")  # of `secateur.monitoring.judging`
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, writer: Writer | None) -> None:
        self._registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self._registry, "namespace": "secateur"}
        self._requests = Counter("requests", "Requests answered.", ["model", "status"], **made)
        self._seconds = Histogram(
            "request_seconds", "From the first byte of a request to its answer.", ["model"], buckets=_SECONDS, **made
        )
        self._version = Gauge("champion_version", "The version that serves.", ["model"], **made)
        self._reloads = Counter("reloads", "Versions that have come to serve.", ["model"], **made)
        self._failed = Counter("failed_reloads", "Looks at the bucket that failed.", ["model"], **made)
        self._health = Gauge("health", "1 for the verdict of the last look.", ["model", "verdict"], **made)
        self._seen = Gauge("look", "What the last look saw.", ["model", "figure"], **made)
        if writer is not None:
            self._registry.register(_LogCounts(writer))

    def answered(self, model: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(model, str(status)).inc()
        self._seconds.labels(model).observe(seconds)

    def loaded(self, served: Served) -> None:
        """Say what serves."""
        self._version.labels(served.model).set(float(served.version))
        self._reloads.labels(served.model).inc()

    def failed_reload(self, model: str) -> None:
        """Count a look that failed."""
        self._failed.labels(model).inc()

    def looked(self, model: str, last: Mapping[str, Any] | None) -> None:
        """Say what the last look at a model found, as the bucket has it; nothing before the first."""
        if last is None:
            return
        for verdict in VERDICTS:
            self._health.labels(model, verdict).set(float(verdict == last["outcome"]))
        for figure, value in last["metrics"].items():
            self._seen.labels(model, figure).set(value)

    def text(self) -> tuple[bytes, str]:
        """All of them in Prometheus' text format, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _LogCounts:
    """What became of the requests that were handed to the log."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def collect(self) -> Iterator[Metric]:
        """Read when Prometheus asks."""
        counts = self._writer.counts
        family = CounterMetricFamily("secateur_log_records", "Records handed to the inference log.", labels=["fate"])
        for fate, number in vars(counts).items():
            family.add_metric([fate], number)
        yield family
