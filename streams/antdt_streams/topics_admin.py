"""Creates, compares, lists and deletes the topics of a job; the names and settings come from the registry of topics.

The shard log is the arbiter: who creates it owns the name of the job, and it is the last topic to be deleted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from antdt_schemas.connection import Connection
from antdt_schemas.errors import JobTaken, Mismatch, Unavailable, UnknownJob, UsageError
from antdt_schemas.topics import BY_SUFFIX, JOB_NAME, SHARD_LOG, TOPICS, Topic
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

TIMEOUT_S = 20.0
ATTEMPT_S = 5.0
PATIENT = {"operation_timeout": TIMEOUT_S, "request_timeout": TIMEOUT_S}
POLL_S = 0.05
DURABLE_REPLICATION = 3
MISSING = "no such topic"
NAME = re.compile(rf"antdt\.({JOB_NAME.pattern})\.([a-z-]+)")
# A deviation in one of these changes what is computed; in any other, how long records are kept.
FATAL = ("partitions", "message.timestamp.type", "cleanup.policy")
DENIED = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
)
REFUSED = (KafkaError.INVALID_REPLICATION_FACTOR, KafkaError.INVALID_CONFIG, KafkaError.POLICY_VIOLATION)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Difference:
    """One deviation of a topic from the registry. `fatal`: the job must not run like that."""

    topic: str
    what: str
    expected: str
    found: str

    @property
    def fatal(self) -> bool:
        """Whether it changes results, and not only how long records are kept."""
        return self.what in FATAL

    def __str__(self) -> str:
        return f"{self.what} of {self.topic}: expected {self.expected}, found {self.found}"


def create(connection: Connection, job: str, *, replication: int | None = None, resume: bool = False) -> list[str]:
    """Create the topics of a job; the names of those that were created.

    replication: copies of each partition; None leaves it to the broker.
    resume: the job exists already, or came to be half: what is missing is created.

    Raises:
        JobTaken: its shard log, or another of its topics, exists and `resume` is off.
    """
    names = {topic.suffix: topic.name(job) for topic in TOPICS}
    admin = _admin(connection)
    with _said(connection, f"create the topics of job {job!r}"):
        present = set(names.values()) & _topic_names(admin)
        if present and not resume:
            raise JobTaken(
                f"Job {job!r} is already on this broker ({', '.join(sorted(present))}).",
                f"Go on with it by `antdt up {job} --resume`, or take another name.",
            )
        if names[SHARD_LOG.suffix] not in present and not _create(admin, [SHARD_LOG], job, replication) and not resume:
            raise JobTaken(f"Job {job!r} was created by somebody else at this very moment.", "Take another name.")
        rest = [topic for topic in TOPICS if topic is not SHARD_LOG and names[topic.suffix] not in present]
        made = _create(admin, rest, job, replication)
        _await_topics(admin, job, set(names.values()), present=True)
    return made + ([names[SHARD_LOG.suffix]] if names[SHARD_LOG.suffix] not in present else [])


def topic_ids(connection: Connection, job: str) -> dict[str, str]:
    """Suffix -> topic id: a topic that was deleted and created again has another one.

    Raises:
        UnknownJob: the broker has no shard log of this job.
    """
    return {suffix: str(found.topic_id) for suffix, found in _described(connection, job).items() if found}


def check(connection: Connection, job: str) -> list[Difference]:
    """What differs between the topics of a job and the registry: missing topics, partitions, settings.

    Raises:
        UnknownJob: the broker has no shard log of this job.
    """
    described = _described(connection, job)
    present = {suffix: found for suffix, found in described.items() if found}
    settings = _settings(connection, job, list(present))
    out = []
    for topic in TOPICS:
        name = topic.name(job)
        if topic.suffix not in present:
            out.append(Difference(name, "partitions", str(topic.partitions), MISSING))
            continue
        expected = {"partitions": str(topic.partitions), **topic.settings()}
        found = {"partitions": str(len(present[topic.suffix].partitions)), **settings[topic.suffix]}
        out += [Difference(name, k, v, found.get(k, "nothing")) for k, v in expected.items() if found.get(k) != v]
    return sorted(out, key=lambda d: (d.topic, d.what))


def require(connection: Connection, job: str) -> dict[str, str]:
    """The topic ids of a job whose topics are fit to run on.

    Raises:
        UnknownJob: the broker has no shard log of this job.
        Mismatch: a topic is missing, or has other partitions, clean-up or time stamps than the registry says.
    """
    for difference in check(connection, job):
        if difference.fatal:
            hint = f"`antdt topics check {job}` lists everything; `antdt up {job} --resume` creates what is missing."
            raise Mismatch(f"{difference.what} of {difference.topic}", difference.expected, difference.found, hint)
    return topic_ids(connection, job)


def list_jobs(connection: Connection) -> list[str]:
    """Names of the jobs that this broker knows."""
    admin = _admin(connection)
    with _said(connection, "list the jobs"):
        found = [NAME.fullmatch(name) for name in _topic_names(admin)]
    return sorted({match[1] for match in found if match and match[3] == SHARD_LOG.suffix})


def delete(connection: Connection, job: str) -> list[str]:
    """Delete every topic of a job, the shard log last, and wait until they are gone. The names of the deleted.

    Raises:
        UnknownJob: the broker has no topic of this job.
    """
    admin = _admin(connection)
    ours = {topic.name(job) for topic in TOPICS}
    with _said(connection, f"delete the topics of job {job!r}"):
        present = ours & _topic_names(admin)
        if not present:
            raise _unknown(job)
        log = SHARD_LOG.name(job)
        for names in (sorted(present - {log}), sorted(present & {log})):
            if names:
                _results(admin.delete_topics(names, **PATIENT), KafkaError.UNKNOWN_TOPIC_OR_PART)
        _await_topics(admin, job, present, present=False)
    return sorted(present)


# -- underneath


def _admin(connection: Connection) -> AdminClient:
    """A client, once a broker has answered: without one, every later wait would be as long as TIMEOUT_S."""
    connection.check_reachable()
    return AdminClient(connection.admin())


def _create(admin: AdminClient, topics: list[Topic], job: str, replication: int | None) -> list[str]:
    """Create these; the names of those that were not there yet."""
    if not topics:
        return []
    new = []
    for topic in topics:
        config = topic.settings()
        if replication is not None and replication >= DURABLE_REPLICATION:
            config.setdefault("min.insync.replicas", "2")  # an acknowledged entry survives the loss of a broker
        copies = -1 if replication is None else replication
        new.append(NewTopic(topic.name(job), topic.partitions, copies, config=config))
    return _results(admin.create_topics(new, **PATIENT), KafkaError.TOPIC_ALREADY_EXISTS)


def _results(futures: Mapping[str, Any], tolerated: int) -> list[str]:
    """Names whose future came true; one error code is fine, any other is raised."""
    done = []
    for name, future in futures.items():
        try:
            future.result(TIMEOUT_S)
            done.append(name)
        except KafkaException as error:
            if error.args[0].code() != tolerated:
                raise
    return done


def _described(connection: Connection, job: str) -> dict[str, Any]:
    """Suffix -> description of the topic, None where the broker has no such topic."""
    names = {topic.name(job): topic.suffix for topic in TOPICS}

    def ask(timeout_s: float) -> dict[str, Any]:
        out: dict[str, Any] = {}
        # The client must stay alive until its futures are done: they fail when it is collected.
        admin = _admin(connection)
        futures = admin.describe_topics(TopicCollection(list(names)), request_timeout=timeout_s)
        for name, future in futures.items():
            try:
                out[names[name]] = future.result(timeout_s)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise
                out[names[name]] = None
        return out

    with _said(connection, f"look up job {job!r}"):
        found = patiently(ask)
    if found[SHARD_LOG.suffix] is None:
        raise _unknown(job)
    return found


def patiently(ask: Callable[[float], T]) -> T:
    """What `ask`, which makes a client of its own and is given the seconds it may wait, has found within TIMEOUT_S.

    A client that was made while its broker came back got no answer for 20 s (seen once, with librdkafka 2.16, on a busy
    machine); others got theirs meanwhile.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return ask(ATTEMPT_S)
        except (TimeoutError, KafkaException) as error:
            late = isinstance(error, TimeoutError) or error.args[0].code() == KafkaError._TIMED_OUT
            if not late or time.monotonic() > deadline - ATTEMPT_S:
                raise


