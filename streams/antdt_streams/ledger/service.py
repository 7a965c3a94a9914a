"""The ledger beside a broker: takes office, runs cycles, keeps its cache. All decisions are `core`'s.

Order of a cycle, which recovery rests on
  1. take the requests that are there
  2. decide, encode one entry
  3. append it, await the acknowledgement
  4. read the log back up to it: another leader's entry on the way ends this process's office
  5. write the changed rows and the position to the cache, in one batch
  6. only now reply
Killed anywhere, the next leader reads the log and goes on at the position that the log carries.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from antdt_schemas import auth, codec, lineage, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, LogTruncated, Superseded, Unavailable
from antdt_schemas.offsets import watermarks
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from antdt_streams import topics_admin
from antdt_streams.ledger.cache import Cache, Identity
from antdt_streams.ledger.core.decide import check_spec
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.leader import Incoming, InOffice
from antdt_streams.ledger.core.state import FOLD_VERSION

log = logging.getLogger("antdt.ledger")


@dataclass(frozen=True)
class LedgerOptions:
    """Limits of the service; times in seconds unless the name says otherwise."""

    patience_ms: int = 5_000
    digest_every: int = 1_000
    requests_per_cycle_max: int = 1_000
    append_timeout_s: float = 30.0
    read_timeout_s: float = 30.0
    idle_s: float = 0.05
    position_every_s: float = 1.0
    secret: bytes | None = None


@dataclass(frozen=True, slots=True)
class LogRecord:
    """An entry as it was read."""

    offset: int
    payload: bytes
    leader_epoch: int


def owner() -> str:
    """user@host:pid of this process."""
    return f"{getpass.getuser()}@{socket.gethostname()}:{os.getpid()}"


class Log:
    """The shard log as one writer and reader: appends are acknowledged, reads come in order."""

    def __init__(self, connection: Connection, job: str, options: LedgerOptions) -> None:
        self.topic, self.options = topics.SHARD_LOG.name(job), options
        timeout_ms = int(options.append_timeout_s * 1000)
        self.producer = Producer(connection.producer(**{"linger.ms": 0, "delivery.timeout.ms": timeout_ms}))
        self.consumer = Consumer(connection.consumer(**{"fetch.wait.max.ms": 5, "isolation.level": "read_uncommitted"}))
        self.leader_epoch: int | None = None

    def end(self) -> int:
        """Offset of the next entry that will be written."""
        return watermarks(self.consumer, self.topic, 0, self.options.read_timeout_s)[1]

    def seek(self, offset: int) -> None:
        """Read on from this offset."""
        self.consumer.assign([TopicPartition(self.topic, 0, offset)])

    def poll(self, wait_s: float) -> list[LogRecord]:
        """The entries that are there; waits for the first one."""
        first = self.consumer.poll(wait_s)
        if first is None:
            return []
        good = []
        for message in (first, *self.consumer.consume(999, 0)):
            error = message.error()
            if error is None:
                record = LogRecord(message.offset() or 0, message.value() or b"", message.leader_epoch() or 0)
                self.leader_epoch = record.leader_epoch
                good.append(record)
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                raise LogTruncated(f"The range of {self.topic}", "the offset that was read before", error.str())
        return good

    def read_to(self, end: int, fold: Fold) -> Iterator[LogRecord]:
        """Entries from the fold's position up to `end`."""
        until = monotonic() + self.options.read_timeout_s
        while fold.position.next_offset < end:
            messages = self.poll(0.1)
            yield from messages
            if messages:
                until = monotonic() + self.options.read_timeout_s
            elif monotonic() > until:
                raise Unavailable(f"{self.topic} stopped at offset {fold.position.next_offset} of {end}.")

    def append(self, payload: bytes) -> int:
        """Write an entry; returns its offset once the broker has acknowledged it."""
        box: list[tuple[KafkaError | None, int | None]] = []
        self.producer.produce(self.topic, payload, partition=0, on_delivery=lambda e, m: box.append((e, m.offset())))
        until = monotonic() + self.options.append_timeout_s + 5
        while not box:
            self.producer.poll(0.05)
            if monotonic() > until:
                raise Unavailable("An entry was not acknowledged in time.")
        error, offset = box[0]
        if error is not None or offset is None:
            raise Unavailable(f"An entry could not be appended: {error}.")
        return offset


