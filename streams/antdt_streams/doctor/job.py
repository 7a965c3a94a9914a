"""Of a job: its topics, how large its records may be, the rules and schemas it was written by, quotas, clocks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from time import monotonic
from typing import Any

from antdt_schemas import codec, records
from antdt_schemas.errors import Mismatch, Undecodable, UnknownSchema
from antdt_schemas.offsets import watermarks
from antdt_schemas.polling import new_consumer
from antdt_schemas.room import SETTING
from antdt_schemas.topics import RECORD_BYTES_MAX, SHARD_LOG, TOPICS, Topic
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AclOperation  # type: ignore[attr-defined]

from antdt_streams.doctor.checks import Check, Finding, Setup, fault, of_error, ok, unknown, warning
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.reader import TopicReader, decoded, read_genesis
from antdt_streams.kafka.topic_rules import ABSENT, Difference
from antdt_streams.ledger.core.versions import check_version, state_of
from antdt_streams.ledger.requests import unread

TAIL, TAIL_OF_LOG = 20, 2_000
# Whoever writes there with schemas that nobody knows stops the job; elsewhere such records become dead letters.
OF_THE_LOG = (SHARD_LOG,)
LISTEN_S, QUOTA_S, QUOTA_BYTES = 2.5, 4.0, 1 << 20
SKEW_S = 5.0
THROTTLED_S = 1.0


def readable(setup: Setup) -> list[Topic]:
    """The job's topics that this client may read; all, where it is not known."""
    may = setup.shared.get("may", {})

    def allowed(topic: Topic) -> bool:
        found = may.get(("topic", topic.name(setup.job)))
        return found is None or bool(found & {AclOperation.READ, AclOperation.ALL})

    return [topic for topic in TOPICS if allowed(topic)]


# -- topics


def topics(setup: Setup) -> Iterator[Finding]:
    """What `antdt topics check` says."""
    differences = topics_admin.check(setup.reached, setup.job)
    yield from judged_topics(setup.job, [one for one in differences if one.what != SETTING])
    absent = any(one.found == ABSENT for one in differences)
    if not absent and (said := unread(setup.reached, setup.job)):
        yield warning(said, "let requests be kept for longer (retention.ms) where ledgers are away for days")


def judged_topics(job: str, differences: Sequence[Difference]) -> Iterator[Finding]:
    for one in differences:
        yield (fault if one.fatal else warning)(one.said, one.mend(job))
    if not differences:
        yield ok(f"{len(TOPICS)} topics, as they must be")


def sizes(setup: Setup) -> Iterator[Finding]:
    """What records may have, in bytes."""
    examined = topics_admin.examine(setup.reached, setup.job)
    for one in examined.differences:
        if one.what == SETTING:
            yield (fault if one.fatal else warning)(one.said, one.mend(setup.job))
    least = min(examined.record_bytes.values(), default=RECORD_BYTES_MAX)
    if least >= RECORD_BYTES_MAX:
        yield ok(f"records of up to {least:,} bytes, which is all that is sent")


# -- what was written


def rules(setup: Setup) -> Iterator[Finding]:
    """Whether this version knows the rules of the log: of its Genesis, and of whoever led it last."""
    with TopicReader(setup.reached, setup.job, SHARD_LOG) as reader:
        (first,), (end,) = reader.starts(), reader.ends()
        if first:
            yield fault(
                f"the first {first:,} entries of the log are gone, and with its beginning nobody can read it",
                "restore the topic from a copy, or take another name; a log is never to be cut (retention.ms=-1)",
            )
            return
        bodies = [e.body for _, e in decoded(reader.to_end(max(0, end - TAIL_OF_LOG)), records.Entry)]
    genesis = read_genesis(setup.reached, setup.job)
    if genesis is None:
        yield ok("nobody has begun the job: any version may")
        return
    state_of(genesis)
    leaders = [body for body in bodies if isinstance(body, records.Leader)]
    yield judged_leader(leaders[-1] if leaders else None, genesis)


def judged_leader(leader: records.Leader | None, genesis: records.Genesis) -> Finding:
    """leader: the newest that is near the end of the log."""
    try:
        check_version(genesis.fold_version)
        if leader is not None:
            check_version(leader.fold_version)
    except Mismatch as error:
        return of_error(error)
    return ok(f"rules of version {genesis.fold_version}, of run {genesis.run_id}, which this version knows")


def schemas(setup: Setup) -> Iterator[Finding]:
    """Whether this version can decode what was written last."""
    seen, wrong = 0, list[Finding]()
    for topic in readable(setup):
        with TopicReader(setup.reached, setup.job, topic) as reader:
            for raw in reader.tail(TAIL):
                seen += 1
                found = judged_record(topic, raw.partition, raw.offset, raw.value)
                if found is not None:
                    wrong.append(found)
    yield from wrong[:3]
    if not wrong:
        yield ok(f"the newest {seen} records of {len(readable(setup))} topics are known")


