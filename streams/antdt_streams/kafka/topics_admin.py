"""Creates, compares, lists and deletes the topics of a job; the names and settings come from the registry of topics.

The shard log is the arbiter: who creates it owns the name of the job, and it is the last topic to be deleted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import Any, TypeVar

from antdt_schemas.connection import Connection
from antdt_schemas.errors import JobTaken, Mismatch, Unavailable, UsageError, unknown_job
from antdt_schemas.topics import (
    BY_SUFFIX,
    DURABLE_COPIES,
    JOB_NAME,
    MESSAGE_BYTES,
    SHARD_LOG,
    TOPICS,
    Topic,
    check_job,
    record_bytes,
)
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from antdt_streams.kafka.topic_rules import NOT_SETTINGS, Difference, absent, compare, few_copies

TIMEOUT_S = 20.0
ATTEMPT_S = 5.0
PATIENT = {"operation_timeout": TIMEOUT_S, "request_timeout": TIMEOUT_S}
POLL_S = 0.05
NAME = re.compile(rf"antdt\.({JOB_NAME.pattern})\.([a-z-]+)")
E = KafkaError
DENIED = (E.TOPIC_AUTHORIZATION_FAILED, E.CLUSTER_AUTHORIZATION_FAILED, E.GROUP_AUTHORIZATION_FAILED)
REFUSED = (E.INVALID_REPLICATION_FACTOR, E.INVALID_CONFIG, E.POLICY_VIOLATION, E.SECURITY_DISABLED)
# A cluster of somebody else's may not let its users set these. Whether they are right is looked at in any case.
OFTEN_RESERVED = ("max.message.bytes", "min.insync.replicas", "unclean.leader.election.enable")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Examined:
    """The topics of a job as they are: ids and record sizes by suffix, and what differs from the registry."""

    ids: dict[str, str] = field(default_factory=dict)
    record_bytes: dict[str, int] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    def record_bytes_max(self, *topics: Topic) -> int:
        return min(self.record_bytes[topic.suffix] for topic in topics)


def create(connection: Connection, job: str, *, replication: int | None = None, resume: bool = False) -> list[str]:
    """Create the topics of a job; the names of those that were created.

    replication: copies of each partition; None makes three where there are three brokers, or leaves it to them.
    resume: the job exists already, or came to be half: what is missing is created.

    Raises:
        JobTaken: its shard log, or another of its topics, exists and `resume` is off.
    """
    names = {topic.suffix: topic.name(job) for topic in TOPICS}
    admin = _admin(connection)
    with _said(connection, f"create the topics of job {job!r}", f"Create on topics {_prefix(job)}"):
        there = admin.list_topics(timeout=TIMEOUT_S)
        present = set(names.values()) & set(there.topics)
        if replication is None and len(there.brokers) >= DURABLE_COPIES:
            replication = DURABLE_COPIES
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


def examine(connection: Connection, job: str) -> Examined:
    """Look at the topics of a job. Raises as `topic_ids` does."""
    out = Examined()
    described = _described(connection, job)
    settings = _settings(connection, job, [suffix for suffix, found in described.items() if found])
    for topic in TOPICS:
        found = described[topic.suffix]
        if not found:
            out.differences.append(absent(topic, job))
            continue
        known, copies = settings[topic.suffix], min(len(part.replicas) for part in found.partitions)
        out.ids[topic.suffix], out.copies[topic.suffix] = str(found.topic_id), copies
        out.record_bytes[topic.suffix] = record_bytes(int(known.get("max.message.bytes") or MESSAGE_BYTES))
        out.differences.extend(compare(topic, job, len(found.partitions), copies, known))
    out.differences.sort(key=attrgetter("topic", "what"))
    return out


def check(connection: Connection, job: str) -> list[Difference]:
    """What differs between the topics of a job and the registry. Raises as `topic_ids` does."""
    examined = examine(connection, job)
    brokers = len(_admin(connection).list_topics(timeout=TIMEOUT_S).brokers)
    few = (few_copies(BY_SUFFIX[suffix], job, copies, brokers) for suffix, copies in examined.copies.items())
    return sorted(chain(examined.differences, *few), key=attrgetter("topic", "what"))


def fit(connection: Connection, job: str) -> Examined:
    """The topics of a job, which are fit to run on.

    Raises:
        UnknownJob: the broker has no shard log of this job.
        Mismatch: a topic is missing, or has what would make the log untrue or unreadable.
    """
    examined = examine(connection, job)
    refuse_fatal(examined.differences, job)
    return examined


def refuse_fatal(differences: list[Difference], job: str) -> None:
    """Raises Mismatch, with what to do about it, if one of these is fatal."""
    for found in differences:
        if found.fatal:
            why = f"So {found.why}. " if found.why else ""
            raise Mismatch(f"{found.what} of {found.topic}", found.expected, found.found, why + found.mend(job))


def repair(connection: Connection, job: str) -> list[Difference]:
    """Set every setting that differs to what it must be, and wait until it is; what was set. Topics, partitions and
    copies stay as they are.
    """
    wrong = _wrong_settings(connection, job)
    changes: dict[str, list[ConfigEntry]] = {}
    for d in wrong:
        entry = ConfigEntry(d.what, d.expected, incremental_operation=AlterConfigOpType.SET)
        changes.setdefault(d.topic, []).append(entry)
    admin = _admin(connection)
    with _said(connection, f"change the topics of job {job!r}", f"AlterConfigs on topics {_prefix(job)}"):
        asked = [ConfigResource(ResourceType.TOPIC, name, incremental_configs=some) for name, some in changes.items()]
        if asked:
            for future in admin.incremental_alter_configs(asked, request_timeout=TIMEOUT_S).values():
                future.result(TIMEOUT_S)
    deadline = time.monotonic() + TIMEOUT_S
    while left := _wrong_settings(connection, job):  # the controller has a change a moment before a broker shows it
        if time.monotonic() > deadline:
            raise Unavailable(f"{left[0]}: it was set, and did not change within {TIMEOUT_S:g} s.")
        admin.poll(POLL_S)
    return wrong


def _wrong_settings(connection: Connection, job: str) -> list[Difference]:
    return [d for d in examine(connection, job).differences if d.what not in NOT_SETTINGS]


def create_acls(connection: Connection, job: str, acls: list[AclBinding]) -> None:
    """Grant these rights, over one connection.

    Raises:
        UsageError: this client may not, or the broker has no authorizer.
    """
    admin = _admin(connection)
    with _said(connection, f"grant rights on the topics of job {job!r}", "Alter on the cluster"):
        for future in admin.create_acls(acls, request_timeout=TIMEOUT_S).values():
            future.result(TIMEOUT_S)


def list_jobs(connection: Connection) -> list[str]:
    admin = _admin(connection)
    with _said(connection, "list the jobs", "Describe on topics antdt.*"):
        found = [NAME.fullmatch(name) for name in _topic_names(admin)]
    return sorted({match[1] for match in found if match and match[3] == SHARD_LOG.suffix})


def delete(connection: Connection, job: str) -> list[str]:
    """Delete every topic of a job, the shard log last, and wait until they are gone. The names of the deleted.

    Raises:
        UnknownJob: the broker has no topic of this job.
    """
    admin = _admin(connection)
    ours = {topic.name(job) for topic in TOPICS}
    with _said(connection, f"delete the topics of job {job!r}", f"Delete on topics {_prefix(job)}"):
        present = ours & _topic_names(admin)
        if not present:
            _described(connection, job)  # what this client may not see is not listed, and named only if asked for
            raise unknown_job(job)
        log = SHARD_LOG.name(job)
        for names in (sorted(present - {log}), sorted(present & {log})):
            if names:
                _results(admin.delete_topics(names, **PATIENT), KafkaError.UNKNOWN_TOPIC_OR_PART)
        _await_topics(admin, job, present, present=False)
    return sorted(present)


def groups(connection: Connection, job: str) -> list[str]:
    """Consumer groups of a job that the broker knows."""
    admin, prefix = _admin(connection), f"antdt.{check_job(job)}."
    with _said(connection, f"list the consumer groups of job {job!r}", f"Describe on groups {prefix}*"):
        listed = admin.list_consumer_groups(request_timeout=TIMEOUT_S).result(TIMEOUT_S).valid
    return sorted(one.group_id for one in listed if one.group_id.startswith(prefix))


def delete_groups(connection: Connection, job: str, names: list[str]) -> None:
    """Delete these consumer groups; one that is gone already is no fault."""
    if not names:
        return
    admin = _admin(connection)
    with _said(connection, f"delete the consumer groups of job {job!r}", f"Delete on groups antdt.{check_job(job)}.*"):
        _results(admin.delete_consumer_groups(names, request_timeout=TIMEOUT_S), KafkaError.GROUP_ID_NOT_FOUND)


# -- underneath


def _admin(connection: Connection) -> AdminClient:
    """A client, once a broker has answered: without one, every later wait would be as long as TIMEOUT_S."""
    connection.check_reachable()
    return AdminClient(connection.admin())


def _create(admin: AdminClient, topics: list[Topic], job: str, replication: int | None) -> list[str]:
    """Create these; the names of those that were not there yet."""
    if not topics:
        return []

    def ask(reserved: tuple[str, ...]) -> list[str]:
        new = []
        for topic in topics:
            config = {key: value for key, value in topic.settings(replication or 1).items() if key not in reserved}
            copies = -1 if replication is None else replication
            new.append(NewTopic(topic.name(job), topic.partitions, copies, config=config))
        return _results(admin.create_topics(new, **PATIENT), KafkaError.TOPIC_ALREADY_EXISTS)

    try:
        return ask(())
    except KafkaException as error:
        if error.args[0].code() not in (KafkaError.INVALID_CONFIG, KafkaError.POLICY_VIOLATION):
            raise
        return ask(OFTEN_RESERVED)


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

    with _said(connection, f"look up job {job!r}", f"Describe on topics {_prefix(job)}"):
        found = patiently(ask)
    if found[SHARD_LOG.suffix] is None:
        raise unknown_job(job)
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


def _settings(connection: Connection, job: str, suffixes: list[str]) -> dict[str, dict[str, str | None]]:
    asked = {ConfigResource(ResourceType.TOPIC, BY_SUFFIX[suffix].name(job)): suffix for suffix in suffixes}

    def ask(timeout_s: float) -> dict[str, dict[str, str | None]]:
        admin = _admin(connection)
        futures = admin.describe_configs(list(asked), request_timeout=timeout_s)
        found = {asked[resource]: future.result(timeout_s) for resource, future in futures.items()}
        return {suffix: {key: entry.value for key, entry in entries.items()} for suffix, entries in found.items()}

    with _said(connection, f"read the settings of job {job!r}", f"DescribeConfigs on topics {_prefix(job)}"):
        return patiently(ask)


def _prefix(job: str) -> str:
    return f"antdt.{check_job(job)}.*"


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
def _said(connection: Connection, purpose: str, right: str) -> Iterator[None]:
    """Kafka's errors in this project's words; `right` is what an authorizer wants for it."""
    try:
        yield
    except KafkaException as error:
        cause = error.args[0]
        if cause.code() in DENIED:
            raise UsageError(
                f"The broker does not let this client {purpose}: {cause.str().removeprefix('Broker: ')}. Somebody who "
                f"may must grant it {right}; `antdt topics grant JOB` grants all that services and workers need."
            ) from error
        if cause.code() in REFUSED:
            raise UsageError(f"The broker refuses to {purpose}: {cause.str().rstrip('.')}.") from error
        raise Unavailable(f"Could not {purpose} at {connection.bootstrap}: {cause.str()}.") from error
    except TimeoutError as error:
        raise Unavailable(f"Could not {purpose} at {connection.bootstrap} within {TIMEOUT_S:g} s.") from error
