"""How every process reads a topic: one loop, which replaces a client that has fallen deaf.

Owns the calls that fetch, what an error among the records means, and the position of each partition: past records,
past the markers of transactions and past what compaction has removed. Who stays behind a known end (see `hearing`) is
replaced by a new client at the same position, and not waited for: one that is stuck may never end. If that does not
help either, the reader ends, so that somebody else may begin.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar

from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError, Unavailable, UsageError
from antdt_schemas.hearing import AskedBroker, Broker, Hearing, OutOfRange, Place, Recreated, TopicGone, Watch
from antdt_schemas.offsets import watermarks

RECORDS_MAX = 1000
SLICE_S = 0.1
T = TypeVar("T")

__all__ = ["OutOfRange", "Place", "Reader", "Recreated", "TopicGone", "whole"]


def new_consumer(settings: Mapping[str, Any]) -> Any:
    """The one place where consumers are made."""
    import confluent_kafka

    return confluent_kafka.Consumer(dict(settings))


def fetch(
    consumer: Any,
    wait_s: float,
    limit: int = RECORDS_MAX,
    assignment: Callable[[], T | None] = lambda: None,
    dropped: Callable[[Any, T], None] | None = None,
) -> list[Any]:
    """What is there, errors and ends of partitions among it; waits a little for the first. `consume(n, t)` would wait
    the whole t for n messages.

    assignment: what is assigned by a group. A client drops what was fetched before that changes, but cannot take back
    the first: `dropped` is told of that one, and of the assignment that it was of.
    """
    first = consumer.poll(wait_s)
    if first is None:
        return []
    before = assignment()
    rest = consumer.consume(limit - 1, 0)
    if before == assignment():
        return [first, *rest]
    if dropped is not None and before is not None:
        dropped(first, before)
    return list(rest)


def retire(consumer: Any, wait_s: float = 0.0) -> None:
    """End a client that may be stuck: at most `wait_s` are spent on it."""

    def end() -> None:
        with suppress(Exception):  # nobody is left who could mend it
            consumer.close()

    ending = threading.Thread(target=end, name="antdt-retired", daemon=True)
    ending.start()
    ending.join(wait_s)


def sort_out(
    watch: Watch, messages: Iterable[Any], failure_of: Callable[[Place, Any], Exception | None]
) -> tuple[list[Any], Exception | None]:
    """The records among messages, and the first failure. The watch learns how far they reach.

    failure_of: what an error that is no end of a partition amounts to.
    """
    from confluent_kafka import KafkaError

    good, odd, reached = [], [], dict[tuple[str, int], int]()
    for message in messages:
        error, place = message.error(), (message.topic(), message.partition())
        if error is None:
            reached[place] = message.offset() + 1
            good.append(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            reached[place] = message.offset()  # an end has the offset of the record to come
        else:
            odd.append((Place(message.topic() or "", message.partition() or 0), error))
    for place, position in reached.items():
        watch.reached(place, position)
    failures = [failure_of(place, error) for place, error in odd]
    return good, next((failure for failure in failures if failure is not None), None)


class Reader:
    """Reads partitions that are assigned by hand."""

    def __init__(
        self,
        connection: Connection,
        *,
        hearing: Hearing | None = None,
        ids: Mapping[str, str] | None = None,
        beside: Iterable[str] = (),
        broker: Broker | None = None,
        make: Callable[[Mapping[str, Any]], Any] = new_consumer,
        clock: Callable[[], float] = monotonic,
        **over: Any,
    ) -> None:
        """ids, beside: see Watch. broker, make, clock: what is asked, how a client is made, and the time. over:
        settings of the client, with underscores for dots.
        """
        self._settings = connection.consumer(**{**over, "enable.partition.eof": True})
        self._make, self._clock = make, clock
        self.consumer = make(self._settings)
        self._failure: Exception | None = None
        self._watch = Watch(broker or AskedBroker(connection), hearing, ids, beside)

    def assign(self, places: Mapping[Place, int]) -> None:
        """Read these partitions from these offsets on, and no others."""
        for place in self._watch.positions():
            self._watch.end(place)
        for place, offset in places.items():
            self._watch.begin(place, offset)
        self._failure = None
        self._assign()

    def _assign(self) -> None:
        from confluent_kafka import TopicPartition

        self.consumer.assign([TopicPartition(*place, offset) for place, offset in self._watch.positions().items()])

    def identify(self, topic: str, topic_id: str) -> None:
        self._watch.ids[topic] = topic_id

    def positions(self) -> dict[Place, int]:
        return self._watch.positions()

    def position(self, place: Place) -> int:
        """Offset of the next record: all below it was returned, or is not there."""
        return self._watch.position(place)

    def poll(self, wait_s: float, limit: int = RECORDS_MAX) -> list[Any]:
        """Records that are there, in the order of each partition; waits at most `wait_s` for the first one.

        Raises:
            OutOfRange: a partition does not hold the position.
            TopicGone, Recreated: somebody has deleted the topic.
            UsageError: no right to read it.
            Unavailable: the broker has records, and gives them to no client.
        """
        good: list[Any] = []
        if self._failure is None:
            good, self._failure = sort_out(self._watch, fetch(self.consumer, wait_s, limit), self._failure_of)
            self._look()
        if self._failure is not None and not good:
            failure, self._failure = self._failure, None
            raise failure
        return good

    def _look(self) -> None:
        try:
            deaf = self._watch.look(self._clock())
        except AntdtError as error:
            self._failure = self._failure or error
            return
        if deaf:
            retire(self.consumer)
            self.consumer = self._make(self._settings)
            self._assign()

    def read_to(self, place: Place, end: int, timeout_s: float) -> Iterator[Any]:
        """Records of `place` up to its position `end`, and those that came with them.

        Raises:
            Unavailable: nothing came for `timeout_s`.
        """
        until_s, before = self._clock() + timeout_s, self.position(place)
        self._watch.expect(place, end)
        while self.position(place) < end:
            yield from self.poll(SLICE_S)
            if self.position(place) != before:
                until_s, before = self._clock() + timeout_s, self.position(place)
            elif self._clock() > until_s:
                raise Unavailable(f"{place} stopped at offset {before} of {end}: nothing came for {timeout_s:g} s.")

    def _failure_of(self, place: Place, error: Any) -> Exception | None:
        """Whatever passes by itself, or does not, shows by what comes."""
        from confluent_kafka import KafkaError

        if place not in self._watch.positions():
            return None  # of what was read before
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            try:
                return OutOfRange(place, self.position(place), *watermarks(self.consumer, *place))
            except AntdtError as unknown:
                return unknown
        if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            return UsageError(f"The broker does not let this client read {place.topic}: ask for READ on it.")
        self._watch.complain(place, error.str())
        return None

    def close(self) -> None:
        self.consumer.close()


def whole(connection: Connection, place: Place, timeout_s: float, newest: int | None = None) -> Iterator[Any]:
    """Every record that a partition holds now, or those of its `newest` offsets, in order. Compaction leaves gaps, also
    before the end.

    Raises:
        Unavailable: nothing came for `timeout_s` before the end that it had when this began.
    """
    reader = Reader(connection)
    try:
        low, high = watermarks(reader.consumer, *place)
        if low == high:
            return
        reader.assign({place: low if newest is None else max(low, high - newest)})
        for message in reader.read_to(place, high, timeout_s):
            if message.offset() < high:
                yield message
    finally:
        reader.close()
