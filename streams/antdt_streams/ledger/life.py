"""The life of a ledger: stands by, takes office, runs cycles, is superseded. All decisions are `core`'s.

Order of a cycle, which recovery rests on
  1. take the requests that are there
  2. decide, encode one entry
  3. append it, await the acknowledgement
  4. read the log back up to it: another leader's entry on the way ends this process's office
  5. write the changed rows and the position to the cache, in one batch
  6. only now reply
Killed anywhere, the next leader reads the log and goes on at the position that the log carries. Whoever is superseded
becomes a standby: it follows the log, and takes office when requests wait for too long and nothing is written.

A life is a generator: it acts on its ports and says where it is between any two acts, which is where a process can be
killed, or stopped for so long that others lead. The service runs through; simulation and tests stop where they like.
Knows no broker, no store and no clock but its ports.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from enum import Enum, auto
from typing import TypeVar

from antdt_schemas import auth, codec, records, topics
from antdt_schemas.errors import AntdtError, ForeignState, Superseded, Unavailable
from antdt_schemas.hearing import OutOfRange, Recreated

from antdt_streams.ledger import intake
from antdt_streams.ledger.core import evidence
from antdt_streams.ledger.core.decide import check_spec
from antdt_streams.ledger.core.fold import Fold, Verdict
from antdt_streams.ledger.core.leader import Crowded, Cycle, Incoming, InOffice, PoisonRequest
from antdt_streams.ledger.core.moved import moved
from antdt_streams.ledger.core.versions import FOLD_VERSION
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.ledger.ports import LogRecord, Ports
from antdt_streams.ledger.silence import Silence
from antdt_streams.ledger.start import Start

log = logging.getLogger("antdt.ledger")


class Moment(Enum):
    """Where a life is: what it has just done."""

    CAUGHT_UP = auto()  # it has read the log to its end
    STANDING_BY = auto()  # it has followed the log, and somebody else leads
    FOUNDING = auto()  # it has found no worker that says what is trained on
    IN_OFFICE = auto()  # its Leader entry is the newest
    IDLE = auto()  # it leads, and has found no request
    GATHERING = auto()  # it has found signs of life, and waits for what may share their entry
    DECIDED = auto()  # an entry is made, and nobody has it
    APPENDED = auto()  # the log has it
    READ = auto()  # an entry was read back
    SAVED = auto()  # the cache has what the log has
    ANSWERED = auto()  # a reply is sent


T = TypeVar("T")
Steps = Generator[Moment, None, T]


def through(steps: Steps[T]) -> T:
    """Run a life, or a part of one, to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value


