"""Whether a reader hears what there is: its positions, held against what the broker itself says.

A client may fetch nothing for as long as it lives while the broker has records for it (seen after a broker was
restarted; librdkafka's issue 5153 is alike), and nothing tells that apart from an idle topic. So where nothing came for
a moment, a client of its own asks the broker for the end and the identity of the topic. Knows no client of records.

Rules
  1. Time counts while somebody polls: a process that slept, or waited elsewhere, is not deaf for that.
  2. A topic is gone, or another one of its name, when the broker goes on saying so: one that starts may not know it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple, Protocol

from antdt_schemas.connection import Connection
from antdt_schemas.errors import ForeignState, LogTruncated, Unavailable, UnknownJob

POLL_GAP_S = 0.5  # more than this between two polls is the caller's time
ASK_TIMEOUT_S = 5.0

log = logging.getLogger("antdt.hearing")


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int = 0

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class TopicGone(UnknownJob):
    def __init__(self, topic: str) -> None:
        super().__init__(
            f"The topic {topic} is gone.", "Somebody has deleted it: `antdt up JOB --resume` creates what is missing."
        )
        self.topic = topic


class Recreated(ForeignState):
    def __init__(self, topic: str, expected: str, found: str) -> None:
        hint = "Somebody has deleted the topic and created it again: if that was meant, start this process again."
        super().__init__(f"The topic id of {topic}", expected, found, hint)
        self.topic, self.found_id = topic, found


class OutOfRange(LogTruncated):
    """A partition does not hold the position: retention has removed it, or the broker has lost it."""

    def __init__(self, place: Place, position: int, low: int, high: int) -> None:
        super().__init__(f"What {place} holds", f"offset {position}", f"{low} to {high}")
        self.place, self.position, self.low, self.high = place, position, low, high

    @property
    def nearest(self) -> int:
        """Where what there is begins, or ends."""
        return self.low if self.position < self.low else self.high


@dataclass(frozen=True, slots=True)
class Hearing:
    """Bounds of a reader, in seconds.

    ask_after_s: of silence, until the broker is asked; then ever less often while it has nothing new, up to
    ask_every_max_s. deaf_s: how long a position may lie behind a known end; doubled with every client that was replaced
    in vain, of which there are at most replacements_max. gone_s: how long the broker must say that a topic is gone.
    """

    ask_after_s: float = 1.0
    ask_every_max_s: float = 4.0
    deaf_s: float = 3.0
    replacements_max: int = 3
    gone_s: float = 1.5


HEARING = Hearing()


@dataclass(frozen=True, slots=True)
class Told:
    """What the broker says: the ends of partitions, the ids of topics, which topics it does not know."""

    ends: Mapping[Place, int] = field(default_factory=dict)
    ids: Mapping[str, str] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()


class Broker(Protocol):
    """Whom a watch asks."""

    def ask(self, places: Iterable[Place], beside: Iterable[str] = ()) -> None:
        """Ask for the ends of these and the ids of their topics, and of others beside, without waiting. Nothing happens
        while an answer is awaited.
        """

    def answer(self) -> Told | None:
        """What came, once; None while there is nothing."""


@dataclass(slots=True)
class _Partition:
    position: int
    end: int = 0
    ask_in_s: float = 0.0
    ask_every_s: float = 0.0
    behind_s: float = 0.0
    replaced: int = 0
    said: str = ""


class Watch:
    """Positions against what the broker says, in a clock that runs while somebody polls."""

    def __init__(
        self,
        broker: Broker,
        hearing: Hearing | None = None,
        ids: Mapping[str, str] | None = None,
        beside: Iterable[str] = (),
    ) -> None:
        """ids: of the topics that are read, by name; one that is missing is taken from the first answer. beside: topics
        that are not read here, but must stay what they are.
        """
        self.broker, self.hearing, self.ids = broker, hearing or HEARING, dict(ids or {})
        self.beside = tuple(beside)
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._doubts: dict[str, tuple[str, float]] = {}
        self._asked = False
        self._clock_s = 0.0
        self._polled_at_s: float | None = None

    def begin(self, place: Place, position: int) -> None:
        """A partition is read from `position` on."""
        self._partitions[place] = _Partition(position, 0, self.hearing.ask_after_s, self.hearing.ask_after_s)

    def end(self, place: Place) -> None:
        self._partitions.pop(place, None)

    def position(self, place: Place) -> int:
        return self._partitions[place].position

    def positions(self) -> dict[Place, int]:
        return {Place(*place): p.position for place, p in self._partitions.items()}

    def reached(self, place: tuple[str, int], position: int) -> None:
        """Everything below `position` was read, or is not there."""
        p = self._partitions.get(place)
        if p is not None and position > p.position:
            p.position, p.behind_s, p.replaced, p.said = position, 0.0, 0, ""
            p.ask_in_s = p.ask_every_s = self.hearing.ask_after_s

    def expect(self, place: Place, end: int) -> None:
        """Somebody knows that there are records up to `end`."""
        p = self._partitions[place]
        p.end = max(p.end, end)

    def complain(self, place: Place, said: str) -> None:
        """The client has said something odd: ask at once."""
        p = self._partitions.get(place)
        if p is not None and p.said != said:
            log.warning("event=broker-error topic=%s partition=%d reason=%r", *place, said)
            p.said, p.ask_in_s = said, 0.0

    def look(self, now_s: float) -> list[Place]:
        """The partitions that are not heard any more, after a poll. Their time begins anew: the client is replaced.

        Raises:
            TopicGone, Recreated: the broker has told so.
            Unavailable: they were not heard through several clients.
        """
        passed_s = 0.0 if self._polled_at_s is None else min(now_s - self._polled_at_s, POLL_GAP_S)
        self._polled_at_s = now_s
        self._clock_s += passed_s
        told = self.broker.answer() if self._asked else None
        if told is not None:
            self._asked = False
            self._take(told)
        due = False
        for p in self._partitions.values():
            p.ask_in_s -= passed_s
            p.behind_s = p.behind_s + passed_s if p.end > p.position else 0.0
            due |= p.ask_in_s <= 0
        if due and not self._asked:
            self._ask()
        return [Place(*place) for place, p in self._partitions.items() if self._is_deaf(Place(*place), p)]

    def _ask(self) -> None:
        """About all at once, as it costs the same; next time later, while there is nothing new."""
        for p in self._partitions.values():
            if p.ask_in_s <= 0:
                p.ask_every_s = min(2 * p.ask_every_s, self.hearing.ask_every_max_s)
            p.ask_in_s = p.ask_every_s
        self._asked = True
        self.broker.ask([Place(*place) for place in self._partitions], self.beside)

    def _is_deaf(self, place: Place, p: _Partition) -> bool:
        if p.behind_s < self.hearing.deaf_s * 2**p.replaced:
            return False
        said = f"{place} has records up to offset {p.end}, but from {p.position} on none came for {p.behind_s:.1f} s"
        if p.replaced >= self.hearing.replacements_max:
            because = f" The client says: {p.said}." if p.said else ""
            raise Unavailable(f"{said}, through {1 + p.replaced} clients.{because}")
        log.warning(
            "event=deaf topic=%s partition=%d position=%d end=%d for_s=%.1f reason=%r",
            *place, p.position, p.end, p.behind_s, "no records came: the client is replaced",
        )  # fmt: skip
        p.behind_s, p.replaced = 0.0, p.replaced + 1
        return True

    def _take(self, told: Told) -> None:
        for place, end in told.ends.items():
            p = self._partitions.get(place)
            if p is not None:
                p.end = end
        for topic in {*(topic for topic, _ in self._partitions), *self.beside}:
            if topic in told.gone:
                self._doubt(topic, "", TopicGone(topic))
            elif topic in told.ids:
                expected, found = self.ids.setdefault(topic, told.ids[topic]), told.ids[topic]
                if found == expected:
                    self._doubts.pop(topic, None)
                else:
                    self._doubt(topic, found, Recreated(topic, expected, found))

    def _doubt(self, topic: str, found: str, error: Exception) -> None:
        before, since_s = self._doubts.get(topic, (None, 0.0))
        if before != found:
            self._doubts[topic] = found, self._clock_s
        elif self._clock_s - since_s >= self.hearing.gone_s:
            raise error
        for p in self._partitions.values():
            p.ask_in_s = p.ask_every_s = self.hearing.ask_after_s / 2


class AskedBroker:
    """Asks by a client of its own, made when it is needed and dropped when it gets no answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._admin: Any = None
        self._topics: dict[str, Any] = {}
        self._ends: dict[Place, Any] = {}
        self._until_s = 0.0

    def ask(self, places: Iterable[Place], beside: Iterable[str] = ()) -> None:
        from confluent_kafka import TopicCollection, TopicPartition
        from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

        if self._topics:
            return
        if self._admin is None:
            self._admin = AdminClient(self._connection.admin())
        asked = list(places)
        names = TopicCollection(sorted({*(place.topic for place in asked), *beside}))
        self._topics = dict(self._admin.describe_topics(names, request_timeout=ASK_TIMEOUT_S))
        specs = {TopicPartition(*place): OffsetSpec.latest() for place in asked}  # type: ignore[no-untyped-call]
        found = self._admin.list_offsets(specs, request_timeout=ASK_TIMEOUT_S) if specs else {}
        self._ends = {Place(at.topic, at.partition): future for at, future in found.items()}
        self._until_s = monotonic() + 2 * ASK_TIMEOUT_S

    def answer(self) -> Told | None:
        futures = [*self._topics.values(), *self._ends.values()]
        if not futures:
            return None
        late = monotonic() > self._until_s
        if not late and not all(future.done() for future in futures):
            return None
        topics, ends, self._topics, self._ends = self._topics, self._ends, {}, {}
        ids, gone = self._identities(topics)
        told = Told({place: f.result().offset for place, f in ends.items() if _came(f)}, ids, frozenset(gone))
        if late or not (told.ids or told.gone):
            self._admin = None
        return told

    def _identities(self, topics: Mapping[str, Any]) -> tuple[dict[str, str], set[str]]:
        from confluent_kafka import KafkaError

        ids, gone = {}, set()
        for name, future in topics.items():
            if _came(future):
                ids[name] = str(future.result().topic_id)
            elif future.done() and future.exception().args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                gone.add(name)
        return ids, gone


def _came(future: Any) -> bool:
    return bool(future.done() and future.exception() is None)
