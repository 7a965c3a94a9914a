"""How every process waits for its records to be delivered: one call, which names what has failed for good."""

from __future__ import annotations

from typing import Any


def flush(producer: Any, timeout_s: float) -> int:
    """Wait until all is delivered, for so long at most; returns how many records are not.

    A fatal error of a producer, as of one that may write nowhere, is raised out of the client's own callback. While it
    flushes, it then goes on with the callbacks of deliveries, which Python reports as a SystemError of theirs.

    Raises:
        KafkaException: the producer has failed for good.
    """
    from confluent_kafka import KafkaException

    try:
        return int(producer.flush(timeout_s))
    except SystemError as error:
        if isinstance(error.__cause__, KafkaException):
            raise error.__cause__ from None
        raise
