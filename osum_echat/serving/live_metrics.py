"""What a live server counts, for Prometheus."""

from typing import Any

BUCKETS_S = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0, 4.0, 8.0)


class LiveMetrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "osum"}
        self.sessions = Gauge("sessions_active", "Sessions that are open", **own)
        self.opened = Counter("sessions", "Sessions that were opened", **own)
        self.refused = Counter("sessions_refused", "Connections refused", ["reason"], **own)
        self.responses = Counter("responses", "Responses by how they ended", ["status"], **own)
        self.first_audio = Histogram(
            "response_first_audio_seconds", "From speech_stopped to the first sound sent",
            buckets=BUCKETS_S, **own,
        )  # fmt: skip
        self.interrupts = Counter("interrupts", "Replies that a user broke into", **own)
        self.errors = Counter("errors", "Error events by code", ["code"], **own)
        self.audio_in = Counter("audio_in_seconds", "Sound received", **own)
        self.input_lag = Gauge("input_lag_seconds", "Sound received and not yet heard", **own)
        self.requests = Counter("http_requests", "HTTP calls", ["route", "status"], **own)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
