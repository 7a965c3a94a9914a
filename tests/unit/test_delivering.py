"""Waiting for deliveries names what has failed for good."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from antdt_schemas.delivering import flush
from confluent_kafka import KafkaError, KafkaException


class _Producer:
    def __init__(self, does: Callable[[], int]) -> None:
        self.does = does

    def flush(self, timeout_s: float) -> int:
        return self.does()


def _in_a_callback() -> int:
    """As the client does: an exception of one callback is set while it calls the next one."""
    try:
        raise KafkaException(KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED))
    except KafkaException as error:
        raise SystemError("append returned a result with an exception set") from error


def _other() -> int:
    raise SystemError("something else")


def test_a_fatal_error_is_raised_as_what_it_is() -> None:
    assert flush(_Producer(lambda: 3), 1.0) == 3
    with pytest.raises(KafkaException) as found:
        flush(_Producer(_in_a_callback), 1.0)
    assert found.value.args[0].code() == KafkaError.CLUSTER_AUTHORIZATION_FAILED
    with pytest.raises(SystemError, match="something else"):
        flush(_Producer(_other), 1.0)
