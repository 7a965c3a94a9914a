"""What a service is to the runtime: a pure function over a state that is kept in rows. Knows no broker and no store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from antdt_schemas.figures import Family
from antdt_schemas.topics import Topic

from antdt_streams.storage.rows import Position


class State(Protocol):
    """What a service remembers. Invariant: loading every row that `changes` ever gave is this state."""

    def changes(self) -> Mapping[bytes, bytes | None]:
        """Rows that changed since the last call, None for one that is gone."""

    def digest(self) -> bytes:
        """Hash of everything; equal for equal histories, in every process."""


@dataclass(frozen=True)
class Service:
    """One service. `version` names the rules of its fold and the form of its rows: state that another version wrote is
    not taken over but rebuilt from the input. It is raised whenever the same input gives other rows or other outputs.

    process(state, record, position, now_ms) changes the state and gives the outputs; `now_ms` is the record's own time
    stamp, and the same history must give the same outputs. It may raise Undecodable for a record that contradicts
    itself, as long as nothing was changed; after any other exception the state is loaded anew.
    Outputs that have a `cause` name their input's position and their index; a record of the input that has one is
    taken once, whatever a writer repeats after a crash.
    follow(state, record, position, now_ms, outputs) stands in for `process` while a state is rebuilt, for records that
    were answered: readers go on from these outputs, so the state must, too. The record is None if retention has removed
    it. A service whose state does not depend on what it has written needs none.
    figures: makes what observes its records, in a process whose metrics somebody wants.
    """

    name: str
    version: int
    input: Topic
    new_state: Callable[[], Any]
    load_state: Callable[[Mapping[bytes, bytes]], Any]
    process: Callable[[Any, Any, Position, int], Sequence[Any]]
    outputs: Mapping[type, Topic] = field(default_factory=dict)
    follow: Callable[[Any, Any, Position, int, Sequence[Any]], None] | None = None
    figures: Callable[[], Observer] | None = None


class Observer(Protocol):
    """Makes figures of what a service does. It changes nothing, and must not raise."""

    def observe(self, record: Any, outputs: Sequence[Any]) -> None:
        """A record is committed, with its outputs. Called by the thread that folds."""

    def __call__(self) -> Iterable[Family]:
        """The figures so far, for another thread."""


class Store(Protocol):
    """Rows on a disk, or what stands for one."""

    def rows(self, prefix: bytes) -> Iterable[tuple[bytes, bytes]]:
        """(key, row) of every key with this prefix, in the order of the keys."""

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Put these rows, and delete those of None: all of them or none."""


class Sink(Protocol):
    """Where outputs go."""

    def send(self, topic: str, value: bytes, partition: int) -> None:
        """Hand over one record; it counts as written only after `flush`."""

    def flush(self) -> None:
        """Return when everything handed over is acknowledged; raise if any of it cannot be."""

    def written(self, topic: str, partition: int, newest: int | None) -> Iterable[bytes | None]:
        """The value of every record that is there now, or of so many newest ones, whoever wrote them, in order."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a partition holds: offsets from `low` up to, not including, `high`."""

    low: int
    high: int


class Owner(Protocol):
    """Keeps the position of each partition. Called from the source's thread."""

    def begin(self, partition: int, assignment: int, bounds: Bounds) -> int:
        """A partition was assigned; the offset to read from. Its batches will carry the number of the assignment."""

    def end(self, partitions: Iterable[int], *, lost: bool) -> None:
        """Partitions go to somebody else; `lost`: they have them already."""

    def positions(self) -> Mapping[int, int]:
        """Next offset of each partition, committed."""


@dataclass(frozen=True, slots=True)
class Raw:
    """One record as it came: its value and the broker's time stamp, in milliseconds."""

    value: bytes | None
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one partition with dense offsets from `first_offset` on.

    assignment: for which turn of owning the partition they were read; they are nobody's once that is over.
    since: where the reader stood when the broker gave the first of them as the next one: from there on, there is none
        before it. By default nothing is known of what is before it.
    """

    partition: int
    first_offset: int
    records: Sequence[Raw]
    assignment: int = 0
    since: int | None = None
