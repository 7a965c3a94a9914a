"""First and next offset of a partition, asked of its leader."""

from __future__ import annotations

from time import monotonic, sleep
from typing import Any

from antdt_schemas.errors import Unavailable

PAUSE_S = 0.05


def watermarks(consumer: Any, topic: str, partition: int, timeout_s: float = 10.0) -> tuple[int, int]:
    """(first offset, offset of the next record), asked anew until a leader answers or `timeout_s` has passed.

    A topic that was just created has no leader for a moment, and a client's metadata may be older than the topic.

    Raises:
        Unavailable: nobody answered in time.
    """
    from confluent_kafka import KafkaException, TopicPartition

    until = monotonic() + timeout_s
    while True:
        try:
            left_s = max(0.1, until - monotonic())
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=left_s, cached=False)
        except KafkaException as error:
            if monotonic() >= until:
                raise Unavailable(f"{topic}/{partition} cannot be read: {error.args[0].str()}.") from error
            sleep(PAUSE_S)  # between two questions; the bound is the caller's
        else:
            return int(low), int(high)


def known_end(consumer: Any, topic: str, partition: int) -> int | None:
    """Offset of the next record of a partition that is read, as came with what was fetched last. Waits for nobody; None
    where nothing is known, or the client is closed.
    """
    import confluent_kafka

    try:
        known = consumer.get_watermark_offsets(confluent_kafka.TopicPartition(topic, partition), cached=True)
    except (confluent_kafka.KafkaException, RuntimeError):
        return None
    return known[1] if known is not None and known[1] >= 0 else None
