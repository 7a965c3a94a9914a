"""The digits as records of a Kafka topic, with aborted transactions among them: for runs that are broken on purpose.

Owns the topic: the first rank writes it, whole, before anybody trains.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from antdt_schemas.connection import Connection
from antdt_schemas.errors import UsageError
from torch.utils.data import TensorDataset

import antdt
from antdt.connect.topics import KafkaTopic

PARTITIONS = 3
EACH = 200  # records of a transaction, before one that is aborted
WITHIN_S = 120.0
SCALE = 16


def decode(record: antdt.Record) -> tuple[torch.Tensor, torch.Tensor, str]:
    """(picture, its digit, the record's name)."""
    assert record.value is not None
    *pixels, digit = record.value
    return torch.tensor(pixels).view(1, 8, 8) / SCALE, torch.tensor(digit), record.name


def topic_of(name: str, data: TensorDataset, settings: antdt.Settings) -> antdt.Topic:
    """The topic, which holds the data whole. Raises UsageError: nobody has written it in time."""
    from confluent_kafka.admin import AdminClient

    admin, until_s = AdminClient(settings.connection.admin()), time.monotonic() + WITHIN_S
    whole = f"{name}.whole"  # is there once the other one is: a writer may die in the middle
    if settings.rank == 0 and whole not in admin.list_topics(timeout=10).topics:
        _write(name, data, settings.connection)
        _create(admin, whole, 1)
    kafka = KafkaTopic(name, settings.connection)
    # What a transaction has committed is there for readers a little later.
    while whole not in admin.list_topics(timeout=10).topics or _held(kafka) < len(data) * 5 // 4:
        if time.monotonic() > until_s:
            raise UsageError(f"The topic {name} does not hold the digits.")
        time.sleep(0.2)
    kafka.close()
    return antdt.Topic(name, decode)


def _held(kafka: KafkaTopic) -> int:
    return sum(end - begin for begin, end in kafka.bounds().values())


def _create(admin: Any, name: str, partitions: int) -> None:
    from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

    if name not in admin.list_topics(timeout=10).topics:
        admin.create_topics([NewTopic(name, partitions)])[name].result(30)


def _write(name: str, data: TensorDataset, connection: Connection) -> None:
    """All of it in one transaction, behind some that are aborted."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient

    _create(AdminClient(connection.admin()), name, PARTITIONS)
    producer = Producer(connection.producer(transactional_id=f"{name}-writer", transaction_timeout_ms=20_000))
    producer.init_transactions(60)
    x, y, *_ = data.tensors
    rows = [bytes([*(int(v) for v in (x[i] * SCALE).flatten()), int(y[i])]) for i in range(len(data))]

    def say(some: list[bytes], first: int) -> None:
        for at, row in enumerate(some, first):
            producer.produce(name, row, partition=at % PARTITIONS)

    for first in range(0, len(rows), EACH):  # what is aborted leaves offsets without a record, and markers
        producer.begin_transaction()
        say(rows[first : first + EACH // 4], first)
        producer.flush(60)  # or they would never leave this process
        producer.abort_transaction(60)
    producer.begin_transaction()
    say(rows, 0)
    producer.commit_transaction(60)


def names_of(numbers: Any) -> list[Any]:
    """Of a batch: names of records, or indices of samples."""
    return list(numbers) if isinstance(numbers, list | tuple) else list(numbers.tolist())
