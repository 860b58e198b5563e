"""Prometheus metrics of a server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.requests = Counter(
            "crem_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "crem_request_seconds",
            "From a request's arrival to the end of its response.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.inside = Gauge(
            "crem_requests_inside", "Requests worked on or waiting.", registry=self.registry
        )
        self.pictures_lost = Counter(
            "crem_pictures_lost",
            "Pictures whose decoding was ended as it took too long, or crashed.",
            ["reason"],
            registry=self.registry,
        )
        self.waiting = Gauge("crem_jobs_waiting", "Jobs that wait.", registry=self.registry)
        self.answering = Gauge("crem_answers", "Answers being made.", registry=self.registry)
        self.batch_rows = Histogram(
            "crem_batch_rows",
            "Rows of a batch, those that fill it up left out.",
            ["kind"],
            buckets=_ROWS,
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "crem_batch_seconds",
            "Time on the device: of an embedding batch, or a token of a batch of answers.",
            ["kind"],
            buckets=(0.001, *_SECONDS),
            registry=self.registry,
        )
        self.tokens = Counter("crem_tokens", "Tokens said.", registry=self.registry)
        self.first_token = Histogram(
            "crem_first_token_seconds",
            "From a question's arrival in the queue to the first token of its answer.",
            ["kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
