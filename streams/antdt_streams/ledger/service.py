"""The ledger beside a broker: takes office, runs cycles, keeps its cache. All decisions are `core`'s.

Order of a cycle, which recovery rests on
  1. take the requests that are there
  2. decide, encode one entry
  3. append it, await the acknowledgement
  4. read the log back up to it: another leader's entry on the way ends this process's office
  5. write the changed rows and the position to the cache, in one batch
  6. only now reply
Killed anywhere, the next leader reads the log and goes on at the position that the log carries. Whoever is superseded
becomes a standby: it follows the log, and takes office when requests wait for too long and nothing is written.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

from antdt_schemas import auth, codec, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.denied import WRITE, denied
from antdt_schemas.errors import AntdtError, ForeignState, Superseded, Unavailable
from antdt_schemas.launch_locks import process_name
from antdt_schemas.polling import OutOfRange, Recreated
from confluent_kafka import KafkaException

from antdt_streams.host.readiness import Readiness
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.topics_watch import TopicsWatch
from antdt_streams.ledger.cache import Cache
from antdt_streams.ledger.core import evidence
from antdt_streams.ledger.core.decide import check_spec
from antdt_streams.ledger.core.fold import Fold, Verdict
from antdt_streams.ledger.core.leader import Crowded, Cycle, Incoming, InOffice, PoisonRequest
from antdt_streams.ledger.core.moved import moved
from antdt_streams.ledger.core.versions import FOLD_VERSION
from antdt_streams.ledger.log import Log, LogRecord
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.ledger.requests import Requests, sign_of_life
from antdt_streams.ledger.silence import Silence
from antdt_streams.ledger.snapshots import LedgerSnapshots
from antdt_streams.ledger.start import Start
from antdt_streams.ledger.stored import Identity

WRITTEN = (topics.SHARD_LOG, topics.REPLIES, topics.DEAD_LETTERS)  # by one producer
LETTER_BYTES_MAX = 64 << 10

log = logging.getLogger("antdt.ledger")


class Ledger:
    """One ledger process of one job."""

    def __init__(self, connection: Connection, job: str, folder: Path, options: LedgerOptions | None = None) -> None:
        self.connection, self.job, self.options = connection, job, options or LedgerOptions()
        self.stopping, self.readiness = threading.Event(), Readiness()
        self.topics = topics_admin.fit(connection, job)
        self.identity = Identity(job, self.topics.ids[topics.SHARD_LOG.suffix])
        self.cache = Cache(folder, self.identity)
        self.log = Log(connection, job, self.options, self.topics.record_bytes_max(*WRITTEN))
        self.snapshots = LedgerSnapshots(
            connection,
            self.identity,
            self.options.snapshot_every,
            self.options.snapshot_events,
            self.topics.record_bytes_max(topics.SNAPSHOTS),
        )
        self.start = Start(self.log, self.cache, self.snapshots, self.options)
        self.requests = Requests(connection, job)
        self.replies, self.dead = topics.REPLIES.name(job), topics.DEAD_LETTERS.name(job)
        self.topics_watch = TopicsWatch(connection, job, self.options.identity_every_s, self.options.missing_s)
        self.silence = Silence(self.options.standby_patience_s)
        self.looked = 0  # how often, as a standby, the log seemed silent
        self._position_at = self._void_at = 0.0
        self._void_told = 0

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
                    self.silence.wrote(monotonic(), leader=True)
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
        self.readiness.withdraw()
        self.snapshots.close()
        self.log.close()
        self.requests.close()
        self.cache.close()

    # -- into office

    def _await_silence(self, fold: Fold) -> bool:
        """Follow the log until somebody asks in vain for `standby_patience_s`. False: told to stop.

        Only entries that take requests are a sign of life while there are some: others may be anybody's, and a leader
        that has fallen deaf is none.
        """
        log.info("standing by at offset %d", fold.position.next_offset)
        self.readiness.say(f"standing by at offset {fold.position.next_offset}")
        silence = self.silence
        silence.begin(monotonic())
        while not self.stopping.is_set():
            alive = self._follow(fold, self.log.poll(self.options.idle_s))
            if not alive and silence.is_look_due(monotonic()) and self._is_silent(fold):
                log.warning("requests were not answered for %.1f s: taking office", silence.patience_s)
                return True
        return False

    def _follow(self, fold: Fold, entries: Iterable[LogRecord]) -> bool:
        """Read on; whether somebody leads, by what came."""
        before, signs = _taken(fold), {Verdict.LEADER, Verdict.GENESIS}
        verdicts = {fold.read(entry.offset, entry.payload) for entry in entries}
        if verdicts:
            self.cache.save(fold, self.log.leader_epoch)
        if not verdicts & signs and _taken(fold) == before:
            return False
        self.silence.wrote(monotonic(), leader=Verdict.LEADER in verdicts)
        return True

    def _is_silent(self, fold: Fold) -> bool:
        """A broker that is away silences everybody; only ends that it tells itself count, and what lies before them."""
        self.looked += 1
        began, silence = monotonic(), self.silence
        try:
            end = self.requests.end(silence.patience_s)
            if silence.waits(_taken(fold), end):
                log_end = self.log.end(silence.patience_s)
                if log_end > self.log.position and self._follow(fold, self.log.read_to(log_end)):
                    return False
        except Unavailable:
            silence.in_vain(monotonic())
            return False
        return silence.looked(began, _taken(fold), end)

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
        self._begin_requests_at_the_first()
        self.readiness.say("waiting for the first worker")
        while not self.stopping.is_set():
            self._publish_position(0)
            if self._requests_are_others():
                self._begin_requests_at_the_first()
            try:
                incoming = self.requests.take(self.options.idle_s, 1)
            except (OutOfRange, Recreated):
                self._begin_requests_at_the_first()
                continue
            spec = self._spec_of(incoming[0].payload) if incoming else None
            if spec is not None:
                self._begin(fold, spec)
                return

    def _begin_requests_at_the_first(self) -> None:
        topic_id, low, _ = self.requests.look()
        self.requests.begin(topic_id, low)

    def _begin(self, fold: Fold, spec: records.JobSpec) -> None:
        genesis = records.Genesis(
            run_id=str(uuid.uuid4()),
            job=self.job,
            owner=process_name(),
            spec=spec,
            fold_version=FOLD_VERSION,
            auth=auth.NONE if self.options.secret is None else auth.HMAC,
            digest_every=self.options.digest_every,
            patience_ms=self.options.patience_ms,
            requests_topic=self.requests.topic_id,
        )
        end = self.log.append(codec.encode(records.Entry(genesis)), fold.position.next_offset) + 1
        self.start.fold_to(fold, end)

    def _spec_of(self, payload: bytes | None) -> records.JobSpec | None:
        """The spec of a Join that may found the job. What cannot is answered; it is recorded once there is a log."""
        try:
            request = codec.decode(payload, records.Request)
        except AntdtError:
            return None
        if not isinstance(request.body, records.Join) or not auth.is_authentic(request, self.options.secret):
            return None
        wrong = check_spec(request.body.spec)
        if wrong is None:
            return request.body.spec
        who = request.worker, request.incarnation, request.number
        self._send(records.Reply(*who, records.Status.REFUSED, wrong, 0, 0, False, (), None))
        self.log.serve(0)
        return None

    def _take_office(self, fold: Fold) -> InOffice:
        assert fold.genesis is not None
        fold.check_doubts()
        leader_id = str(uuid.uuid4())
        entry = records.Entry(records.Leader(fold.genesis.run_id, leader_id, process_name(), FOLD_VERSION))
        offset = self.log.append(codec.encode(entry), fold.position.next_offset)
        self.start.fold_to(fold, offset + 1)
        assert fold.office is not None
        if fold.office.leader_id != leader_id:
            raise Superseded(f"{fold.office.owner} took office at offset {fold.office.offset}.")
        fold.check_doubts()
        assert fold.state is not None
        log.info(
            "in office at offset %d: %d steps committed, requests from %d",
            offset, fold.state.line.committed, fold.state.requests_next,
        )  # fmt: skip
        self.silence.wrote(monotonic(), leader=True)
        self.readiness.say(f"in office at offset {offset}")
        return InOffice(fold, self.options.secret, None, self.log.record_bytes_max, self.options.stuck_ms)

    # -- in office

    def _lead(self, office: InOffice) -> None:
        self._begin_requests(office)
        waiting, most = list[Incoming](), self.options.requests_per_cycle_max
        while not self.stopping.is_set():
            if not waiting:
                waiting = self._take(office)
            if waiting:
                try:
                    payload, taken = office.propose(waiting[:most])
                except PoisonRequest as poison:
                    office = self._without(office, poison)
                    continue
                except Crowded as crowded:
                    office, most = self._again(office, {}), crowded.fits
                    continue
                self._run_cycle(office, payload)
                most = self.options.requests_per_cycle_max
                del waiting[:taken]
            else:
                self._watch(office)
            self._publish_position(office.state.requests_next)
            if self._requests_are_others():
                waiting.clear()
                self._begin_requests(office)
            self._tell_void(office.fold)
            self.snapshots.offer(office.fold, self.log.leader_epoch)
        if office.fold.doubts:  # whoever comes next cannot know what this leader has seen: its last word ends them
            self._run_cycle(office, office.propose([])[0])

    def _without(self, office: InOffice, poison: PoisonRequest) -> InOffice:
        """The office as of the last entry that was read back, with this request to be refused: no crash loop."""
        log.error("event=poison request_offset=%d reason=%r", poison.offset, str(poison), exc_info=poison)
        assert poison.offset not in office.poisoned, "refusing a request must not fail"
        return self._again(office, {poison.offset: str(poison)})

    def _again(self, office: InOffice, poisoned: dict[int, str]) -> InOffice:
        fold = self.cache.load()
        self.start.fold_to(fold, office.fold.position.next_offset)
        known = {**office.poisoned, **poisoned}
        again = InOffice(fold, self.options.secret, known, self.log.record_bytes_max, self.options.stuck_ms)
        again.patience, again.holdups = office.patience, office.holdups
        return again

    def _take(self, office: InOffice) -> list[Incoming]:
        try:
            return self.requests.take(self.options.idle_s, self.options.requests_per_cycle_max)
        except (OutOfRange, Recreated) as error:
            log.warning("event=requests-moved reason=%r", str(error))
            self._begin_requests(office)
            return []

    def _begin_requests(self, office: InOffice) -> None:
        """Go on at what there is: where the log says, or where that is not any more, somewhere else, and record it."""
        topic_id, low, high = self.requests.look()
        fact = moved(office.state, office.genesis, topic_id, low, high)
        if fact is not None:
            log.warning("event=requests-moved next=%d reason=%r", fact.next, fact.reason)
            office.poisoned.clear()  # it lay at an offset of what was there before
            payload, _ = office.propose([], (fact,))
            self._run_cycle(office, payload)
            self._publish(fact.next)  # the copy must not say any more what was
        self.requests.begin(topic_id, office.state.requests_next)

    def _run_cycle(self, office: InOffice, payload: bytes) -> None:
        end = self.log.append(payload, office.fold.position.next_offset) + 1
        cycle: Cycle | None = None
        for message in self.log.read_to(end):
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
        self.log.serve(0)

    def _tell_void(self, fold: Fold) -> None:
        """Who else writes into the log should be asked why; what it costs is this line, not more than one a second."""
        if fold.void_entries == self._void_told or monotonic() - self._void_at < self.options.position_every_s:
            return
        self._void_at, self._void_told = monotonic(), fold.void_entries
        log.warning("event=void-entries count=%d next_offset=%d", fold.void_entries, fold.position.next_offset)

    def _requests_are_others(self) -> bool:
        """Whether the topic of the requests was created again. That the log's was, or that a topic is not fit any more,
        under a running leader is noticed here, too, busy or not.
        """
        found = self.topics_watch.look()
        if found is None:
            return False
        now = found.ids[topics.SHARD_LOG.suffix]
        if now != self.identity.topic_id:
            raise ForeignState(f"The topic id of {self.log.topic}", self.identity.topic_id, now, "It was replaced.")
        return found.ids[topics.REQUESTS.suffix] != self.requests.topic_id

    def _watch(self, office: InOffice) -> None:
        """Nobody asks: see whether somebody else took office."""
        for message in self.log.poll(0):
            office.read_back(message.offset, message.payload)

    def _send(self, reply: records.Reply) -> None:
        partition, payload = topics.replies_partition(reply.worker), codec.encode(reply)
        if len(payload) > self.log.record_bytes_max:
            reason = f"The answer has {len(payload)} bytes, and {self.replies} takes {self.log.record_bytes_max}."
            log.error("event=answer-too-large worker=%s reason=%r", reply.worker, reason)
            who = reply.worker, reply.incarnation, reply.number
            payload = codec.encode(records.Reply(*who, records.Status.REFUSED, reason, 0, 0, False, (), None))
        self._produce(self.replies, payload, reply.worker, partition)

    def _bury(self, incoming: Incoming, reason: str) -> None:
        payload, kept = incoming.payload or b"", min(LETTER_BYTES_MAX, self.log.record_bytes_max // 2)
        letter = records.DeadLetter(
            "ledger", topics.REQUESTS.name(self.job), 0, incoming.offset, reason, payload[:kept], len(payload)
        )
        self._produce(self.dead, codec.encode(letter), None, 0)

    def _produce(self, topic: str, value: bytes, key: str | None, partition: int) -> None:
        """A reply may be lost, it is asked for again; the queue is librdkafka's, and bounded."""
        for _ in range(100):
            try:
                self.log.producer.produce(topic, value, key, partition)
            except BufferError:
                self.log.serve(0.1)
            except KafkaException as error:
                wrong = denied(error.args[0], WRITE, topic)
                raise wrong or Unavailable(f"{topic} cannot be written: {error.args[0].str()}.") from error
            else:
                return
        raise Unavailable(f"{topic} takes no records: the queue stayed full.")

    def _publish_position(self, requests_next: int) -> None:
        """A copy for tools that show lag, with a sign of life; never read back."""
        if monotonic() - self._position_at < self.options.position_every_s:
            return
        self._publish(requests_next)

    def _publish(self, requests_next: int) -> None:
        self._position_at = monotonic()
        self.requests.publish(requests_next, sign_of_life(process_name(), time.time()))


def _taken(fold: Fold) -> int:
    """Offset of the first request that the log does not have."""
    return fold.state.requests_next if fold.state is not None else 0
