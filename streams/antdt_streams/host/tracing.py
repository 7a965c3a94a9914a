"""OpenTelemetry, where whoever starts a service has set it up (`opentelemetry-instrument antdt monitor JOB`).

Names are those of its conventions for messaging, which are still in development. Destinations are told by their
template: there are as many as there are topics, however many jobs. Without an SDK that is set up nothing is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

SCOPE = "antdt"
TRACEPARENT = "traceparent"
# The bounds that the conventions name, in seconds.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
Header = tuple[str, str | bytes | None]


class Tracing:
    """What one process tells. tracer, meter: OpenTelemetry's; inject: writes the context of the span into a dict."""

    def __init__(self, tracer: Any, meter: Any, inject: Callable[[dict[str, str]], None]) -> None:
        def histogram(name: str, what: str) -> Any:
            return meter.create_histogram(name, "s", what, explicit_bucket_boundaries_advisory=BOUNDS)

        self._tracer, self._inject = tracer, inject
        self._process = histogram("messaging.process.duration", "Duration of processing a batch of records.")
        self._operation = histogram("messaging.client.operation.duration", "Duration of writing a record.")
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Records taken.")
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Records written.")

    @contextmanager
    def processing(self, topic: str, group: str, partition: int, count: int) -> Iterator[None]:
        """A batch of so many records is being processed."""
        told = attributes(topic, "process", partition) | {"messaging.consumer.group.name": group}
        kind = _kinds().CONSUMER
        self._consumed.add(count, told)
        began_s = time.perf_counter()
        with self._tracer.start_as_current_span(f"process {template(topic)}", kind=kind, attributes=told) as span:
            span.set_attribute("messaging.batch.message_count", count)
            try:
                yield
            finally:
                self._process.record(time.perf_counter() - began_s, told)

    @contextmanager
    def sending(self, topic: str, partition: int) -> Iterator[None]:
        """A record is being written, until the broker has it."""
        told = attributes(topic, "send", partition)
        began_s = time.perf_counter()
        with self._tracer.start_as_current_span(f"send {template(topic)}", kind=_kinds().PRODUCER, attributes=told):
            try:
                yield
            finally:
                self._operation.record(time.perf_counter() - began_s, told)
                self._sent.add(1, told)

    def sent(self, topic: str, partition: int) -> list[Header]:
        """A record is handed over: the header that says of which trace it is. Others would have no bound."""
        self._sent.add(1, attributes(topic, "send", partition))
        carrier: dict[str, str] = {}
        self._inject(carrier)
        return [(TRACEPARENT, carrier[TRACEPARENT].encode())] if TRACEPARENT in carrier else []


def template(topic: str) -> str:
    """Of the names of this topic in all jobs."""
    return f"antdt.{{job}}.{topic.rsplit('.', 1)[-1]}"


def attributes(topic: str, operation: str, partition: int) -> dict[str, str]:
    return {
        "messaging.system": "kafka",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.template": template(topic),
        "messaging.destination.partition.id": str(partition),
    }


def _kinds() -> Any:
    from opentelemetry.trace import SpanKind

    return SpanKind


@cache
def tracing() -> Tracing | None:
    """That of this process; None where nobody has set one up. Asked once: it is set up before a service begins."""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        return None
    from opentelemetry import metrics, propagate, trace

    providers = trace.get_tracer_provider(), metrics.get_meter_provider()
    if not any(type(one).__module__.startswith("opentelemetry.sdk") for one in providers):
        return None
    return Tracing(trace.get_tracer(SCOPE), metrics.get_meter(SCOPE), propagate.inject)
