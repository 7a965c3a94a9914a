"""What a topic of a job must be like, and what it means if it is not. Pure.

Fatal is what makes the log untrue or unreadable, or what nobody can write to; anything else is said, and run with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from antdt_schemas.topics import DECISIONS, DURABLE_COPIES, MESSAGE_BYTES_MIN, SHARD_LOG, Topic

# What is read from its start again and again: nothing of it may ever be removed.
TRUTH = (SHARD_LOG, DECISIONS)
PARTITIONS, COPIES = "partitions", "copies"
NOT_SETTINGS = (PARTITIONS, COPIES)
ABSENT = "no such topic"


@dataclass(frozen=True, slots=True)
class Difference:
    """One deviation of a topic from the registry. `fatal`: the job must not run like that. `why`: what comes of it."""

    topic: str
    what: str
    expected: str
    found: str
    fatal: bool = False
    why: str = ""

    def __str__(self) -> str:
        return f"{self.what} of {self.topic}: expected {self.expected}, found {self.found}"

    @property
    def said(self) -> str:
        """What differs, and what comes of it."""
        return f"{self}: {self.why}" if self.why else str(self)

    def mend(self, job: str) -> str:
        if self.found == ABSENT:
            return f"`antdt topics create {job} --resume` creates it."
        if self.what == PARTITIONS and self.topic == SHARD_LOG.name(job):
            return "A log has one order, so this topic can never be one: take another name for the job."
        if self.what == PARTITIONS:
            return f"Delete that topic, then `antdt topics create {job} --resume` creates it anew."
        if self.what == COPIES:
            return "Copies are added by `kafka-reassign-partitions.sh`; `--replication` counts for new topics."
        return f"`antdt topics check {job} --repair` sets it."


def absent(topic: Topic, job: str) -> Difference:
    return Difference(topic.name(job), PARTITIONS, str(topic.partitions), ABSENT, fatal=True)


def compare(topic: Topic, job: str, partitions: int, copies: int, found: Mapping[str, str | None]) -> list[Difference]:
    """What differs between a topic and the registry. A setting that this broker does not have is no difference."""
    name, out = topic.name(job), list[Difference]()
    if partitions != topic.partitions:
        out.append(Difference(name, PARTITIONS, str(topic.partitions), str(partitions), fatal=True))
    for key, expected in topic.settings(copies).items():
        value = found.get(key)
        if value is not None and value != expected:
            judged = _judged(topic, key, expected, value, copies)
            if judged is not None:
                fatal, why = judged
                out.append(Difference(name, key, expected, value, fatal, why))
    return out


def few_copies(topic: Topic, job: str, copies: int, brokers: int) -> list[Difference]:
    """The log has fewer copies than this cluster could keep."""
    if brokers < DURABLE_COPIES or copies >= DURABLE_COPIES or topic not in TRUTH:
        return []
    why = "it is lost, or stands, with a broker or two"
    return [Difference(topic.name(job), COPIES, str(DURABLE_COPIES), str(copies), why=why)]


def _judged(topic: Topic, key: str, expected: str, value: str, copies: int) -> tuple[bool, str] | None:
    """(fatal, what comes of it); None if it is as good as what was expected."""
    if key == "max.message.bytes":
        return _message_bytes(int(value), int(expected))
    if key == "min.insync.replicas":
        return _in_sync(int(value), int(expected), copies)
    if key == "cleanup.policy":
        if value == "" and topic in TRUTH:  # nothing is ever removed
            return None
        compacts = "compact" in expected
        return not compacts, "it grows for ever" if compacts else "records are removed by key, read or not"
    if key in ("retention.ms", "retention.bytes"):
        return topic in TRUTH, "what is older is removed" if topic in TRUTH else "records are kept for another time"
    if key == "unclean.leader.election.enable":
        return topic in TRUTH, "acknowledged records are lost with the broker that leads"
    if key == "message.timestamp.type":
        return True, "times are those of whoever writes"
    return False, "it takes more room on disk"


def _message_bytes(value: int, expected: int) -> tuple[bool, str] | None:
    if value >= expected:
        return None
    if value < MESSAGE_BYTES_MIN:
        return True, f"with less than {MESSAGE_BYTES_MIN} a job cannot say who its workers are"
    return False, "records are split to fit, and a job of many workers may not"


def _in_sync(value: int, expected: int, copies: int) -> tuple[bool, str] | None:
    if value > copies:
        return True, f"nobody can write, as there are {copies} copies"
    if value < expected:
        return False, "an acknowledged entry may be on one broker only"
    if value == copies:
        return False, "nobody can write while one broker is away"
    return None
