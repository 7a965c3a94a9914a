"""How the services of a job are, as the page shows them: lag, signs of life, and what could not be accepted."""

from __future__ import annotations

import time
from contextlib import suppress
from time import monotonic
from typing import Any

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import UnknownJob
from antdt_schemas.topics import DEAD_LETTERS

from antdt_streams.kafka.reader import TopicReader, decoded
from antdt_streams.views.liveness import services_of

READ_S = 2.0
REASON_MAX = 300


def health_of(connection: Connection, job: str) -> dict[str, Any]:
    """As of now, ready for JSON. Raises Unavailable where the broker does not answer."""
    services = services_of(connection, job)
    return {"as_of_ms": int(time.time() * 1000), "services": services, "dead_letters": dead_letters(connection, job)}


def dead_letters(connection: Connection, job: str) -> dict[str, Any] | None:
    """How many there are, and what the newest one says; None where their topic is missing."""
    with suppress(UnknownJob), TopicReader(connection, job, DEAD_LETTERS) as reader:
        reader.follow(None)
        count, until = sum(reader.ends()) - sum(reader.positions()), monotonic() + READ_S
        newest: dict[str, Any] | None = None
        reader.follow(1)
        while reader.is_behind() and monotonic() < until:
            for raw, letter in decoded(reader.poll(0.1), records.DeadLetter):
                where = f"{letter.topic}/{letter.partition}@{letter.offset}"
                newest = {"offset": raw.offset, "service": letter.service, "of": where,
                          "reason": letter.reason[:REASON_MAX]}  # fmt: skip
        return {"count": count, "newest": newest}
    return None
