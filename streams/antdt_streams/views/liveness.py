"""Whether the services of a job are there, and how far behind each is: what `antdt status` shows of them.

Owns the sign of life of a ledger, which it lays beside its published position, and the words for what was found. Only
reads; whatever this client may not ask is None, and said so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.errors import Unavailable
from antdt_schemas.offsets import watermarks
from antdt_schemas.polling import new_consumer
from antdt_schemas.topics import MEASUREMENTS, REQUESTS, SHARD_LOG, STEPS, Topic
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

ASK_S = 10.0
LAST_RECORD_S = 2.0
# A ledger says every second that it is there. Who may have another clock than this machine is looked at twice.
FRESH_S = 3.0
LOOK_AGAIN_S = 2.5
READS = {"monitor": STEPS, "controller": MEASUREMENTS}


@dataclass(frozen=True, slots=True)
class Found:
    """One service. `answers`: None if it cannot be told. Ages in seconds; behind: records that it has not processed."""

    answers: bool | None
    behind: int | None
    said: str
    heard_s: float | None = None
    last_entry_s: float | None = None
    owner: str | None = None
    state: str | None = None
    instances: int | None = None


def services_of(connection: Connection, job: str, *, sure: bool = False) -> dict[str, dict[str, Any]]:
    """Ledger, monitor and controller as they are now, ready for JSON. sure: one that has just ended is not there; this
    takes up to LOOK_AGAIN_S.
    """
    found = {"ledger": _ledger(connection, job, sure=sure)}
    admin = AdminClient(connection.admin())
    for service, topic in READS.items():
        found[service] = _processor(connection, admin, job, service, topic)
    return {service: asdict(one) for service, one in found.items()}


# -- the ledger


def _ledger(connection: Connection, job: str, *, sure: bool) -> Found:
    place = REQUESTS.name(job), 0
    with closing(new_consumer(connection.consumer(group_id=f"antdt.{job}.ledger"))) as consumer:
        low, end = watermarks(consumer, *place, ASK_S)
        try:
            position, sign = _committed(consumer, *place)
            waiting = max(0, end - max(position, low))
            heard_s = _heard_s(sign, lambda: _committed(consumer, *place)[1], sure=sure or bool(waiting))
        except KafkaException as error:
            return Found(None, None, f"cannot be told: {error.args[0].str()}")
        answers = heard_s is not None
        asked_ms = _last_ms(consumer, *place, end) if waiting else None
        entry_ms = _last_ms(consumer, SHARD_LOG.name(job), 0, watermarks(consumer, SHARD_LOG.name(job), 0, ASK_S)[1])
    # While somebody asks, the newest question tells the broker's time; else this machine's clock must do.
    now_ms = asked_ms if asked_ms is not None else time.time() * 1000
    last_entry_s = max(0.0, (now_ms - entry_ms) / 1000) if entry_ms is not None else None
    said = ledger_said(job, answers=answers, waiting=waiting, last_entry_s=last_entry_s, at_ms=sign.get("at_ms"))
    return Found(answers, waiting, said, heard_s, last_entry_s, sign.get("owner"))


def _heard_s(sign: dict[str, Any], again: Callable[[], dict[str, Any]], *, sure: bool = False) -> float | None:
    """How long ago a ledger was heard of; None if none is there. sure: by a second sign, as one may have just ended."""
    if "at_ms" not in sign:
        return None
    age_s = time.time() - float(sign["at_ms"]) / 1000
    if 0 <= age_s <= FRESH_S and not sure:
        return age_s
    until_s = time.monotonic() + LOOK_AGAIN_S
    while time.monotonic() < until_s:
        time.sleep(0.1)
        if again() != sign:
            return 0.0
    return None


def ledger_said(job: str, *, answers: bool, waiting: int, last_entry_s: float | None, at_ms: int | None) -> str:
    if answers:
        return f"answers, {waiting:,} requests wait" if waiting else "answers"
    start = f"Start one with `antdt up {job} --resume`, or see what its log says."
    if waiting:
        silent = "nothing yet" if last_entry_s is None else f"nothing for {last_entry_s:,.0f} s"
        return f"IS NOT THERE: it has written {silent}, and {waiting:,} requests wait. {start}"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000)) if at_ms else "ever"
    return f"is not there (last sign of life: {when if at_ms else 'none'}); nobody asks at the moment. {start}"


# -- monitor and controller


def _processor(connection: Connection, admin: AdminClient, job: str, service: str, topic: Topic) -> Found:
    group, place = f"antdt.{job}.{service}", (topic.name(job), 0)
    try:
        told = admin.describe_consumer_groups([group], request_timeout=ASK_S)[group].result(ASK_S)
        with closing(new_consumer(connection.consumer(group_id=group))) as consumer:
            low, end = watermarks(consumer, *place, ASK_S)
            position, _ = _committed(consumer, *place)
    except (KafkaException, Unavailable, TimeoutError) as error:
        reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        return Found(None, None, f"cannot be told: {reason}")
    state, instances = told.state.name, len(told.members)
    behind = max(0, end - max(position, low))
    return Found(instances > 0, behind, processor_said(job, state, instances, behind), state=state, instances=instances)


def processor_said(job: str, state: str, instances: int, behind: int) -> str:
    lag = f"{behind:,} records behind" if behind else "nothing to do"
    if not instances:
        return f"IS NOT THERE, {lag}. Start it with `antdt up {job} --resume`, or see what its log says."
    many = "" if instances == 1 else f", {instances} instances"
    settled = "" if state == "STABLE" else f", its group is {state.lower().replace('_', ' ')}"
    return f"is there{many}{settled}, {lag}"


# -- underneath


def _committed(consumer: Consumer, topic: str, partition: int) -> tuple[int, dict[str, Any]]:
    """The published position, 0 if there is none, and what lies beside it."""
    (at,) = consumer.committed([TopicPartition(topic, partition)], timeout=ASK_S)
    if at.error is not None:
        raise KafkaException(at.error)
    sign: dict[str, Any] = {}
    with suppress(ValueError):
        sign = json.loads(at.metadata or "{}")
    return max(0, at.offset), sign


def _last_ms(consumer: Consumer, topic: str, partition: int, end: int) -> int | None:
    """The broker's time of the last record; None if there is none any more."""
    if not end:
        return None
    consumer.assign([TopicPartition(topic, partition, end - 1)])
    until_s = time.monotonic() + LAST_RECORD_S
    while time.monotonic() < until_s:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None and message.topic() == topic:
            return int(message.timestamp()[1])
    return None
