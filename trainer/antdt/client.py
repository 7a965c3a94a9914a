"""The connection of one worker: a thread that keeps its Session, its plans and its telemetry going.

Owns the Kafka clients and the lock. The training thread only ever takes the lock for a few microseconds; every request,
every retry and all decoding happens in the thread of the connection.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from antdt_schemas import auth, codec, records, topics
from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, Unavailable, UnknownJob
from antdt_schemas.offsets import watermarks
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from antdt import whereabouts
from antdt.last_word import LastWord
from antdt.plans import Plans
from antdt.session import Phase, Session
from antdt.telemetry import Telemetry

POLL_S = 0.02
SLICE_S = 0.5
QUEUE_MESSAGES_MAX = 10_000

log = logging.getLogger("antdt")


@dataclass(frozen=True)
class ClientOptions:
    """Where the job is, and the bounds of the connection."""

    connection: Connection
    job: str
    secret: bytes | None = None
    reach_s: float = 10.0


class Client:
    """Runs a Session. `changed` is notified whenever something came."""

    def __init__(self, options: ClientOptions, session: Session, plans: Plans, telemetry: Telemetry) -> None:
        self.options, self.session, self.plans, self.telemetry = options, session, plans, telemetry
        self.changed = threading.Condition()
        self.on_closed: Callable[[], None] | None = None
        self.on_leases: Callable[[int, int, int], None] | None = None
        self.failure: BaseException | None = None
        self._halt = threading.Event()
        job, connection = options.job, options.connection
        connection.check_reachable(options.reach_s)
        # Requests wait for nobody; a full queue is reported at once, and the session asks again.
        self._producer = Producer(
            connection.producer(
                **{"linger.ms": 0, "queue.buffering.max.messages": QUEUE_MESSAGES_MAX, "delivery.timeout.ms": 30_000}
            )
        )
        self._consumer = Consumer(connection.consumer())
        self._names = {t.suffix: t.name(job) for t in topics.TOPICS}
        self._follow()
        self._thread = threading.Thread(target=self._run, name="antdt-client", daemon=True)
        self._stopping, self._stopped = threading.Lock(), False
        self._page, self._told = whereabouts.mine(), ""
        self._last_word = LastWord(self._page)

    def start(self) -> None:
        """Begin to talk."""
        self._thread.start()

    def _follow(self) -> None:
        replies = self._names[topics.REPLIES.suffix], topics.replies_partition(self.session.worker)
        decisions = self._names[topics.DECISIONS.suffix]
        try:
            require_job(self._consumer, self.options.job, self.options.reach_s)
            # What was answered before this incarnation was born is not for it.
            end = watermarks(self._consumer, *replies, self.options.reach_s)[1]
        except KafkaException as error:
            raise Unavailable(f"The topics of job {self.options.job!r} cannot be read: {error}.") from error
        self._consumer.assign([TopicPartition(*replies, end), TopicPartition(decisions, 0, 0)])

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
        """Send a request of which no answer is awaited."""
        s = self.session
        self._send(records.Request(s.worker, s.incarnation, 0, body, b""))

    @property
    def stopped(self) -> bool:
        """Whether it has said good-bye."""
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
                self._stop(leave)

    def _stop(self, leave: bool) -> None:
        self._halt.set()
        self._thread.join(5)
        self._page.times[whereabouts.BEAT] = 0.0  # it need not speak any more
        for batch in iter(lambda: self.telemetry.batch(monotonic(), everything=True), None):
            self._send_telemetry(batch)
        if leave and self.session.generation:
            self.say(records.Leave(self.session.generation))
        self._producer.flush(5)
        self._consumer.close()

    # -- the connection's thread

    def _run(self) -> None:
        try:
            while not self._halt.is_set():
                self._receive()
                self._page.times[whereabouts.BEAT] = monotonic()
                with self.changed:
                    self.session.standing = self._page.standing()
                    requests = self.session.tick(monotonic())
                self._last_word.look(self.session)
                for request in requests:
                    self._send(request)
                batch = self.telemetry.batch(monotonic())
                if batch is not None:
                    self._send_telemetry(batch)
                self._producer.poll(0)
        except BaseException as error:  # noqa: BLE001  the training thread raises it
            self._page.times[whereabouts.BEAT] = 0.0
            with self.changed:
                self.failure = error
                self.changed.notify_all()
            self._tell_closed()

    def _receive(self) -> None:
        first = self._consumer.poll(POLL_S)
        if first is None:
            return
        for message in (first, *self._consumer.consume(99, 0)):
            error = message.error()
            if error is not None:
                if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                    raise Unavailable(f"Replies were removed before they were read: {error.str()}.")
                continue
            self._take(message.topic(), message.value())

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
        if reply.incarnation != self.session.incarnation:
            return
        if reply.reason.startswith(f"{reply.incarnation} holds up ") and reply.reason != self._told:
            self._told = reply.reason
            log.warning("%s", reply.reason)
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
        signed = auth.sign(request, self.options.secret)
        self._produce(topics.REQUESTS, codec.encode(signed), request.worker)

    def _send_telemetry(self, batch: records.StepBatch) -> None:
        telemetry, steps = self.telemetry, len(batch.step)

        def delivered(error: KafkaError | None, _message: Any) -> None:
            telemetry.acknowledged(steps, monotonic(), arrived=error is None)

        telemetry.sent(monotonic())
        if not self._produce(topics.STEPS, codec.encode(batch), batch.worker, delivered):
            telemetry.acknowledged(steps, monotonic(), arrived=False)

    def _produce(
        self, topic: topics.Topic, payload: bytes, worker: str, on_delivery: Callable[[Any, Any], None] | None = None
    ) -> bool:
        try:
            self._producer.produce(self._names[topic.suffix], payload, worker, 0, on_delivery=on_delivery)
        except BufferError:
            return False  # a request is asked for again, telemetry is counted as dropped
        return True


def require_job(client: Any, job: str, reach_s: float) -> None:
    """Raises UnknownJob if the broker of this Kafka client has no such job."""
    if topics.REPLIES.name(job) not in client.list_topics(timeout=reach_s).topics:
        raise UnknownJob(f"Job {job!r} is not on this broker.", f"Start it with `antdt up {job}`.")


def renew(session: Session, incarnation: str) -> Session:
    """A new incarnation of the same worker, which holds nothing."""
    where = replace(session.where, restarts=session.where.restarts + 1)
    return Session(session.worker, incarnation, session.spec, where, session.options)


__all__: list[Any] = ["Client", "ClientOptions", "renew", "require_job"]
