"""OpenTelemetry: nothing where nobody has set it up, and its own names where somebody has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from antdt_streams.host import tracing as module
from antdt_streams.host.tracing import Tracing, attributes, template

TOPIC = "antdt.my-job.measurements"


class Seen:
    """A tracer and a meter that keep what they are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any, dict[str, Any]]] = []

    def create_histogram(self, name: str, unit: str, what: str, **more: Any) -> Any:
        assert unit == "s" and what and more["explicit_bucket_boundaries_advisory"][0] == 0.005
        return _Instrument(self, name)

    def create_counter(self, name: str, unit: str, what: str) -> Any:
        assert unit == "{message}" and what
        return _Instrument(self, name)

    def start_as_current_span(self, name: str, kind: Any, attributes: dict[str, Any]) -> Any:
        self.told.append((name, kind, attributes))
        return _Span()


class _Instrument:
    def __init__(self, seen: Seen, name: str) -> None:
        self.seen, self.name = seen, name

    def add(self, value: float, told: dict[str, Any]) -> None:
        self.seen.told.append((self.name, value, told))

    record = add


class _Span:
    def __enter__(self) -> _Span:
        return self

    def __exit__(self, *_: object) -> None: ...

    def set_attribute(self, name: str, value: Any) -> None: ...


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    module.tracing.cache_clear()
    yield
    module.tracing.cache_clear()


def test_without_an_sdk_that_is_set_up_there_is_none() -> None:
    assert module.tracing() is None


def test_a_batch_is_told_by_the_names_of_messaging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kinds", lambda: type("Kinds", (), {"CONSUMER": "consumer", "PRODUCER": "producer"}))
    seen = Seen()
    one = Tracing(seen, seen, lambda carrier: carrier.update(traceparent="00-1-2-01", baggage="x" * 9000))
    with pytest.raises(KeyError), one.processing(TOPIC, "antdt.my-job.controller", 0, 7):
        raise KeyError
    with one.sending(TOPIC, 0):
        pass
    names = [name for name, _, _ in seen.told]
    assert names == [
        "messaging.client.consumed.messages",
        "process antdt.{job}.measurements",
        "messaging.process.duration",
        "send antdt.{job}.measurements",
        "messaging.client.operation.duration",
        "messaging.client.sent.messages",
    ], "a failure has a duration, too"
    assert seen.told[0][1] == 7
    assert all("my-job" not in str(told["messaging.destination.template"]) for _, _, told in seen.told)
    assert one.sent(TOPIC, 0) == [("traceparent", b"00-1-2-01")]


def test_destinations_are_as_many_as_topics() -> None:
    assert template("antdt.a.steps") == template("antdt.b.steps") == "antdt.{job}.steps"
    assert attributes(TOPIC, "send", 3)["messaging.destination.partition.id"] == "3"


def test_the_real_sdk_takes_it() -> None:
    """In memory, where it is installed."""
    sdk = pytest.importorskip("opentelemetry.sdk.metrics", reason="opentelemetry-sdk is not installed")
    from opentelemetry import propagate
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, reader, provider = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    meters = sdk.MeterProvider([reader])
    one = Tracing(provider.get_tracer("t"), meters.get_meter("t"), propagate.inject)
    with one.processing(TOPIC, "g", 0, 5):
        (header,) = one.sent("antdt.my-job.decisions", 0)
    (span,) = spans.get_finished_spans()
    assert header[0] == "traceparent" and f"{span.context.trace_id:032x}".encode() in (header[1] or b"")
    found = {m.name for r in reader.get_metrics_data().resource_metrics for s in r.scope_metrics for m in s.metrics}
    assert found == {
        "messaging.process.duration", "messaging.client.consumed.messages", "messaging.client.sent.messages"
    }  # fmt: skip
