"""The one registry of topics: names, keys, partitions, retention, what a record may have. Knows no client."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from functools import lru_cache

from antdt_schemas import records
from antdt_schemas.errors import UsageError

JOB_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,40})")
WORKER_NAME = re.compile(r"[A-Za-z0-9]([-._A-Za-z0-9]{0,62})")

DAY_MS = 24 * 3600 * 1000
FOREVER = -1

# Kafka's default for a batch with its header; set, as a broker's own default may be far below.
MESSAGE_BYTES = 1_048_588
# With less, a job of a few workers could not say who they are.
MESSAGE_BYTES_MIN = 16 << 10
# What a writer makes of a record at most: a key and the headers of record and batch come on top.
RECORD_BYTES_MAX = 1_000_000
HEADERS_BYTES = 1_024
DURABLE_COPIES = 3


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of a job. `retention_ms` of FOREVER keeps every record. also: other types of records in it."""

    suffix: str
    record: type
    partitions: int
    retention_ms: int
    purpose: str
    config: dict[str, str] = field(default_factory=dict)
    also: tuple[type, ...] = ()

    @property
    def kinds(self) -> tuple[type, ...]:
        """The types of its records; the first is what it is for."""
        return (self.record, *self.also)

    def name(self, job: str) -> str:
        return f"antdt.{check_job(job)}.{self.suffix}"

    def settings(self, copies: int = 1) -> dict[str, str]:
        """Topic configuration as the broker wants it, where each partition has that many copies."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention_ms),
            "retention.bytes": "-1",
            # Time is the broker's: a trainer's wrong clock must not expire a lease or defeat retention.
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(MESSAGE_BYTES),
            # Of three copies one may be away; what is acknowledged is on two, and survives the loss of either.
            "min.insync.replicas": "2" if copies >= DURABLE_COPIES else "1",
            # A replica that was not in sync would make a log without its last entries the truth.
            "unclean.leader.election.enable": "false",
            **self.config,
        }


# Five days of 17 steps a second, which are 0.84 GB a day: who trains faster keeps fewer of them.
STEPS_BYTES_MAX = 4 << 30

BOUNDED = {"retention.bytes": str(STEPS_BYTES_MAX)}
# Two slots a service are written in turn: compaction keeps the newest of each, and small segments let it.
COMPACTED = {"cleanup.policy": "compact", "segment.bytes": str(16 << 20), "min.cleanable.dirty.ratio": "0.1"}

STEPS = Topic(
    "steps",
    records.StepBatch,
    1,
    7 * DAY_MS,
    "timings of every step, trainers to Monitor; and stacks that operators ask for",
    BOUNDED,
    also=(records.Stack,),
)
MEASUREMENTS = Topic(
    "measurements",
    records.Measurement,
    1,
    30 * DAY_MS,
    "what the Monitor knows, and what operators tell the Controller",
    also=(records.Steering,),
)
DECISIONS = Topic("decisions", records.Decision, 1, FOREVER, "what the Controller commands")
REQUESTS = Topic("requests", records.Request, 1, 7 * DAY_MS, "what workers ask of the ledger")
SHARD_LOG = Topic("shard-log", records.Entry, 1, FOREVER, "the truth: every assignment and every committed step")
REPLIES = Topic("replies", records.Reply, 4, DAY_MS // 4, "the ledger's answers")
DEAD_LETTERS = Topic("dead-letters", records.DeadLetter, 1, FOREVER, "records that could not be accepted")
SNAPSHOTS = Topic("snapshots", records.Snapshot, 1, FOREVER, "states of the services, to start from", COMPACTED)

TOPICS = (STEPS, MEASUREMENTS, DECISIONS, REQUESTS, SHARD_LOG, REPLIES, DEAD_LETTERS, SNAPSHOTS)
BY_SUFFIX = {topic.suffix: topic for topic in TOPICS}


def record_bytes(message_bytes: int) -> int:
    """Bytes that a record may have where the topic's max.message.bytes is this."""
    return min(RECORD_BYTES_MAX, message_bytes - HEADERS_BYTES)


@lru_cache(maxsize=64)  # topics are named for each record that is written
def check_job(job: str) -> str:
    """The name of a job, or UsageError: it becomes part of topic names and folders."""
    if not JOB_NAME.fullmatch(job):
        raise UsageError(
            f"Job name {job!r} is not usable: take 1 to 41 of a-z, 0-9 and '-', beginning with a letter or digit."
        )
    return job


def check_worker(worker: str) -> str:
    if not WORKER_NAME.fullmatch(worker):
        raise UsageError(f"Worker name {worker!r} is not usable: take 1 to 63 of letters, digits, '-', '.' and '_'.")
    return worker


def replies_partition(worker: str) -> int:
    """The partition of `replies` that a worker reads: both ends compute it, no group is involved."""
    return zlib.crc32(worker.encode()) % REPLIES.partitions
