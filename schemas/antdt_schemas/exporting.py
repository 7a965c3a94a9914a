"""Metrics over HTTP, as Prometheus reads them: the one place that knows prometheus-client, an extra of its own.

Nothing of a service rests on it: a port that is taken is one line in its log, and the service goes on without.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from antdt_schemas.address import LOOPBACK
from antdt_schemas.errors import UsageError
from antdt_schemas.figures import BUILD, Family, Figures, Histogram, Kind

ENV_PORT, ENV_HOST = "ANTDT_METRICS_PORT", "ANTDT_METRICS_HOST"
PORT_MAX = 65535
# Of all metrics of a process. Prometheus calls its own unit of scraping a job, and whoever discovers targets often
# calls something a service: with these names nothing is renamed.
JOB, SERVICE = "antdt_job", "antdt_service"

log = logging.getLogger("antdt.metrics")


@dataclass(frozen=True, slots=True)
class Where:
    """port: None where nobody is to be served, 0 for one that is free."""

    port: int | None = None
    host: str = LOOPBACK

    def check(self) -> None:
        """Raises UsageError where that is no port, or what serves is not installed."""
        if self.port is not None and not 0 <= self.port <= PORT_MAX:
            raise UsageError(f"--metrics-port {self.port} is no port: take one from 0 to {PORT_MAX}.")
        if self.port is not None and find_spec("prometheus_client") is None:
            raise UsageError(
                "--metrics-port needs prometheus-client, which is not installed here: `pip install 'antdt[metrics]'`."
            )


class Exporter:
    """Serves the figures of one process until it is closed; the server has threads of its own."""

    def __init__(self, job: str, service: str, *figures: Figures) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector

        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Collector({JOB: job, SERVICE: service}, figures))
        ProcessCollector(registry=self.registry)
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def serve(self, where: Where) -> int | None:
        """Begin; the port, or None where it could not be had."""
        from prometheus_client import start_http_server

        assert where.port is not None
        try:
            self._server, self._thread = start_http_server(where.port, where.host, self.registry)
        except OSError as error:
            hint = "This service goes on without. Give each process of a machine a --metrics-port of its own."
            reason = error.strerror or str(error)
            log.warning("event=metrics-not-served at=%s:%d reason=%r hint=%r", where.host, where.port, reason, hint)
            return None
        port = int(self._server.server_port)
        log.info("event=metrics at=http://%s:%d/metrics", where.host, port)
        return port

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def serving(where: Where, job: str, service: str, *figures: Figures | None) -> Iterator[None]:
    """Serve these figures meanwhile, if that is wanted."""
    if where.port is None:
        yield
        return
    exporter = Exporter(job, service, *(one for one in figures if one is not None))
    exporter.serve(where)
    try:
        yield
    finally:
        exporter.close()


class _Collector:
    """What the registry asks at each scrape."""

    def __init__(self, always: Mapping[str, str], figures: Iterable[Figures]) -> None:
        self._always, self._figures = dict(always), tuple(figures)
        self._one_at_a_time = threading.Lock()

    def collect(self) -> Iterator[Any]:
        with self._one_at_a_time:
            families = [build(), *(family for figures in self._figures for family in figures())]
        for family in families:
            yield _as_prometheus(family, self._always)


def build() -> Family:
    import platform
    from importlib import metadata

    return BUILD, {(metadata.version("antdt"), platform.python_version()): 1}


def _as_prometheus(family: Family, always: Mapping[str, str]) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    metric, values = family
    makers = {
        Kind.GAUGE: GaugeMetricFamily,
        Kind.COUNTER: CounterMetricFamily,
        Kind.HISTOGRAM: HistogramMetricFamily,
    }
    out: Any = makers[metric.kind](metric.name, metric.help, labels=[*always, *metric.labels])
    for labels, value in values.items():
        named = [*always.values(), *labels]
        if isinstance(value, Histogram):
            bounds = [*(f"{bound:g}" for bound in value.bounds), "+Inf"]
            out.add_metric(named, list(zip(bounds, value.cumulative(), strict=True)), value.sum)
        else:
            out.add_metric(named, float(value))
    return out
