"""The connection of one worker: a thread that keeps its Session, its plans and its telemetry going.

Owns the Kafka clients and the lock. The training thread only ever takes the lock for a few microseconds; every request,
every retry and all decoding happens in the thread of the connection.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from antdt_schemas import auth, codec, framing, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, ExitCode, Refused, Unavailable, UsageError, unknown_job
from antdt_schemas.offsets import watermarks
from antdt_schemas.polling import OutOfRange, Place, Reader, Recreated
from antdt_schemas.room import record_bytes_max
from confluent_kafka import KafkaException

from antdt.connect.last_word import LastWord
from antdt.connect.reach import Reach
from antdt.connect.sender import Sender
from antdt.host import whereabouts
from antdt.worker.plans import Plans
from antdt.worker.session import Phase, Session
from antdt.worker.telemetry import Telemetry

POLL_S = 0.02
NAME_EVERY_S = 1.0
SLICE_S = 0.5
RECORDS_MAX = 100
# What a commit takes in a request and in the entry of the log that it becomes: steps, plans and names, and at most so
# much for each number of a range.
COMMIT_FIXED_BYTES, COMMIT_NUMBER_BYTES = 8 << 10, 6

log = logging.getLogger("antdt")


@dataclass(frozen=True)
class ClientOptions:
    """Where the job is, and the bounds of the connection. pending_max: steps that may await their commit."""

    connection: Connection
    job: str
    secret: bytes | None = None
    reach_s: float = 10.0
    pending_max: int = 0
    ousted_s: float = 30.0  # how long a process may go on of which somebody else is the worker


class Client:
    """Runs a Session. `changed` is notified whenever something came."""

    def __init__(self, options: ClientOptions, session: Session, plans: Plans, telemetry: Telemetry) -> None:
        self.options, self.session, self.plans, self.telemetry = options, session, plans, telemetry
        # Held while the session is touched; `changed` is told where something came. Bare, it is entered without Python.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.on_closed: Callable[[], None] | None = None
        self.on_leases: Callable[[int, int, int], None] | None = None
        self.failure: BaseException | None = None
        self.reach = Reach(options.job, options.connection.bootstrap, options.pending_max)
        self._halt = threading.Event()
        job, connection = options.job, options.connection
        connection.check_reachable(options.reach_s)
        framing.begin()
        names = [topic.name(job) for topic in (topics.REQUESTS, topics.STEPS, topics.SHARD_LOG)]
        self._room = record_bytes_max(connection, names, options.reach_s)
        session.limit_commits((self._room - COMMIT_FIXED_BYTES) // COMMIT_NUMBER_BYTES)
        self._sender = Sender(connection, self._room)
        self._names = {t.suffix: t.name(job) for t in topics.TOPICS}
        self._decisions = Place(self._names[topics.DECISIONS.suffix])
        self._reader = Reader(connection, beside=[self._names[topics.REQUESTS.suffix]])
        self._follow()
        self._thread = threading.Thread(target=self._run, name="antdt-client", daemon=True)
        self._stopping, self._stopped = threading.Lock(), False
        self._page, self._told = whereabouts.mine(), ""
        self._name_at_s = 0.0
        self._last_word = LastWord(self._page)

    def start(self) -> None:
        self._thread.start()

    def _follow(self) -> None:
        replies = Place(self._names[topics.REPLIES.suffix], topics.replies_partition(self.session.worker))
        consumer, reach_s = self._reader.consumer, self.options.reach_s
        try:
            require_job(consumer, self.options.job, reach_s)
            # What was answered before this incarnation was born is not for it.
            end = watermarks(consumer, *replies, reach_s)[1]
            # Of the plans, whatever there is: one that was removed is as good as none.
            first = watermarks(consumer, *self._decisions, reach_s)[0]
        except KafkaException as error:
            raise Unavailable(f"The topics of job {self.options.job!r} cannot be read: {error}.") from error
        self._reader.assign({replies: end, self._decisions: first})

    # -- the training thread

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something came that makes `condition` true. Raises what went wrong in the connection."""
        until, met = monotonic() + timeout_s, False
        while not met and self.failure is None and monotonic() < until:
            with self.changed:  # in slices: a signal handler changes things without telling
                slice_s = min(SLICE_S, max(0.0, until - monotonic()))
                met = self.changed.wait_for(lambda: condition() or self.failure is not None, slice_s)
        if self.failure is not None:
            raise self.failure
        return met

    def say(self, body: records.RequestBody) -> None:
        s = self.session
        self._send(records.Request(s.worker, s.incarnation, 0, body, b""))

    @property
    def stopped(self) -> bool:
        return self._stopped

    def linger(self, seconds: float) -> None:
        """Stop in so many seconds, or when the process ends: until then something may be said."""
        atexit.register(self.stop, leave=True)
        timer = threading.Timer(seconds, self.stop, kwargs={"leave": True})
        timer.daemon = True
        timer.start()

    def stop(self, leave: bool) -> None:
        """Say good-bye, send what is left, end the thread. Bounded."""
        with self._stopping:
            if not self._stopped:
                self._stopped = True
                atexit.unregister(self.stop)
                self._stop(leave)

    def _stop(self, leave: bool) -> None:
        self._halt.set()
        if self._thread.ident is not None:
            self._thread.join(5)
        self._page.times[whereabouts.BEAT] = 0.0  # it need not speak any more
        with suppress(UsageError, Unavailable):  # said before: it must not hide why the connection ends
            for batch in iter(lambda: self.telemetry.batch(monotonic(), everything=True), None):
                self._send_telemetry(batch)
            for request in self.session.last_words(monotonic()):
                self._send(request)
            if leave and self.session.outbox.number:  # also who was not answered yet: it may be granted
                self.say(records.Leave(self.session.generation))
        self._sender.close(5)
        self._reader.close()

    # -- the connection's thread

    def _run(self) -> None:
        ousted_at_s = 0.0
        self._page.numbers[whereabouts.CLIENT] = threading.get_native_id()
        try:
            while not self._halt.is_set():
                self._receive()
                if self.session.phase is Phase.OUSTED:
                    ousted_at_s = ousted_at_s or monotonic()
                    self._end_if_stuck(monotonic() - ousted_at_s)
                self._page.times[whereabouts.BEAT] = monotonic()
                self._name_threads(monotonic())
                with self.changed:
                    self.session.standing = self._page.standing()
                    requests = self.session.tick(monotonic())
                    word = self.reach.word(self.session, monotonic())
                self._last_word.look(self.session)
                for request in requests:
                    self._send(request)
                    self.reach.asked()
                if word is not None:
                    log.warning(word)
                batch = self.telemetry.batch(monotonic())
                if batch is not None:
                    self._send_telemetry(batch)
                self._sender.poll()
        except BaseException as error:  # noqa: BLE001  the training thread raises it
            self._page.times[whereabouts.BEAT] = 0.0
            self.fail(error)

    def _name_threads(self, now_s: float) -> None:
        """For whoever looks at the stacks of this process when it hangs."""
        if now_s >= self._name_at_s:
            self._name_at_s = now_s + NAME_EVERY_S
            self._page.name_threads({thread.ident or 0: thread.name for thread in threading.enumerate()})

    def fail(self, error: BaseException) -> None:
        """The training thread raises this, from wherever it waits."""
        with self.changed:
            self.failure = error
            self.changed.notify_all()
        self._tell_closed()

    def _end_if_stuck(self, since_s: float) -> None:
        """The training thread ends this process; where it is stuck in the user's code, this one does."""
        if since_s > self.options.ousted_s:
            log.error("%s This process does not end by itself: ended.", self.session.reason)
            logging.shutdown()
            os._exit(ExitCode.NEVER_RETRY)

    def _receive(self) -> None:
        try:
            messages = self._reader.poll(POLL_S, RECORDS_MAX)
        except OutOfRange as error:
            self._go_on(error.place, error.low if error.place == self._decisions else error.nearest)
            return
        except Recreated as error:
            if error.topic != self._decisions.topic:
                raise
            self._reader.identify(error.topic, error.found_id)
            self._go_on(self._decisions, watermarks(self._reader.consumer, *self._decisions)[0])
            return
        for message in messages:
            self._take(message.topic(), framing.unframed(message.topic(), message.value()))

    def _go_on(self, place: Place, offset: int) -> None:
        """Replies are asked for again, and plans that were removed are none."""
        log.warning("%s goes on at offset %d: what was before it is gone.", place, offset)
        self._reader.assign({**self._reader.positions(), place: offset})

    def _take(self, topic: str | None, payload: bytes | None) -> None:
        try:
            if topic == self._names[topics.DECISIONS.suffix]:
                decision = codec.decode(payload, records.Decision)
                with self.changed:
                    self.plans.add(decision)
                return
            reply = codec.decode(payload, records.Reply)
        except AntdtError as error:
            log.warning("a record of %s was skipped: %s", topic, error)
            return
        if reply.incarnation == self.session.incarnation:
            self.reach.heard()
        elif reply.grant is None:
            return
        if reply.warning and reply.warning != self._told:
            self._told = reply.warning
            log.warning("%s", reply.warning)
        if self.on_leases is not None:
            for i in range(0, len(reply.leases), 5):
                self.on_leases(*reply.leases[i + 2 : i + 5])
        with self.changed:
            before = self.session.phase
            self.session.on_reply(reply)
            over = before is Phase.MEMBER and self.session.phase is not Phase.MEMBER
            self.changed.notify_all()
        if over and self.session.phase is not Phase.ENDED:
            self._tell_closed()

    def _tell_closed(self) -> None:
        """A collective in flight ends at once, and on every member: each one is told."""
        if self.on_closed is not None:
            self.on_closed()

    def _send(self, request: records.Request) -> None:
        """One that does not go out is asked again."""
        payload = codec.encode(auth.sign(request, self.options.secret))
        if len(payload) > self._room:
            raise Refused(
                f"A {type(request.body).__name__} of {len(payload)} bytes cannot be sent: the topics of job "
                f"{self.options.job!r} take {self._room}.",
                "Raise their max.message.bytes, or let a step have fewer ranges (larger shards).",
            )
        self._sender.ask(self._names[topics.REQUESTS.suffix], payload, request.worker, self.reach.taken)

    def _send_telemetry(self, batch: records.StepBatch) -> None:
        telemetry, steps = self.telemetry, len(batch.step)

        def delivered(arrived: bool) -> None:
            telemetry.acknowledged(steps, monotonic(), arrived=arrived)

        telemetry.sent(monotonic(), steps)
        if not self._sender.tell(self._names[topics.STEPS.suffix], codec.encode(batch), batch.worker, delivered):
            delivered(False)


def require_job(client: Any, job: str, reach_s: float) -> None:
    """Raises UnknownJob if the broker of this Kafka client has no such job."""
    if topics.REPLIES.name(job) not in client.list_topics(timeout=reach_s).topics:
        raise unknown_job(job)


def renew(session: Session, incarnation: str) -> Session:
    """A new incarnation of the same worker or server, which holds nothing."""
    where = replace(session.where, restarts=session.where.restarts + 1, take_over=False)
    return Session(session.worker, incarnation, session.spec, where, session.options, session.role)
