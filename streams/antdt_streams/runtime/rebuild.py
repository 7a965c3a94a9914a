"""What a service had written before it rebuilds its state: none of it is written again, and its state follows it.

A state that other rules wrote is not taken over: the input is replayed from its beginning. Under the new rules the same
records may give other outputs, but readers have taken those of the old rules and go on from them. So whatever the
topics of the service hold already stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from antdt_schemas import codec
from antdt_schemas.errors import Undecodable
from antdt_schemas.records import DeadLetter
from antdt_schemas.topics import DEAD_LETTERS

from antdt_streams.runtime.service import Service, Sink
from antdt_streams.storage.rows import NOWHERE, Marks

# The newest cause is among so many records, whatever copies of one batch a writer that was restarted, or one that woke
# up late, has left behind it.
TAIL_RECORDS = 5_000


@dataclass(frozen=True, slots=True)
class Outdated:
    """State that was written by another version. It had processed the records below `next_offset`."""

    reason: str
    next_offset: int


@dataclass(slots=True)
class Written:
    """The outputs of one input partition that are written.

    below: everything that the input's records below this offset gave is written.
    marks: full name of an output topic -> (offset, index) of the newest cause in it.
    answers, answered: of a service that follows what was written: its outputs by the offset of their cause, and the
        newest of these offsets. They take as much memory as these records have.
    """

    below: int
    marks: Marks = field(default_factory=Marks)
    answers: dict[int, list[Any]] = field(default_factory=dict)
    answered: int = -1

    @classmethod
    def read(cls, service: Service, job: str, sink: Sink, partition: int, below: int) -> Written:
        """What is in the topics of a service now, repeats dropped as every reader does.

        Raises:
            Unavailable: a topic cannot be read to its end.
        """
        found = cls(below)
        for record, topic in service.outputs.items():
            newest = None if service.follow is not None else TAIL_RECORDS
            for output in _decoded(sink.written(topic.name(job), partition, newest), record):
                cause = output.cause
                if cause.partition != partition or not found.marks.note(topic.name(job), (cause.offset, cause.index)):
                    continue
                if service.follow is not None:
                    found.answers.setdefault(cause.offset, []).append(output)
                    found.answered = cause.offset
        for letter in _decoded(sink.written(DEAD_LETTERS.name(job), partition, TAIL_RECORDS), DeadLetter):
            mine = (service.name, service.input.name(job), partition)
            if (letter.service, letter.topic, letter.partition) == mine:
                found.marks.note(DEAD_LETTERS.name(job), (letter.offset, 0))
        return found

    def has(self, topic: str, offset: int, index: int) -> bool:
        """Whether this output of the record at `offset` is written, or was decided against."""
        return offset < self.below or (offset, index) <= self.marks.get(topic, NOWHERE)

    def is_answered(self, offset: int) -> bool:
        """Whether a service that follows has answered the record at `offset`."""
        return offset < self.below or offset <= self.answered

    def is_over(self, next_offset: int) -> bool:
        """Whether whatever the records from `next_offset` on give is new."""
        return next_offset >= self.below and all(offset < next_offset for offset, _ in self.marks.values())


def _decoded(values: Iterable[bytes | None], record: type) -> Iterator[Any]:
    for value in values:
        try:
            yield codec.decode(value, record)
        except Undecodable:  # whoever wrote that, no reader has taken it
            continue