def _settings(connection: Connection, job: str, suffixes: list[str]) -> dict[str, dict[str, str]]:
    """Suffix -> every setting of the topic."""
    admin = _admin(connection)
    with _said(connection, f"read the settings of job {job!r}"):
        asked = {ConfigResource(ResourceType.TOPIC, BY_SUFFIX[suffix].name(job)): suffix for suffix in suffixes}
        futures = admin.describe_configs(list(asked), request_timeout=TIMEOUT_S)
        found = {asked[resource]: future.result(TIMEOUT_S) for resource, future in futures.items()}
    return {suffix: {key: str(entry.value) for key, entry in entries.items()} for suffix, entries in found.items()}


def _unknown(job: str) -> UnknownJob:
    return UnknownJob(
        f"Job {job!r} is not on this broker.", f"Start it with `antdt up {job}`, or see `antdt topics list`."
    )


def _topic_names(admin: AdminClient) -> set[str]:
    return set(admin.list_topics(timeout=TIMEOUT_S).topics)


def _await_topics(admin: AdminClient, job: str, names: set[str], *, present: bool) -> None:
    """Wait until the broker's metadata show all of these topics, or none of them."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        late = names - _topic_names(admin) if present else names & _topic_names(admin)
        if not late:
            return
        if time.monotonic() > deadline:
            what = "did not appear" if present else "did not disappear"
            raise Unavailable(f"Topics of job {job!r} {what} within {TIMEOUT_S:g} s: {', '.join(sorted(late))}.")
        admin.poll(POLL_S)


@contextmanager
def _said(connection: Connection, purpose: str) -> Iterator[None]:
    """Kafka's errors in this project's words."""
    try:
        yield
    except KafkaException as error:
        cause = error.args[0]
        if cause.code() in DENIED:
            raise UsageError(f"The broker does not let this client {purpose}: {cause.str()} Ask for it.") from error
        if cause.code() in REFUSED:
            raise UsageError(f"The broker refuses to {purpose}: {cause.str()}.") from error
        raise Unavailable(f"Could not {purpose} at {connection.bootstrap}: {cause.str()}.") from error
    except TimeoutError as error:
        raise Unavailable(f"Could not {purpose} at {connection.bootstrap} within {TIMEOUT_S:g} s.") from error
