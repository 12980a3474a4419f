"""What a server has done, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quasar.runtime.runtime import Runtime

#: upper ends in seconds
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one server.

    Attributes:
        requests: requests for a prediction, by HTTP status.
        seconds: from the arrival of such a request to its answer, of those that were answered with a prediction.
    """

    def __init__(self, runtime: Runtime, *, capacity: int, pending: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("quasar_requests", "Requests for a prediction.", ["status"], registry=self.registry)
        self.seconds = Histogram(
            "quasar_request_seconds", "Time to a prediction, with its wait.", buckets=_BUCKETS, registry=self.registry
        )
        waiting = Gauge("quasar_pending", "Requests that wait or are worked on.", registry=self.registry)
        waiting.set_function(pending)
        Gauge("quasar_capacity", "Requests that can be pending.", registry=self.registry).set(capacity)
        self.registry.register(_OfRuntime(runtime))
        ProcessCollector(registry=self.registry)


class _OfRuntime(Collector):
    """What a runtime counts itself."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        stats: dict[str, Any] = self._runtime.stats()
        yield CounterMetricFamily("quasar_switches", "Times that another subnet became current.", stats["switches"])
        predictions = CounterMetricFamily("quasar_predictions", "Predictions of each subnet.", labels=["subnet"])
        current = GaugeMetricFamily("quasar_current", "1 for the subnet that answers now.", labels=["subnet"])
        for name, count in stats["predictions"].items():
            predictions.add_metric([name], count)
            current.add_metric([name], float(name == stats["current"]))
        yield predictions
        yield current
        budget = GaugeMetricFamily("quasar_budget", "What an image may take, where there is a limit.", labels=["of"])
        for name, limit in (stats["choice"]["budget"] if stats["choice"] else {}).items():
            budget.add_metric([name], limit)
        yield budget
