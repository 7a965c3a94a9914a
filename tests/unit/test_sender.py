"""What becomes of a worker's records when Kafka refuses them: requests say so, timings never end anything."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from antdt.connect.sender import REPLACED_MAX, Sender
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode, Unavailable, UsageError
from confluent_kafka import KafkaError, KafkaException

DENIED = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
NOBODY = KafkaError(KafkaError._FATAL, "Fatal error: Broker: Cluster authorization failed: no PID", fatal=True)
OUT_OF_ORDER = KafkaError(KafkaError._FATAL, "Fatal error: Broker: out of order sequence number", fatal=True)


class Broken:
    """A producer, as the client sees it, that fails as it is told to."""

    def __init__(self, settings: dict[str, Any], fails: Callable[[Broken], None]) -> None:
        self.settings, self._fails, self.sent = settings, fails, list[str]()
        self.fatal: KafkaError | None = None
        self.callbacks: list[Callable[[Any, Any], None]] = []

    def produce(self, topic: str, _payload: bytes, _key: str, _partition: int, on_delivery: Any) -> None:
        self._fails(self)
        self.sent.append(topic)
        self.callbacks.append(on_delivery)

    def poll(self, _timeout_s: float) -> None:
        """As confluent-kafka does: a fatal error calls nobody back, it is raised."""
        if self.fatal is not None:
            raise KafkaException(self.fatal)

    def flush(self, _timeout_s: float) -> None:
        raise KafkaException(OUT_OF_ORDER)

    def purge(self) -> None:
        pass


def broken(fails: Callable[[Broken], None]) -> tuple[Sender, list[Broken]]:
    made: list[Broken] = []

    def make(settings: dict[str, Any]) -> Broken:
        made.append(Broken(settings, fails))
        return made[-1]

    return Sender(Connection("127.0.0.1:1"), make=make), made


def raises(error: Exception) -> Callable[[Broken], None]:
    def fail(_: Broken) -> None:
        raise error

    return fail


def test_timings_that_must_not_be_written_are_said_once_and_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    sender, _ = broken(raises(KafkaException(DENIED)))
    with caplog.at_level(logging.WARNING):
        assert not any(sender.tell("antdt.j.steps", b"", "w0", lambda _: None) for _ in range(9))
    (said,) = [record.getMessage() for record in caplog.records]
    assert "ACL Write on the topic antdt.j.steps" in said


def test_timings_whose_delivery_fails_are_dropped_and_end_nothing() -> None:
    sender, made = broken(lambda _: None)
    arrived: list[bool] = []
    for error in (DENIED, KafkaError(KafkaError._MSG_TIMED_OUT), None):
        assert sender.tell("antdt.j.steps", b"", "w0", arrived.append)
        made[0].callbacks[-1](error, None)
    sender.poll()
    assert arrived == [False, False, True]


@pytest.mark.parametrize("how", ["at once", "later", "by a fatal error"])
def test_requests_that_must_not_be_written_name_the_right(how: str) -> None:
    sender, made = broken(raises(KafkaException(DENIED)) if how == "at once" else lambda _: None)

    def ask() -> None:
        sender.ask("antdt.j.requests", b"", "w0")
        if how == "later":
            made[0].callbacks[-1](DENIED, None)
        else:
            made[0].fatal = NOBODY
            sender.poll()
            sender.ask("antdt.j.requests", b"", "w0")
        sender.poll()

    with pytest.raises(UsageError, match=r"ACL Write on the topic antdt\.j\.requests") as raised:
        ask()
    assert raised.value.exit_code == ExitCode.USAGE


def test_a_producer_that_fails_for_good_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    sender, made = broken(lambda _: None)
    assert sender.ask("requests", b"", "w0")
    made[0].fatal = OUT_OF_ORDER
    sender.poll()
    assert sender.ask("requests", b"", "w0")
    assert [one.sent for one in made] == [["requests"], ["requests"]]
    assert "out of order" in caplog.text


def test_producers_that_fail_one_after_the_other_end_the_worker() -> None:
    sender, made = broken(lambda _: None)
    for _ in range(REPLACED_MAX):
        made[-1].fatal = OUT_OF_ORDER
        sender.poll()
        assert sender.ask("requests", b"", "w0")
    made[-1].fatal = OUT_OF_ORDER
    sender.poll()
    with pytest.raises(Unavailable, match="out of order"):
        sender.ask("requests", b"", "w0")


def test_what_cannot_go_out_now_is_asked_again() -> None:
    for error in (BufferError(), KafkaException(KafkaError(KafkaError._UNKNOWN_TOPIC))):
        sender, _ = broken(raises(error))
        assert not sender.ask("requests", b"", "w0")
        sender.poll()


def test_closing_never_raises() -> None:
    sender, _ = broken(lambda _: None)
    sender.close(0.1)
