"""The ledger beside a broker: takes office, runs cycles, keeps its cache. All decisions are `core`'s.

Order of a cycle, which recovery rests on
  1. take the requests that are there
  2. decide, encode one entry
  3. append it, await the acknowledgement
  4. read the log back up to it: another leader's entry on the way ends this process's office
  5. write the changed rows and the position to the cache, in one batch
  6. only now reply
Killed anywhere, the next leader reads the log and goes on at the position that the log carries. Whoever is superseded
becomes a standby: it follows the log, and takes office when that has been silent for too long.
"""

from __future__ import annotations

import logging
import threading
import uuid
from pathlib import Path
from time import monotonic

from antdt_schemas import auth, codec, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, ForeignState, LogTruncated, Superseded, Unavailable
from antdt_schemas.offsets import watermarks
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from antdt_streams import topics_admin
from antdt_streams.ledger.cache import Cache
from antdt_streams.ledger.core import evidence
from antdt_streams.ledger.core.decide import check_spec
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.leader import Cycle, Incoming, InOffice, PoisonRequest
from antdt_streams.ledger.core.state import FOLD_VERSION
from antdt_streams.ledger.log import Log
from antdt_streams.ledger.options import LedgerOptions, owner
from antdt_streams.ledger.snapshots import LedgerSnapshots
from antdt_streams.ledger.start import Start
from antdt_streams.ledger.stored import Identity

log = logging.getLogger("antdt.ledger")


