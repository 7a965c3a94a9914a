"""All jobs of a broker: how far each is, since when, and whether it runs. Only reads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError
from antdt_schemas.offsets import watermarks
from antdt_schemas.polling import new_consumer
from antdt_schemas.topics import SHARD_LOG, TOPICS

from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.reader import TopicReader
from antdt_streams.views.job import newest_state, standing_of
from antdt_streams.views.liveness import services_of

AT_A_TIME = 8  # jobs that are looked at


@dataclass(frozen=True, slots=True)
class Row:
    """One job. state: in a word or a few. records: of all its topics. age_s: since its first entry; None: it has none.
    running: its services that answer; None where that cannot be told.
    """

    job: str
    state: str
    committed: int
    samples_total: int
    step: int
    members: int
    records: int
    age_s: float | None
    running: tuple[str, ...] | None


def jobs_of(connection: Connection) -> list[Row]:
    """In the order of their names. A job that cannot be read says so in its row."""
    names = topics_admin.list_jobs(connection)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return list(pool.map(lambda job: row_of(connection, job), names))


def row_of(connection: Connection, job: str) -> Row:
    """Of one job."""
    try:
        first_ms = _first_ms(connection, job)
        found = standing_of(newest_state(connection, job)[0])
        running, held = running_of(services_of(connection, job)), sum(records_of(connection, job).values())
    except AntdtError as error:
        return Row(job, f"cannot be read: {error}", 0, 0, 0, 0, 0, None, None)
    age_s = None if first_ms is None else max(0.0, time.time() - first_ms / 1000)
    state = state_of(found, running)
    counts = found["committed"], found["samples_total"], found["step"], len(found["members"])
    return Row(job, state, *counts, held, age_s, running)


def running_of(services: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...] | None:
    """Which of them answer; None if it cannot be told of one, and none of the others does."""
    there = tuple(name for name, one in services.items() if one["answers"])
    return None if not there and any(one["answers"] is None for one in services.values()) else there


def state_of(found: Mapping[str, Any], running: tuple[str, ...] | None) -> str:
    """found: what `standing_of` says."""
    if found["file"]:
        return "stopped" if found["stopped"] else "done"
    if found["watched"]:
        stands = running is not None and "ledger" not in running
        here = f"{len(found['members'])} workers" if found["members"] else "nobody is there"
        return "watched, no ledger" if stands else f"watched: {here}"
    if found["run_id"] is None or not found["samples_total"]:
        return "not begun" if running is None or "ledger" in running else "not begun, no ledger"
    if running is not None and "ledger" not in running:
        return "stands: no ledger"
    return "trains" if found["open"] and found["members"] else f"waits: {found['next_generation'] or 'for workers'}"


def records_of(connection: Connection, job: str) -> dict[str, int]:
    """Topic -> records that it holds, of the topics that are there."""
    found = {}
    with closing(new_consumer(connection.consumer())) as consumer:
        known = consumer.list_topics(timeout=topics_admin.TIMEOUT_S).topics
        for topic in TOPICS:
            name = topic.name(job)
            if name in known:
                ranges = [watermarks(consumer, name, partition) for partition in known[name].partitions]
                found[name] = sum(high - low for low, high in ranges)
    return found


def _first_ms(connection: Connection, job: str) -> int | None:
    """The broker's time of the first entry of the log."""
    with TopicReader(connection, job, SHARD_LOG) as reader:
        first = next(reader.to_end(), None)
        return None if first is None else first.time_ms