class Ledger:
    """One ledger process of one job."""

    def __init__(self, connection: Connection, job: str, folder: Path, options: LedgerOptions | None = None) -> None:
        self.connection, self.job, self.options = connection, job, options or LedgerOptions()
        self.stopping = threading.Event()
        identity = Identity(job, topics_admin.require(connection, job)[topics.SHARD_LOG.suffix])
        self.cache = Cache(folder, identity)
        self.log = Log(connection, job, self.options)
        self.requests = Consumer(connection.consumer(**{"fetch.wait.max.ms": 5, "group.id": f"antdt.{job}.ledger"}))
        self.replies, self.dead = topics.REPLIES.name(job), topics.DEAD_LETTERS.name(job)
        self._position_at = 0.0

    def run(self) -> None:
        """Lead until told to stop, or superseded.

        Raises:
            Superseded: another ledger took office.
            AntdtError: the log, the cache or the broker; nothing is lost, the message says what to do.
        """
        try:
            fold = self._catch_up()
            if fold.genesis is None:
                self._found(fold)
            if not self.stopping.is_set():
                self._lead(self._take_office(fold))
        finally:
            self.close()

    def close(self) -> None:
        """Release folder and connections."""
        self.log.producer.flush(2)
        self.requests.close()
        self.log.consumer.close()
        self.cache.close()

    # -- into office

    def _catch_up(self) -> Fold:
        fold = self.cache.load()
        end, position = self.log.end(), fold.position
        if end < position.next_offset:
            raise LogTruncated(
                "The end of the shard log",
                f"at least {position.next_offset}, which {self.cache.folder} reflects",
                end,
                "Acknowledged entries are gone: the broker lost its tail. Nothing was started; restore the topic.",
            )
        self.log.seek(max(position.next_offset - 1, 0))
        if position.next_offset:
            self._verify_last(fold)
        self._fold_to(fold, end)
        return fold

    def _verify_last(self, fold: Fold) -> None:
        """The entry that the cache ends with must still be the one in the log."""
        position, until = fold.position, monotonic() + self.options.read_timeout_s
        while not (messages := self.log.poll(0.1)):
            if monotonic() > until:
                raise Unavailable(f"Offset {position.next_offset - 1} of {self.log.topic} cannot be read.")
        first = messages[0]
        found = lineage.chain(position.before, first.offset, first.payload)
        if first.offset != position.next_offset - 1 or found != position.hash:
            raise LogTruncated(
                f"The hash of the entry at offset {position.next_offset - 1}",
                position.hash.hex(),
                found.hex(),
                f"The log was cut and written anew since {self.cache.folder} was saved.",
            )
        if self.cache.leader_epoch is not None and first.leader_epoch > self.cache.leader_epoch:
            log.warning("leader epoch of the partition: %s, was %s", first.leader_epoch, self.cache.leader_epoch)
        self.log.seek(position.next_offset)

    def _fold_to(self, fold: Fold, end: int) -> None:
        for message in self.log.read_to(end, fold):
            if message.offset < end:
                fold.read(message.offset, message.payload)
            if fold.position.next_offset % 10_000 == 0:
                self.cache.save(fold, self.log.leader_epoch)
        self.log.seek(fold.position.next_offset)
        self.cache.save(fold, self.log.leader_epoch)

    def _found(self, fold: Fold) -> None:
        """The log is empty: wait for the first worker that says what is trained on, and write Genesis."""
        log.info("job %s is new: waiting for its first worker", self.job)
        self.requests.assign([TopicPartition(topics.REQUESTS.name(self.job), 0, 0)])
        while not self.stopping.is_set():
            message = self.requests.poll(self.options.idle_s)
            spec = self._spec_of(message) if message is not None and message.error() is None else None
            if spec is not None:
                genesis = records.Genesis(
                    run_id=str(uuid.uuid4()),
                    job=self.job,
                    owner=owner(),
                    spec=spec,
                    fold_version=FOLD_VERSION,
                    auth=auth.NONE if self.options.secret is None else auth.HMAC,
                    digest_every=self.options.digest_every,
                    patience_ms=self.options.patience_ms,
                )
                end = self.log.append(codec.encode(records.Entry(genesis))) + 1
                self._fold_to(fold, end)
                return

    def _spec_of(self, message: Message) -> records.JobSpec | None:
        """The spec of a Join that may found the job. What cannot is answered; it is recorded once there is a log."""
        try:
            request = codec.decode(message.value(), records.Request)
        except AntdtError:
            return None
        if not isinstance(request.body, records.Join) or not auth.is_authentic(request, self.options.secret):
            return None
        wrong = check_spec(request.body.spec)
        if wrong is None:
            return request.body.spec
        who = request.worker, request.incarnation, request.number
        self._send(records.Reply(*who, records.Status.REFUSED, wrong, 0, 0, False, (), None))
        self.log.producer.poll(0)
        return None

    def _take_office(self, fold: Fold) -> InOffice:
        assert fold.genesis is not None
        leader_id = str(uuid.uuid4())
        entry = records.Entry(records.Leader(fold.genesis.run_id, leader_id, owner(), FOLD_VERSION))
        offset = self.log.append(codec.encode(entry))
        self._fold_to(fold, offset + 1)
        assert fold.office is not None
        if fold.office.leader_id != leader_id:
            raise Superseded(f"{fold.office.owner} took office at offset {fold.office.offset}.")
        assert fold.state is not None
        log.info(
            "in office at offset %d: %d steps committed, requests from %d",
            offset, fold.state.committed, fold.state.requests_next,
        )  # fmt: skip
        self.requests.assign([TopicPartition(topics.REQUESTS.name(self.job), 0, fold.state.requests_next)])
        return InOffice(fold, self.options.secret)

    # -- in office

    def _lead(self, office: InOffice) -> None:
        waiting: list[Incoming] = []
        while not self.stopping.is_set():
            if not waiting:
                waiting = self._take(office)
            if waiting:
                payload, taken = office.propose(waiting)
                self._run_cycle(office, payload)
                del waiting[:taken]
            else:
                self._watch(office)
            self._publish_position(office)

    def _take(self, office: InOffice) -> list[Incoming]:
        first = self.requests.poll(self.options.idle_s)
        if first is None:
            return []
        out, expected = [], office.state.requests_next
        for message in (first, *self.requests.consume(self.options.requests_per_cycle_max - 1, 0)):
            error = message.error()
            if error is None:
                # Requests have holes only where retention removed them: then they are gone, and that must be said.
                if message.offset() != expected:
                    raise LogTruncated("The next request", expected, message.offset(), "Requests were removed unread.")
                expected += 1
                out.append(Incoming(expected - 1, message.timestamp()[1], message.value()))
            elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                raise LogTruncated("The range of the requests", f"from {expected}", error.str())
        return out

    def _run_cycle(self, office: InOffice, payload: bytes) -> None:
        end = self.log.append(payload) + 1
        cycle = None
        for message in self.log.read_to(end, office.fold):
            cycle = office.read_back(message.offset, message.payload) or cycle
        assert cycle is not None, "an acknowledged entry was not found in the log"
        self.cache.save(office.fold, self.log.leader_epoch)
        for answer in cycle.answers:
            self._send(office.reply(answer))
        for incoming, reason in cycle.dead:
            self._bury(incoming, reason)
        self.log.producer.poll(0)

    def _watch(self, office: InOffice) -> None:
        """Nobody asks: see whether somebody else took office."""
        for message in self.log.poll(0):
            office.read_back(message.offset, message.payload)

    def _send(self, reply: records.Reply) -> None:
        partition = topics.replies_partition(reply.worker)
        self._produce(self.replies, codec.encode(reply), reply.worker, partition)

    def _bury(self, incoming: Incoming, reason: str) -> None:
        payload = incoming.payload or b""
        letter = records.DeadLetter(
            "ledger", topics.REQUESTS.name(self.job), 0, incoming.offset, reason, payload[: 64 << 10], len(payload)
        )
        self._produce(self.dead, codec.encode(letter), None, 0)

    def _produce(self, topic: str, value: bytes, key: str | None, partition: int) -> None:
        """A reply may be lost, it is asked for again; the queue is librdkafka's, and bounded."""
        for _ in range(100):
            try:
                self.log.producer.produce(topic, value, key, partition)
            except BufferError:
                self.log.producer.poll(0.1)
            else:
                return
        raise Unavailable(f"{topic} takes no records: the queue stayed full.")

    def _publish_position(self, office: InOffice) -> None:
        """A copy for tools that show lag; never read back."""
        if monotonic() - self._position_at < self.options.position_every_s:
            return
        self._position_at = monotonic()
        where = TopicPartition(topics.REQUESTS.name(self.job), 0, office.state.requests_next)
        try:
            self.requests.commit(offsets=[where], asynchronous=True)
        except KafkaException:
            log.debug("the position could not be published")