def judged_record(topic: Topic, partition: int, offset: int, value: bytes) -> Finding | None:
    """None where it can be decoded, or is nobody's of ours."""
    try:
        codec.decode_one_of(value, topic.kinds)
    except UnknownSchema as error:
        where, fatal = f"{topic.suffix} {partition}@{offset}", topic in OF_THE_LOG
        what = f"{where} was written by another version of antdt, with a schema that this one does not know"
        return (fault if fatal else warning)(what, error.hint or "upgrade antdt here")
    except Undecodable:
        return None  # junk is passed over, and counted by who reads it
    return None


# -- quotas and clocks


def quotas(setup: Setup) -> Iterator[Finding]:
    """Read a little, and see whether the broker makes this client wait."""
    waits = list[float]()
    able = readable(setup)
    if not able:
        yield unknown("this client may read no topic of the job")
        return
    over = {"throttle_cb": lambda event: waits.append(float(event.throttle_time)), "fetch_wait_max_ms": 10}
    with closing(new_consumer(setup.reached.consumer(**over))) as consumer:
        size, until_s = 0, monotonic() + QUOTA_S
        consumer.assign(_starts(consumer, setup.job, able))
        silent_s = monotonic()
        while size < QUOTA_BYTES and monotonic() < until_s and monotonic() - silent_s < LISTEN_S / 2:
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                size, silent_s = size + len(message.value() or b""), monotonic()
    yield judged_quotas(setup.reached.client_id, max(waits, default=0.0), size)


def _starts(consumer: Any, job: str, able: Sequence[Topic]) -> list[TopicPartition]:
    out = []
    for topic in able:
        low, _ = watermarks(consumer, topic.name(job), 0, 2.0)
        out.append(TopicPartition(topic.name(job), 0, low))
    return out


def judged_quotas(client_id: str, wait_s: float, size: int) -> Finding:
    """wait_s: the longest that the broker made this client wait, while it read so many bytes."""
    if not wait_s:
        return ok(f"{size:,} bytes were read without a wait; what may be written a second cannot be asked")
    fix = (
        "raise what its user or client id may use: `kafka-configs.sh --alter --entity-type clients --entity-name "
        f"{client_id} --add-config consumer_byte_rate=…,producer_byte_rate=…,request_percentage=…`"
    )
    said = f"the broker makes this client ({client_id}) wait for up to {wait_s:.1f} s, by a quota, after {size:,} bytes"
    return (fault if wait_s > THROTTLED_S else warning)(said, fix)


def clock(setup: Setup) -> Iterator[Finding]:
    """The broker stamps each record with its own time: one that comes now tells it."""
    able = readable(setup)
    with closing(new_consumer(setup.reached.consumer(fetch_wait_max_ms=10))) as consumer:
        ends = {topic.name(setup.job): watermarks(consumer, topic.name(setup.job), 0, 2.0) for topic in able}
        places = [TopicPartition(name, 0, max(low, high - 1)) for name, (low, high) in ends.items()]
        consumer.assign(places)
        news, old = list[float](), list[float]()
        until_s = monotonic() + LISTEN_S
        while monotonic() < until_s and len(news) < 3:
            message = consumer.poll(0.05)
            if message is not None and message.error() is None:
                ahead_s = time.time() - message.timestamp()[1] / 1000
                (news if message.offset() >= ends[message.topic()][1] else old).append(ahead_s)
    yield judged_clock(min(news, default=None), min(old, default=None))


def judged_clock(ahead_s: float | None, old_s: float | None) -> Finding:
    """ahead_s: how far this machine's clock is ahead of the broker's, by a record that has just come; old_s: by the
    newest of before, which may be of any age.
    """
    fix = "synchronise both machines' clocks (NTP); what a job decides rests on the broker's alone"
    if ahead_s is not None and abs(ahead_s) > SKEW_S:
        way = "ahead of" if ahead_s > 0 else "behind"
        return warning(f"this machine's clock is {abs(ahead_s):,.0f} s {way} the broker's", fix)
    if old_s is not None and old_s < -SKEW_S:
        return warning(f"this machine's clock is {-old_s:,.0f} s or more behind the broker's", fix)
    if ahead_s is None:
        return unknown("nobody writes to the job's topics at the moment, which is what would tell the broker's time")
    return ok(f"within {max(abs(ahead_s), 0.1):.1f} s of the broker's")


CHECKS = (
    Check(
        "topics",
        "copies, min.insync.replicas, LogAppendTime, retention, compaction",
        topics,
        ("broker", "topics"),
        30.0,
    ),
    Check("message size", "max.message.bytes of each topic", sizes, ("broker", "topics"), 20.0),
    Check("rules", "the version of the log's rules", rules, ("broker", "topics"), 20.0),
    Check("schemas", "the newest records of each topic", schemas, ("broker", "topics"), 20.0),
    Check("quotas", "whether the broker makes this client wait", quotas, ("broker", "topics")),
    Check("clock", "this machine's against the broker's", clock, ("broker", "topics")),
)
