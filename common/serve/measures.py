"""Counts and times for Prometheus, of one application."""

import prometheus_client
from prometheus_client import exposition, platform_collector, process_collector


class Measures:
    """A registry with the memory and time of the process, and what all servers count."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._registry = prometheus_client.CollectorRegistry()
        process_collector.ProcessCollector(registry=self._registry)
        platform_collector.PlatformCollector(registry=self._registry)
        self.requests = self.counter("requests", "Requests by route and status", "route", "status")
        self.streams = self.gauge("streams", "Streams that are open")
        self.streams_ended = self.counter("streams_ended", "Streams by how they ended", "reason")

    def counter(self, name: str, about: str, *labels: str) -> prometheus_client.Counter:
        """`NAME_name_total`."""
        return prometheus_client.Counter(
            f"{self._name}_{name}", about, labels, registry=self._registry
        )

    def gauge(self, name: str, about: str) -> prometheus_client.Gauge:
        """`NAME_name`."""
        return prometheus_client.Gauge(f"{self._name}_{name}", about, registry=self._registry)

    def histogram(
        self, name: str, about: str, buckets: tuple[float, ...]
    ) -> prometheus_client.Histogram:
        """`NAME_name`, with these upper ends."""
        return prometheus_client.Histogram(
            f"{self._name}_{name}", about, buckets=buckets, registry=self._registry
        )

    def exposition(self) -> tuple[bytes, str]:
        """All of it, and its media type."""
        return prometheus_client.generate_latest(self._registry), exposition.CONTENT_TYPE_LATEST