class Life:
    """One ledger of one job. While it leads, `office` holds the state, with what it has decided ahead of the log."""

    def __init__(self, job: str, topic_id: str, ports: Ports, options: LedgerOptions) -> None:
        """topic_id: of the shard log."""
        self.job, self.topic_id, self.ports, self.options = job, topic_id, ports, options
        self.log, self.requests, self.cache, self.replies = ports.log, ports.requests, ports.cache, ports.replies
        self.snapshots, self.clock = ports.snapshots, ports.clock
        self.start = Start(ports.log, ports.cache, ports.snapshots, options)
        self.silence = Silence(options.standby_patience_s)
        self.looked = 0  # how often, as a standby, the log seemed silent
        self._office: InOffice | None = None
        self.read: Fold | None = None  # what it goes by while it does not lead
        self._position_at = self._void_at = 0.0
        self._void_told = 0

    @property
    def office(self) -> InOffice:
        """Only while it leads."""
        assert self._office is not None
        return self._office

    @property
    def leads(self) -> bool:
        return self._office is not None

    def run(self) -> Steps[None]:
        """Lead, or stand by, until told to stop.

        Raises:
            AntdtError: the log, the cache or the broker; nothing is lost, the message says what to do.
        """
        stands_by = self.options.standby
        while not self.ports.stopping():
            fold = self.read = self.start.catch_up()
            yield Moment.CAUGHT_UP
            if stands_by and not (yield from self._await_silence(fold)):
                return
            try:
                yield from self._serve(fold)
            except Superseded as error:
                log.warning("%s Standing by.", error)
                self.silence.wrote(self.clock(), leader=True)
                stands_by = True
            self._office = None

    def recover(self, reason: str) -> Steps[records.Regressed]:
        """Accept that acknowledged entries are gone, and record it. `run` goes on from there.

        Raises:
            UsageError: nothing is gone, or it was accepted before.
        """
        fold, lost = self.start.accept_loss(reason)
        yield Moment.CAUGHT_UP
        if fold.genesis is None:
            assert lost.genesis is not None
            yield from self._begin(fold, lost.genesis.spec)
        yield from self._take_office(fold)
        yield from self._run_cycle(self.office.propose([], (lost.fact,))[0])
        return lost.fact

    # -- into office

    def _await_silence(self, fold: Fold) -> Steps[bool]:
        """Follow the log until somebody asks in vain for `standby_patience_s`. False: told to stop.

        Only entries that take requests are a sign of life while there are some: others may be anybody's, and a leader
        that has fallen deaf is none.
        """
        log.info("standing by at offset %d", fold.position.next_offset)
        self.ports.ready(f"standing by at offset {fold.position.next_offset}")
        silence = self.silence
        silence.begin(self.clock())
        while not self.ports.stopping():
            alive = self._follow(fold, self.log.poll(self.options.idle_s))
            if not alive and silence.is_look_due(self.clock()) and self._is_silent(fold):
                log.warning("requests were not answered for %.1f s: taking office", silence.patience_s)
                return True
            yield Moment.STANDING_BY
        return False

    def _follow(self, fold: Fold, entries: Iterable[LogRecord]) -> bool:
        """Read on; whether somebody leads, by what came."""
        before, signs = _taken(fold), {Verdict.LEADER, Verdict.GENESIS}
        verdicts = {fold.read(entry.offset, entry.payload) for entry in entries}
        if verdicts:
            self.cache.save(fold, self.log.leader_epoch)
        if not verdicts & signs and _taken(fold) == before:
            return False
        self.silence.wrote(self.clock(), leader=Verdict.LEADER in verdicts)
        return True

    def _is_silent(self, fold: Fold) -> bool:
        """A broker that is away silences everybody; only ends that it tells itself count, and what lies before them."""
        self.looked += 1
        began, silence = self.clock(), self.silence
        try:
            end = self.requests.end(silence.patience_s)
            if silence.waits(_taken(fold), end):
                log_end = self.log.end(silence.patience_s)
                if log_end > self.log.position and self._follow(fold, self.log.read_to(log_end)):
                    return False
        except Unavailable:
            silence.in_vain(self.clock())
            return False
        return silence.looked(began, _taken(fold), end)

    def _serve(self, fold: Fold) -> Steps[None]:
        if fold.genesis is None:
            yield from self._found(fold)
        if not self.ports.stopping():
            yield from self._take_office(fold)
            yield Moment.IN_OFFICE
            yield from self._lead()
            self.snapshots.write(self.office.fold, self.log.leader_epoch)

    def _found(self, fold: Fold) -> Steps[None]:
        """The log is empty: wait for the first worker that says what is trained on, and write Genesis."""
        log.info("job %s is new: waiting for its first worker", self.job)
        self._begin_requests_at_the_first()
        self.ports.ready("waiting for the first worker")
        while not self.ports.stopping():
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
                yield from self._begin(fold, spec)
                return
            yield Moment.FOUNDING

    def _begin_requests_at_the_first(self) -> None:
        topic_id, low, _ = self.requests.look()
        self.requests.begin(topic_id, low)

    def _begin(self, fold: Fold, spec: records.JobSpec) -> Steps[None]:
        genesis = records.Genesis(
            run_id=self.ports.new_id(),
            job=self.job,
            owner=self.ports.owner,
            spec=spec,
            fold_version=FOLD_VERSION,
            auth=auth.NONE if self.options.secret is None else auth.HMAC,
            digest_every=self.options.digest_every,
            patience_ms=self.options.patience_ms,
            requests_topic=self.requests.topic_id,
        )
        yield from self._append(fold, genesis)

    def _append(self, fold: Fold, body: records.Genesis | records.Leader) -> Steps[int]:
        """Write an entry that needs no office, read the log up to it, save. Returns its offset."""
        yield Moment.DECIDED
        offset = self.log.append(codec.encode(records.Entry(body)), fold.position.next_offset)
        yield Moment.APPENDED
        self.start.fold_to(fold, offset + 1)
        yield Moment.SAVED
        return offset

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
        self.replies.send(records.Reply(*who, records.Status.REFUSED, wrong, 0, 0, False, (), None))
        self.log.serve(0)
        return None

    def _take_office(self, fold: Fold) -> Steps[None]:
        assert fold.genesis is not None
        fold.check_doubts()
        leader_id = self.ports.new_id()
        leader = records.Leader(fold.genesis.run_id, leader_id, self.ports.owner, FOLD_VERSION)
        offset = yield from self._append(fold, leader)
        assert fold.office is not None
        if fold.office.leader_id != leader_id:
            raise Superseded(f"{fold.office.owner} took office at offset {fold.office.offset}.")
        fold.check_doubts()
        assert fold.state is not None
        log.info(
            "in office at offset %d: %d steps committed, requests from %d",
            offset, fold.state.line.committed, fold.state.requests_next,
        )  # fmt: skip
        self.silence.wrote(self.clock(), leader=True)
        self.ports.ready(f"in office at offset {offset}")
        self._office = InOffice(fold, self.options.secret, None, self.log.record_bytes_max, self.options.stuck_ms)

    # -- in office

    def _lead(self) -> Steps[None]:
        yield from self._begin_requests()
        waiting, most = list[Incoming](), self.options.requests_per_cycle_max
        while not self.ports.stopping():
            if not waiting:
                waiting = yield from self._take()
            if waiting:
                try:
                    payload, taken = self.office.propose(waiting[:most])
                except PoisonRequest as poison:
                    self._without(poison)
                    continue
                except Crowded as crowded:
                    self._again({})
                    most = crowded.fits
                    continue
                yield from self._run_cycle(payload)
                most = self.options.requests_per_cycle_max
                del waiting[:taken]
            else:
                self._watch()
                yield Moment.IDLE
            self._publish_position(self.office.state.requests_next)
            if self._requests_are_others():
                waiting.clear()
                yield from self._begin_requests()
            self._tell_void()
            self.snapshots.offer(self.office.fold, self.log.leader_epoch)
        if self.office.fold.doubts:  # whoever comes next cannot know what this leader has seen: its last word ends them
            yield from self._run_cycle(self.office.propose([])[0])

    def _without(self, poison: PoisonRequest) -> None:
        """The office as of the last entry that was read back, with this request to be refused: no crash loop."""
        log.error("event=poison request_offset=%d reason=%r", poison.offset, str(poison), exc_info=poison)
        assert poison.offset not in self.office.poisoned, "refusing a request must not fail"
        self._again({poison.offset: str(poison)})

    def _again(self, poisoned: dict[int, str]) -> None:
        office, fold = self.office, self.cache.load()
        self.start.fold_to(fold, office.fold.position.next_offset)
        known = {**office.poisoned, **poisoned}
        self._office = InOffice(fold, self.options.secret, known, self.log.record_bytes_max, self.options.stuck_ms)
        self._office.patience, self._office.holdups = office.patience, office.holdups

    def _take(self) -> Steps[list[Incoming]]:
        try:
            return (yield from intake.take(self.requests, self.clock, self.options, Moment.GATHERING))
        except (OutOfRange, Recreated) as error:
            log.warning("event=requests-moved reason=%r", str(error))
            yield from self._begin_requests()
            return []

    def _begin_requests(self) -> Steps[None]:
        """Go on at what there is: where the log says, or where that is not any more, somewhere else, and record it."""
        office = self.office
        topic_id, low, high = self.requests.look()
        fact = moved(office.state, office.genesis, topic_id, low, high)
        if fact is not None:
            log.warning("event=requests-moved next=%d reason=%r", fact.next, fact.reason)
            office.poisoned.clear()  # it lay at an offset of what was there before
            yield from self._run_cycle(office.propose([], (fact,))[0])
            self._publish(fact.next)  # the copy must not say any more what was
        self.requests.begin(topic_id, office.state.requests_next)

    def _run_cycle(self, payload: bytes) -> Steps[None]:
        office = self.office
        yield Moment.DECIDED
        end = self.log.append(payload, office.fold.position.next_offset) + 1
        yield Moment.APPENDED
        cycle: Cycle | None = None
        for message in self.log.read_to(end):
            cycle = office.read_back(message.offset, message.payload) or cycle
            yield Moment.READ
        assert cycle is not None, "an acknowledged entry was not found in the log"
        self.cache.save(office.fold, self.log.leader_epoch)
        yield Moment.SAVED
        for answer in cycle.answers:
            self.replies.send(office.reply(answer))
            yield Moment.ANSWERED
        for line in office.holdups.news():
            log.warning("%s", line)
        for event in cycle.body.events:
            if isinstance(event, records.Blamed):
                log.warning("%s", evidence.sentence(event))
        for incoming, reason in cycle.dead:
            self.replies.bury(incoming, reason)
        self.log.serve(0)

    def _tell_void(self) -> None:
        """Who else writes into the log should be asked why; what it costs is this line, not more than one a second."""
        fold = self.office.fold
        if fold.void_entries == self._void_told or self.clock() - self._void_at < self.options.position_every_s:
            return
        self._void_at, self._void_told = self.clock(), fold.void_entries
        log.warning("event=void-entries count=%d next_offset=%d", fold.void_entries, fold.position.next_offset)

    def _requests_are_others(self) -> bool:
        """Whether the topic of the requests was created again. That the log's was, or that a topic is not fit any more,
        under a running leader is noticed here, too, busy or not.
        """
        now = self.ports.topic_ids()
        if now is None:
            return False
        if now[topics.SHARD_LOG.suffix] != self.topic_id:
            raise ForeignState(
                f"The topic id of {self.log.topic}", self.topic_id, now[topics.SHARD_LOG.suffix], "It was replaced."
            )
        return now[topics.REQUESTS.suffix] != self.requests.topic_id

    def _watch(self) -> None:
        """Nobody asks: see whether somebody else took office."""
        for message in self.log.poll(0):
            self.office.read_back(message.offset, message.payload)

    def _publish_position(self, requests_next: int) -> None:
        """A copy for tools that show lag, with a sign of life; never read back."""
        if self.clock() - self._position_at >= self.options.position_every_s:
            self._publish(requests_next)

    def _publish(self, requests_next: int) -> None:
        self._position_at = self.clock()
        self.requests.publish(requests_next)


def _taken(fold: Fold) -> int:
    """Offset of the first request that the log does not have."""
    return fold.state.requests_next if fold.state is not None else 0
