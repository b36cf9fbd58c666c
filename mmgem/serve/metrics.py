"""What ``/metrics`` shows, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        registry = self.registry
        self.requests = Counter(
            "mmgem_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self.seconds = Histogram(
            "mmgem_request_seconds",
            "From the whole body to the reply's end.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.active = Gauge("mmgem_active_requests", "Requests in work or waiting.", registry=registry)
        self.waiting = Gauge(
            "mmgem_waiting_items", "Items in or before a batch.", ["kind"], registry=registry
        )
        self.batch_items = Histogram(
            "mmgem_batch_items",
            "Items joined in a batch.",
            ["kind"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "mmgem_batch_seconds", "What a batch took.", ["kind"], buckets=_SECONDS, registry=registry
        )
        self.reused = Counter(
            "mmgem_reused",
            "Results that were recent or in flight already.",
            ["kind", "how"],
            registry=registry,
        )
        self.photos = Gauge("mmgem_index_photos", "Photos that can be found.", registry=registry)
        self.generation = Gauge(
            "mmgem_index_generation", "How often the index was opened.", registry=registry
        )

    def batch(self, kind: str, items: int, seconds: float) -> None:
        """Count one batch."""
        self.batch_items.labels(kind).observe(items)
        self.batch_seconds.labels(kind).observe(seconds)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)
