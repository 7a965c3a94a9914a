"""Leases on positions of a topic: nothing of them is taken before it was read, and the ledger knows what was found.

Owns how far each lease was read, what of it may be taken, and that whatever has no record is reported before. Must not
know how a topic is read, nor what a record is: whoever reads asks for the next positions, and says what was there.

Rules
    Positions are read in the order of taking. Where all of them have a record, they may be taken at once.
    What has no record, or one that cannot be decoded, is reported; what was read is taken once that is answered.
    A lease ends before a record that cannot be decoded: the ledger has it in quarantine, and what was behind returns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from antdt_schemas import records
from antdt_schemas.records import Status
from antdt_schemas.space import Run

from antdt.worker.session.asking import ASKED_MAX, Due, Outbox, SessionOptions
from antdt.worker.session.leases import Held, Leases

ENDLESS = 1 << 62
GROWING_WAIT_S = 0.5  # between two questions where a topic has nothing new


class Chunk(NamedTuple):
    """What is to be read next: `length` positions of a lease from `start`, which are offsets from `offset` on."""

    lease: int
    token: int
    epoch: int
    start: int
    length: int
    partition: int
    offset: int


class Faulty(NamedTuple):
    """A record that cannot be decoded."""

    position: int
    key: str
    reason: str


class Found(NamedTuple):
    """What is at the positions of a chunk up to `end`. vacant: (start, length), in order; records are everywhere else,
    but for those that are faulty.
    """

    end: int
    vacant: Sequence[tuple[int, int]] = ()
    faulty: Sequence[Faulty] = ()


@dataclass(slots=True)
class _Progress:
    """Of a lease: all below `read` was read, all below `ready` may be taken. vacant: (start, end), in order."""

    read: int
    ready: int
    vacant: deque[tuple[int, int]] = field(default_factory=deque)


class _Report(NamedTuple):
    chunk: Chunk
    found: Found


class ReadLeases(Leases):
    """`ends`: the next offset of each partition of a topic that grows, as whoever reads it has heard."""

    def __init__(self, spec: records.JobSpec, options: SessionOptions) -> None:
        if spec.growing:
            options = replace(options, wait_retry_s=GROWING_WAIT_S)
        super().__init__(spec, options)
        self.ends: dict[int, int] = {}
        self._runs: list[Run] = []
        self._progress: dict[int, _Progress] = {}
        self._reports: deque[_Report] = deque()
        self._reporting, self._sent = Due(), dict[int, _Report]()
        self._growing, self._told = Due(), dict[int, int]()
        self._telling: dict[int, dict[int, int]] = {}

    def begin(self) -> None:
        """A generation begins. How many positions there will be is not known where the topic grows."""
        super().begin()
        self._growing = Due()
        if self.spec.growing:
            self._samples_total = self._unleased = ENDLESS

    def drop(self) -> None:
        """Leases end with their generation."""
        super().drop()
        self._runs, self._progress = [], {}
        self._reports.clear()
        self._reporting, self._sent, self._telling = Due(), {}, {}

    # -- taking

    @property
    def takeable(self) -> int:
        """Positions that may be taken now."""
        return self._of(self.held[0]).ready - self.held[0].next if self.held else 0

    def _reach(self, held: Held, samples: int) -> tuple[int, int]:
        """Up to the record that fills the step, and over what has none behind it."""
        progress, at, count = self._of(held), held.next, 0
        vacant = progress.vacant
        while vacant and vacant[0][1] <= at:
            vacant.popleft()
        for low, high in vacant:
            if low >= progress.ready or count + low - at > samples:
                break
            count, at = count + low - at, high
        stop = min(progress.ready, at + samples - count)
        return count + stop - at, stop

    def _of(self, held: Held) -> _Progress:
        return self._progress.setdefault(held.lease, _Progress(held.next, held.next))

    # -- reading

    @property
    def live(self) -> set[int]:
        """Leases of which something may still be loaded."""
        return set(self._by_lease)

    def to_read(self, length: int = ENDLESS) -> Chunk | None:
        """What is to be read next, of at most so many positions, all of one partition; None where there is nothing.

        Whoever reads need not come to its end at once.
        """
        for held in self.held:
            at = self._of(held).read
            if at < held.end:
                return self._chunk(held, at, length)
        return None

    def _chunk(self, held: Held, at: int, length: int) -> Chunk | None:
        run = next((run for run in self._runs if run.start <= at < run.start + run.length), None)
        if run is None:
            return None
        within = at - run.start
        most = min(length, held.end - at, run.length - within)
        return Chunk(held.lease, held.token, held.epoch, at, most, run.partition, run.offset + within)

    def was_read(self, chunk: Chunk, found: Found) -> bool:
        """This is there. Returns whether anybody still wants it."""
        progress, held = self._progress.get(chunk.lease), self._by_lease.get(chunk.lease)
        if progress is None or held is None or progress.read != chunk.start or held.token != chunk.token:
            return False
        progress.read = found.end
        progress.vacant.extend((start, start + length) for start, length in found.vacant)
        if found.faulty:
            progress.read = held.end  # it ends before that
        if found.vacant or found.faulty:
            self._reports.append(_Report(chunk, found))
        elif not any(report.chunk.lease == chunk.lease for report in self._reports):
            progress.ready = found.end
        return True

    # -- what comes and goes

    def take_answer(self, reply: records.Reply) -> None:
        """With the leases, where in the topic they are."""
        if reply.number in self._asked and reply.places:
            flat = reply.places
            self._runs = [Run(*flat[i : i + 4]) for i in range(0, len(flat), 4)]
        super().take_answer(reply)

    def is_release(self, reply: records.Reply) -> bool:
        """Also: whether it answers a report, or what was said of a topic that grows."""
        report, ends = self._sent.get(reply.number), self._telling.get(reply.number)
        if reply.status is not Status.OK or (report is None and ends is None):
            return super().is_release(reply)
        if ends is not None:
            self._told, self._telling = ends, {}
            self._growing.answered()
        elif report is not None:
            self._sent = {number: one for number, one in self._sent.items() if one is not report}
            if self._reports and self._reports[0] is report:
                self._reports.popleft()
                self._known(report)
            self._reporting.answered()
        return True

    def _known(self, report: _Report) -> None:
        """The ledger knows of this."""
        chunk, found = report
        progress, held = self._progress.get(chunk.lease), self._by_lease.get(chunk.lease)
        if progress is None or held is None or held.token != chunk.token:
            return
        if found.faulty:
            end = min(one.position for one in found.faulty)
            self.untaken -= held.end - end
            held.end = progress.read = end
            progress.vacant = deque((low, min(high, end)) for low, high in progress.vacant if low < end)
            if held.next == end and held in self.held:
                self.held.remove(held)
        others = any(one.chunk.lease == chunk.lease for one in self._reports)
        progress.ready = min(held.end, found.end if others else progress.read)

    def release(self, now_s: float, generation: int, outbox: Outbox) -> None:
        """Also says what was found, and up to where a topic has grown."""
        super().release(now_s, generation, outbox)
        due = self._reporting
        if self._reports and not (due.tries and now_s - due.at_s < due.pause_s(self.options)):
            report = self._reports[0]
            self._sent[outbox.post(_examined(report, generation), due, now_s)] = report
            if len(self._sent) > ASKED_MAX:
                del self._sent[min(self._sent)]
        due = self._growing
        if self.ends != self._told and not (due.tries and now_s - due.at_s < due.pause_s(self.options)):
            ends = dict(self.ends)
            body = records.Grown(generation, tuple(number for pair in sorted(ends.items()) for number in pair))
            self._telling[outbox.post(body, due, now_s)] = ends
            if len(self._telling) > ASKED_MAX:
                del self._telling[min(self._telling)]


def _examined(report: _Report, generation: int) -> records.Examined:
    (lease, token, *_), found = report
    vacant = tuple(number for place in found.vacant for number in place)
    faulty = tuple(zip(*found.faulty, strict=True)) or ((), (), ())
    return records.Examined(generation, lease, token, vacant, *faulty)
