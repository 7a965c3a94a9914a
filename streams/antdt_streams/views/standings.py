"""What each worker said last that it is at, for people: from the tail of the requests. Nothing rests on it."""

from __future__ import annotations

from collections.abc import Collection
from time import time
from typing import Any

from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError
from antdt_schemas.topics import REQUESTS

from antdt_streams.kafka.reader import TopicReader, decoded

TAIL = 2_000


def standings(connection: Connection, job: str, members: Collection[str] | None) -> dict[str, dict[str, Any]]:
    """The newest heartbeat of each of these incarnations, or of whoever there is: phase, for how long, what in
    particular, and how old it is.

    Who said nothing lately, or is of a version that does not say it, is left out; so is everybody where the requests
    may not be read.
    """
    out: dict[str, dict[str, Any]] = {}
    try:
        with TopicReader(connection, job, REQUESTS) as reader:
            for raw, request in decoded(reader.tail(TAIL), records.Request):
                body = request.body
                known = members is None or request.incarnation in members
                if known and isinstance(body, records.Heartbeat) and body.phase:
                    said = {n: getattr(body, n) for n in ("phase", "phase_s", "allowed_s", "detail")}
                    out[request.incarnation] = said | {"age_s": max(0.0, time() - raw.time_ms / 1000)}
    except AntdtError:
        return {}
    return out
