"""How long the administration of topics asks."""

from __future__ import annotations

import pytest
from antdt_streams.kafka.topics_admin import ATTEMPT_S, TIMEOUT_S, patiently
from confluent_kafka import KafkaError, KafkaException


def test_a_client_without_an_answer_is_replaced_by_another() -> None:
    late: list[Exception] = [TimeoutError(), KafkaException(KafkaError(KafkaError._TIMED_OUT))]
    waits = list[float]()

    def ask(timeout_s: float) -> str:
        waits.append(timeout_s)
        if late:
            raise late.pop()
        return "found"

    assert patiently(ask) == "found"
    assert waits == [ATTEMPT_S] * 3


def test_an_answer_is_an_answer_also_when_it_says_no() -> None:
    def ask(timeout_s: float) -> None:
        raise KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))

    with pytest.raises(KafkaException):
        patiently(ask)


def test_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("antdt_streams.kafka.topics_admin.time.monotonic", lambda: now)

    def ask(timeout_s: float) -> None:
        nonlocal now
        now += timeout_s
        raise TimeoutError

    with pytest.raises(TimeoutError):
        patiently(ask)
    assert now == TIMEOUT_S
