"""Metrics of a running server, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from merganser import extras

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """Counters and histograms of one server.

    Args:
        engine: the engine's name.
        running: returns the number of completions that are being generated.
        held: returns the number of paused completions, which wait for their model's next turn.
        waiting: returns the number of waiting requests by the model's name.
        tokens: returns the numbers of tokens generated and of prompts' tokens read so far.
    """

    def __init__(
        self,
        engine: str,
        *,
        running: Callable[[], int],
        held: Callable[[], int],
        waiting: Callable[[], Mapping[str, int]],
        tokens: Callable[[], tuple[int, int]],
    ) -> None:
        client = extras.load("prometheus_client", "serve")
        self._client = client
        self._registry = client.CollectorRegistry()

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            made = client.Gauge(f"merganser_{name}", text, registry=self._registry)
            made.set_function(value)

        def seconds(name: str, text: str) -> Any:
            return client.Histogram(
                f"merganser_{name}_seconds", text, buckets=SECONDS, registry=self._registry
            )

        client.Info("merganser_engine", "The engine.", registry=self._registry).info(
            {"name": engine}
        )
        gauge("running", "Completions that are generated.", running)
        gauge("held", "Completions that wait for their model's next turn.", held)
        gauge("generated_tokens", "Tokens generated so far.", lambda: tokens()[0])
        gauge("prompt_tokens", "Tokens of prompts read so far.", lambda: tokens()[1])
        self._waiting = client.Gauge(
            "merganser_waiting", "Requests that wait.", ["model"], registry=self._registry
        )
        self._count_waiting = waiting
        self._requests = client.Counter(
            "merganser_requests",
            "Requests that ended.",
            ["route", "status"],
            registry=self._registry,
        )
        self._swap = seconds("swap", "Time of a swap of weights.")
        self._wait = seconds("wait", "Time from a request to its turn.")
        self._request = seconds("request", "Time from a request to the end of its answer.")

    def count_request(self, route: str, status: str) -> None:
        """Count a request that ended; ``status`` is the HTTP status, or ``gone``."""
        self._requests.labels(route, status).inc()

    def add_swap(self, seconds: float) -> None:
        """Record the duration of a swap of weights."""
        self._swap.observe(seconds)

    def add_wait(self, seconds: float) -> None:
        """Record the time that a request waited for its turn."""
        self._wait.observe(seconds)

    def add_answer(self, seconds: float) -> None:
        """Record the time that an answer took."""
        self._request.observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """Return all metrics as text, and their content type."""
        self._waiting.clear()
        for model, count in self._count_waiting().items():
            self._waiting.labels(model).set(count)
        text: bytes = self._client.generate_latest(self._registry)
        return text, str(self._client.CONTENT_TYPE_LATEST)