class Ledger:
    """One ledger process of one job."""

    def __init__(self, connection: Connection, job: str, folder: Path, options: LedgerOptions | None = None) -> None:
        self.connection, self.job, self.options = connection, job, options or LedgerOptions()
        self.stopping = threading.Event()
        self.identity = Identity(job, topics_admin.require(connection, job)[topics.SHARD_LOG.suffix])
        self.cache = Cache(folder, self.identity)
        self.log = Log(connection, job, self.options)
        self.snapshots = LedgerSnapshots(
            connection, self.identity, self.options.snapshot_every, self.options.snapshot_events
        )
        self.start = Start(self.log, self.cache, self.snapshots, self.options)
        self.requests = Consumer(connection.consumer(**{"group.id": f"antdt.{job}.ledger"}))
        self.replies, self.dead = topics.REPLIES.name(job), topics.DEAD_LETTERS.name(job)
        self.looked = 0  # how often, as a standby, the log seemed silent
        self._position_at = self._identity_at = self._appended_at = 0.0

    def run(self) -> None:
        """Lead, or stand by, until told to stop.

        Raises:
            AntdtError: the log, the cache or the broker; nothing is lost, the message says what to do.
        """
        stands_by = self.options.standby
        try:
            while not self.stopping.is_set():
                fold = self.start.catch_up()
                if stands_by and not self._await_silence(fold):
                    return
                try:
                    self._serve(fold)
                except Superseded as error:
                    log.warning("%s Standing by.", error)
                    stands_by = True
        finally:
            self.close()

    def recover(self, reason: str) -> records.Regressed:
        """Accept that acknowledged entries are gone, and record it. `run` goes on from there.

        Raises:
            UsageError: nothing is gone, or it was accepted before.
        """
        try:
            fold, lost = self.start.accept_loss(reason)
            if fold.genesis is None:
                assert lost.genesis is not None
                self._begin(fold, lost.genesis.spec)
            office = self._take_office(fold)
            payload, _ = office.propose([], (lost.fact,))
            self._run_cycle(office, payload)
            return lost.fact
        finally:
            self.close()

    def close(self) -> None:
        """Release folder and connections."""
        self.snapshots.close()
        self.log.close()
        self.requests.close()
        self.cache.close()

    # -- into office

    def _await_silence(self, fold: Fold) -> bool:
        """Follow the log until nothing was written for `standby_patience_s`. False: told to stop."""
        log.info("standing by at offset %d", fold.position.next_offset)
        quiet_at = monotonic()
        while not self.stopping.is_set():
            entries = self.log.poll(self.options.idle_s)
            for entry in entries:
                fold.read(entry.offset, entry.payload)
            if entries:
                self.cache.save(fold, self.log.leader_epoch)
                quiet_at = monotonic()
            elif monotonic() - quiet_at > self.options.standby_patience_s:
                if self._is_silent(fold):
                    log.warning("nothing was written for %.1f s: taking office", self.options.standby_patience_s)
                    return True
                quiet_at = monotonic()
        return False

    def _is_silent(self, fold: Fold) -> bool:
        """A broker that is away silences everybody; only an end that it tells itself counts."""
        self.looked += 1
        try:
            if self.log.end(self.options.standby_patience_s) > fold.position.next_offset:
                return False
            if fold.genesis is not None:
                return True
            # A leader of a new job has nothing to write until the first worker asks.
            return watermarks(self.requests, topics.REQUESTS.name(self.job), 0, self.options.standby_patience_s)[1] > 0
        except Unavailable:
            return False

    def _serve(self, fold: Fold) -> None:
        if fold.genesis is None:
            self._found(fold)
        if not self.stopping.is_set():
            office = self._take_office(fold)
            self._lead(office)
            self.snapshots.write(office.fold, self.log.leader_epoch)

    def _found(self, fold: Fold) -> None:
        """The log is empty: wait for the first worker that says what is trained on, and write Genesis."""
        log.info("job %s is new: waiting for its first worker", self.job)
        self.requests.assign([TopicPartition(topics.REQUESTS.name(self.job), 0, 0)])
        while not self.stopping.is_set():
            message = self.requests.poll(self.options.idle_s)
            spec = self._spec_of(message) if message is not None and message.error() is None else None
            if spec is not None:
                self._begin(fold, spec)
                return

    def _begin(self, fold: Fold, spec: records.JobSpec) -> None:
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
        end = self.log.append(codec.encode(records.Entry(genesis)), fold.position.next_offset) + 1
        self.start.fold_to(fold, end)

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
        offset = self.log.append(codec.encode(entry), fold.position.next_offset)
        self.start.fold_to(fold, offset + 1)
        assert fold.office is not None
        if fold.office.leader_id != leader_id:
            raise Superseded(f"{fold.office.owner} took office at offset {fold.office.offset}.")
        assert fold.state is not None
        log.info(
            "in office at offset %d: %d steps committed, requests from %d",
            offset, fold.state.committed, fold.state.requests_next,
        )  # fmt: skip
        self.requests.assign([TopicPartition(topics.REQUESTS.name(self.job), 0, fold.state.requests_next)])
        self._appended_at = monotonic()
        return InOffice(fold, self.options.secret, stuck_ms=self.options.stuck_ms)

    # -- in office

    def _lead(self, office: InOffice) -> None:
        waiting: list[Incoming] = []
        while not self.stopping.is_set():
            if not waiting:
                waiting = self._take(office)
            if waiting or monotonic() - self._appended_at >= self.options.heartbeat_s:
                try:
                    payload, taken = office.propose(waiting)
                except PoisonRequest as poison:
                    office = self._without(office, poison)
                    continue
                self._run_cycle(office, payload)
                del waiting[:taken]
            else:
                self._watch(office)
            self._publish_position(office)
            self._check_identity()
            self.snapshots.offer(office.fold, self.log.leader_epoch)

    def _without(self, office: InOffice, poison: PoisonRequest) -> InOffice:
        """The office as of the last entry that was read back, with this request to be refused: no crash loop."""
        log.error("event=poison request_offset=%d reason=%r", poison.offset, str(poison), exc_info=poison)
        fold = self.cache.load()
        self.start.fold_to(fold, office.fold.position.next_offset)
        assert poison.offset not in office.poisoned, "refusing a request must not fail"
        poisoned = {**office.poisoned, poison.offset: str(poison)}
        again = InOffice(fold, self.options.secret, poisoned, self.options.stuck_ms)
        again.patience, again.holdups = office.patience, office.holdups
        return again

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
        end = self.log.append(payload, office.fold.position.next_offset) + 1
        self._appended_at = monotonic()
        cycle: Cycle | None = None
        for message in self.log.read_to(end, office.fold):
            cycle = office.read_back(message.offset, message.payload) or cycle
        assert cycle is not None, "an acknowledged entry was not found in the log"
        self.cache.save(office.fold, self.log.leader_epoch)
        for answer in cycle.answers:
            self._send(office.reply(answer))
        for line in office.holdups.news():
            log.warning("%s", line)
        for event in cycle.body.events:
            if isinstance(event, records.Blamed):
                log.warning("%s", evidence.sentence(event))
        for incoming, reason in cycle.dead:
            self._bury(incoming, reason)
        self.log.producer.poll(0)

    def _check_identity(self) -> None:
        """A topic that was created again, or got more partitions, under a running leader is noticed, busy or not."""
        now = monotonic()
        if now - self._identity_at < self.options.identity_every_s:
            return
        self._identity_at = now
        try:
            found = topics_admin.require(self.connection, self.job)[topics.SHARD_LOG.suffix]
        except Unavailable:
            return
        if found != self.identity.topic_id:
            raise ForeignState(f"The topic id of {self.log.topic}", self.identity.topic_id, found, "It was replaced.")

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
