"""The exact source: a member of the group of its service that reads what it is assigned, in dense batches, in order.

The group says who reads a partition; where reading begins is its owner's affair, who has that beside the state. Offsets
are committed as a copy for lag tools and never read back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.errors import ForeignState, LogTruncated, Superseded, Unavailable, UnknownJob, UsageError
from antdt_schemas.framing import unframed
from antdt_schemas.hearing import AskedBroker, Watch
from antdt_schemas.offsets import known_end, watermarks
from antdt_schemas.polling import Place, fetch, new_consumer, retire, sort_out
from antdt_schemas.waiting import Waiting
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from antdt_streams.kafka.copies import Copies
from antdt_streams.runtime.joining import Joining
from antdt_streams.runtime.service import Batch, Bounds, Owner, Raw

BATCH_RECORDS_MAX = 1000
POLL_S = 0.1
SLICE_S = 0.02
COMMIT_EVERY_S = 2.0
CHECK_EVERY_S = 0.5
ASK_TIMEOUT_S = 10.0
LEAVE_TIMEOUT_S = 1.0
RETIRE_S = 2.0
GONE_S = 1.5
AT_ONCE_S = 1.0
HEARTBEAT_MS = 500
SESSION_TIMEOUT_MS = 6_000
NAMED_SESSION_TIMEOUT_MS = 30_000
# How much longer than a session polls may be apart. librdkafka waits as long for its group to take it in: over a
# connection that went dead meanwhile, five minutes with the default, 22 and 46 s measured with this. Were it shorter
# than a session, a dead member with a name would outlive a rebalance that waits for it, and be waited for once more.
# Polls are late when outputs wait for a broker; then the member joins anew.
POLL_BEYOND_SESSION_MS = 15_000
WAITING_HINT = "It reads nothing until then. The broker must support consumer groups, and its coordinator be there."
LEFT_OUT = "the broker answers, and the group has not let it in: the client is replaced"
GONE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
FENCED = (KafkaError.FENCED_INSTANCE_ID, KafkaError._FENCED, KafkaError._FATAL)
# A client may fence itself: it joins again, the broker goes away with its answer, and what the client knows itself by
# is an older life of the name (seen once in some 200 chaos runs). So the first time, it joins anew. Of two processes
# with one name the older one is fenced again at once.
FENCED_AGAIN_S = 60.0
# A member that was too slow: what it has is taken from it by `on_lost`.
HARMLESS = (KafkaError._MAX_POLL_EXCEEDED,)

log = logging.getLogger("antdt.source")


@dataclass(frozen=True, slots=True)
class Membership:
    """How one instance belongs to its group.

    instance: a name that outlives the process. Whoever starts under it again goes on at once with what it had, and
        nobody else does before the session has run out, so a restart moves nothing. Without a name a dead instance is
        replaced as soon as its session, then a shorter one, has run out. A stop hands over at once either way.
    """

    group: str
    instance: str | None = None
    session_timeout_ms: int | None = None

    def settings(self) -> dict[str, Any]:
        session_ms = self.session_timeout_ms or (NAMED_SESSION_TIMEOUT_MS if self.instance else SESSION_TIMEOUT_MS)
        named = {"group.instance.id": self.instance} if self.instance else {}
        return {
            "group.id": self.group,
            "session.timeout.ms": session_ms,
            "max.poll.interval.ms": session_ms + POLL_BEYOND_SESSION_MS,
            # Also how soon a standby learns that there is something to take over.
            "heartbeat.interval.ms": min(HEARTBEAT_MS, session_ms // 4),
            # A standby that joins takes nothing away from whoever works.
            "partition.assignment.strategy": "cooperative-sticky",
            **named,
        }


class Source:
    """One consumer at a time; `read` is its whole life, in one thread.

    One that fell deaf, or is not let in, is replaced: it leaves, and another one joins in its place.
    """

    def __init__(
        self,
        connection: Connection,
        topic: str,
        topic_id: str,
        membership: Membership,
        owner: Owner,
        halted: threading.Event,
    ) -> None:
        self.topic, self.topic_id, self.membership, self.owner, self.halted = topic, topic_id, membership, owner, halted
        self._connection, self._admin = connection, AdminClient(connection.admin())
        self._watch = Watch(AskedBroker(connection), ids={topic: topic_id})
        self._consumer = self._new_consumer()
        self._assignments, self._assigned = 0, dict[int, int]()
        self._received = dict[int, int]()  # of each partition: the offset behind the last record that came
        self._failure: Exception | None = None
        self._fenced_at_s, self._is_fenced = -FENCED_AGAIN_S, False
        self._doubtful = False
        self._away = False
        self._copied, self._copies = dict[int, int](), Copies(membership.group)
        self.on_joined: Callable[[str], None] = lambda how: None  # told whenever the group has said what is ours
        self._waiting, self._in_group, self._group_error = Waiting(), False, ""
        self._joining = Joining(AskedBroker(connection), topic)
        self._copied_at_s = self._checked_at_s = 0.0
        self.turned_s = time.monotonic()  # when it last came round

    def read(self, put: Callable[[Batch], bool]) -> None:
        """Join the group and hand over batches until halted, or until `put` says False; then leave the group.

        Raises:
            LogTruncated: what is next was removed, or never was there.
            ForeignState: the topic is another one of the same name.
            UnknownJob: the topic is gone.
            Superseded: another process goes by the name of this instance.
            Unavailable: the broker refuses to serve it.
        """
        self._join()
        try:
            while not self.halted.is_set():
                self.turned_s = time.monotonic()
                batches = list(self._batches())
                if self._is_fenced or (not self._in_group and self._is_left_out()):
                    self._replace()
                if (batches or self._doubtful) and not self._is_same_topic():
                    break
                if not all(put(batch) for batch in batches):
                    break
                self._copy_offsets(idle=not batches)
                if self._watch.look(time.monotonic()):
                    self._replace()
        finally:
            self._leave()

    def halt(self) -> None:
        self.halted.set()

    def known_ends(self) -> dict[int, int]:
        """The end of each partition that is read, as the broker told with what was fetched last. Any thread may ask."""
        ends = {p: known_end(self._consumer, self.topic, p) for p in list(self._assigned)}
        return {partition: end for partition, end in ends.items() if end is not None}

    # -- the group

    def _new_consumer(self) -> Consumer:
        """A client that tells nobody anything any more once another one has taken its place."""
        settings = self._connection.consumer(**self.membership.settings(), enable_partition_eof=True)
        made: list[Consumer] = []

        def of_mine(what: Callable[[], None]) -> None:
            if not made or made[0] is self._consumer:
                what()

        settings["error_cb"] = lambda error: of_mine(lambda: self._on_error(error))
        settings["on_commit"] = lambda error, at: of_mine(lambda: self._on_commit(error, at))
        made.append(new_consumer(settings))
        return made[0]

    def _join(self) -> None:
        told = {"on_assign": self._on_assign, "on_revoke": self._on_revoke, "on_lost": self._on_lost}
        self._consumer.subscribe([self.topic], **told)

    def _replace(self) -> None:
        """A named member that only closes keeps what it has, and the next one goes on with it."""
        deaf, self._is_fenced = self._consumer, False
        self._end(list(self._assigned), lost=False)
        self._consumer = self._new_consumer()
        retire(deaf, RETIRE_S)
        self._join()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """An exception in here would reach nobody: `_poll` raises it."""
        if consumer is not self._consumer:
            return
        try:
            for at in partitions:
                self._assignments += 1
                at.offset = self.owner.begin(at.partition, self._assignments, self._bounds(at.partition))
                self._assigned[at.partition] = self._assignments
                self._watch.begin(Place(self.topic, at.partition), at.offset)
                self._received[at.partition] = at.offset
            consumer.incremental_assign(partitions)
        except Exception as error:  # noqa: BLE001  raised by _poll
            self._failure = error
        if self._failure is None:
            self._joined()

    def _joined(self) -> None:
        self._in_group, self._group_error = True, ""
        self._joining.over()
        waited_s = self._waiting.over(time.monotonic())
        if waited_s is not None:
            log.warning("event=joined group=%s waited_s=%.0f", self.membership.group, waited_s)
        if self._assigned:
            self.on_joined(f"reads {self.topic}: partition {', '.join(map(str, sorted(self._assigned)))}")
        else:
            log.info("event=standing-by topic=%s", self.topic)
            self.on_joined(f"stands by for {self.topic}")

    def _is_left_out(self) -> bool:
        """Without a word of the group there is nothing to do, and nobody would know why."""
        now_s = time.monotonic()
        is_due = self._waiting.is_due(now_s)
        since_s = now_s - (self._waiting.since_s or now_s)
        if is_due:
            reason = self._group_error or "its coordinator has not let it in"
            log.warning(
                "event=waiting for=group group=%s since_s=%.0f reason=%r hint=%r",
                self.membership.group, since_s, reason, WAITING_HINT,
            )  # fmt: skip
        # Most are let in at once: until then no client is made to ask whether the broker is there.
        hopeless = since_s >= AT_ONCE_S and self._joining.is_hopeless(now_s)
        if hopeless:
            log.warning("event=left-out group=%s reason=%r", self.membership.group, LEFT_OUT)
        return hopeless

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer is self._consumer:
            self._end([at.partition for at in partitions], lost=False)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if consumer is self._consumer:
            self._in_group = False
            self._end([at.partition for at in partitions], lost=True)

    def _end(self, partitions: list[int], lost: bool) -> None:
        for partition in partitions:
            self._assigned.pop(partition, None)
            self._watch.end(Place(self.topic, partition))
        try:
            if not lost:
                self._copy_offsets(idle=True)
            self.owner.end(partitions, lost=lost)
        except Exception as error:  # noqa: BLE001  raised by _poll
            self._failure = error
        for partition in partitions:
            self._copied.pop(partition, None)

    def _leave(self) -> None:
        """Leave the group, so that a standby begins at once, and end.

        A named member that only closes keeps what it has until its session is over. One that unsubscribes first leaves:
        once it has let go of everything it sends that, and has no member id any more (seen with librdkafka 2.16).
        """
        try:
            self._consumer.unsubscribe()
            until_s = time.monotonic() + LEAVE_TIMEOUT_S
            while self._consumer.memberid() and time.monotonic() < until_s:
                self._consumer.poll(SLICE_S)
        except KafkaException as error:
            log.info("event=not-left reason=%r", error.args[0].str())
        self._consumer.close()  # lets go of what is still assigned, too

    def _bounds(self, partition: int) -> Bounds:
        return Bounds(*watermarks(self._consumer, self.topic, partition, ASK_TIMEOUT_S))

    # -- records

    def _poll(self) -> Iterator[Message]:
        """What is there; waits a little for the first."""
        messages = fetch(self._consumer, POLL_S, BATCH_RECORDS_MAX, lambda: dict(self._assigned), self._dropped)
        if self._failure is not None:
            raise self._failure
        good, failure = sort_out(self._watch, messages, self._failure_of)
        if failure is not None:
            raise failure
        yield from (message for message in good if message.partition() in self._assigned)

    def _dropped(self, first: Message, before: Mapping[int, int]) -> None:
        """A record that nobody will process: one of a partition that does not begin anew is missing from here on."""
        partition = first.partition() or 0
        if not first.error() and before.get(partition) == self._assigned.get(partition):
            self._received[partition] = (first.offset() or 0) + 1

    def _batches(self) -> Iterator[Batch]:
        open_runs: dict[int, tuple[Batch, list[Raw]]] = {}
        for message in self._poll():
            partition, offset = message.partition() or 0, message.offset() or 0
            received = self._received.get(partition, offset)
            self._received[partition] = offset + 1
            run = open_runs.get(partition)
            if run is None or offset != received:
                if run is not None:
                    yield run[0]
                raws, since = list[Raw](), min(received, offset)
                run = open_runs[partition] = Batch(partition, offset, raws, self._assigned[partition], since), raws
            run[1].append(Raw(unframed(self.topic, message.value()), message.timestamp()[1]))
        for batch, _ in open_runs.values():
            yield batch
            self._away = False

    def _is_same_topic(self) -> bool:
        """Whether what was just fetched is of the topic that the state is of; False only when halted meanwhile.

        librdkafka goes on at the same offset of a topic that was deleted and created again, if that has grown so far
        (seen with a consumer that was suspended). What was fetched before a look at the id is sure; under constant load
        there is one every CHECK_EVERY_S.
        """
        gone_at_s: float | None = None
        while self._doubtful or time.monotonic() - self._checked_at_s >= CHECK_EVERY_S:
            asked_at_s = time.monotonic()
            try:
                asked = self._admin.describe_topics(TopicCollection([self.topic]), request_timeout=ASK_TIMEOUT_S)
                found = str(asked[self.topic].result(ASK_TIMEOUT_S).topic_id)
            except (KafkaException, TimeoutError) as error:
                if isinstance(error, KafkaException) and error.args[0].code() in GONE:
                    gone_at_s = gone_at_s or asked_at_s
                    if asked_at_s - gone_at_s >= GONE_S:  # a broker that starts may not know it yet
                        raise UnknownJob(f"The topic {self.topic} is gone.", "Somebody has deleted the job.") from error
                if self.halted.wait(POLL_S):
                    return False
                continue
            if found != self.topic_id:
                raise ForeignState(f"The topic_id of {self.topic}", self.topic_id, found, "It was created again.")
            self._checked_at_s, self._doubtful = asked_at_s, False
        return True

    # -- errors

    def _failure_of(self, place: Place, error: KafkaError) -> Exception | None:
        if error.code() in HARMLESS:
            return None
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            return self._out_of_range(place.partition, error)
        if error.code() in GONE:
            self._doubtful = True  # it is asked about
            return None
        if error.code() in FENCED:
            return self._fenced(error)
        if error.code() == KafkaError.INVALID_SESSION_TIMEOUT:
            return UsageError("The broker refuses this session timeout: its group.min.session.timeout.ms is larger.")
        if error.retriable():
            self._group_error = error.str()
            log.warning("event=broker-error topic=%s reason=%r", self.topic, error.str())
            return None
        return Unavailable(f"{self.topic} cannot be read: {error.str()}.")

    def _fenced(self, error: KafkaError) -> Superseded | None:
        """None where it is to join anew; told more than once of the same, it is so once."""
        who, now_s = f"instance {self.membership.instance} of {self.membership.group}", time.monotonic()
        if self._is_fenced:
            return None
        if now_s - self._fenced_at_s < FENCED_AGAIN_S:
            return Superseded(f"Another process runs as {who}.", "Give each process a name of its own.")
        log.warning("event=fenced who=%r reason=%r: joins anew", who, error.str())
        self._fenced_at_s, self._is_fenced, self._in_group = now_s, True, False
        return None

    def _out_of_range(self, partition: int, error: KafkaError) -> LogTruncated:
        at = self._consumer.position([TopicPartition(self.topic, partition)])[0].offset
        bounds = self._bounds(partition)
        hint = f"{error.str()}. The position last read is {at}."
        return LogTruncated(f"What {self.topic} still holds", "the next record", f"{bounds.low} to {bounds.high}", hint)

    def _on_error(self, error: KafkaError) -> None:
        """librdkafka reconnects by itself; somebody should know that it has to."""
        if error.fatal():
            self._failure = self._fenced(error) or self._failure
            return
        self._group_error = error.str()
        if error.code() == KafkaError._ALL_BROKERS_DOWN and not self._away:
            self._away = True
            log.warning("event=broker-away topic=%s reason=%r", self.topic, error.str())

    # -- the copy of the offsets

    def _copy_offsets(self, idle: bool) -> None:
        """Now and then under load, at once when there is nothing to do."""
        if not idle and time.monotonic() - self._copied_at_s < COMMIT_EVERY_S:
            return
        changed = {p: offset for p, offset in self.owner.positions().items() if offset != self._copied.get(p, 0)}
        if not changed:
            return
        self._copied_at_s = time.monotonic()
        try:
            offsets = [TopicPartition(self.topic, p, offset) for p, offset in sorted(changed.items())]
            self._consumer.commit(offsets=offsets, asynchronous=True)
            self._copied.update(changed)
        except KafkaException as error:
            self._copies.came_to(error.args[0])  # lag tools see it later

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        self._copies.came_to(error)
        if error is not None:
            self._copied.clear()  # the group was about to change: again, with what is current then
