"""What became of a job, in the order in which it did: files of its model with what is in each, and generations.

A projection beside fold and coverage, for documents that other tools read. Which samples are in a file is what the
coverage has of the steps up to its own. Knows no format of any document.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from antdt_schemas import records

from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.line import Bounds, Inside
from antdt_streams.ledger.core.state import State
from antdt_streams.proof.audit import Account
from antdt_streams.proof.coverage import Coverage, Range
from antdt_streams.proof.replay import Break, walk
from antdt_streams.proof.walker import Anchors, Entry, Observer, Read

LISTED_MAX = 1000
STEPS_KEPT = Bounds().steps  # no file of an older one is recorded


@dataclass(frozen=True, slots=True)
class Kept:
    """A durable file that holds the model behind a step which counts. digest: BLAKE2b-128 of the file, empty where the
    log does not have it. offset, hash: of the entry that records it, and the rolling hash behind it. inside: the
    samples in the model, as intervals of each epoch.
    """

    step: int
    lineage: bytes
    file: str
    digest: bytes
    offset: int
    hash: bytes
    time_ms: int
    inside: Inside

    @property
    def ranges(self) -> list[tuple[int, int, int]]:
        """(epoch, start, end) of all of them."""
        return [(epoch, start, end) for epoch, parts in self.inside for start, end in parts]

    @property
    def samples(self) -> int:
        return sum(end - start for _, start, end in self.ranges)


@dataclass(slots=True)
class Generation:
    """From its grant to its end. samples: how many more were committed then; ended_ms: None while it is open."""

    number: int
    members: int
    begun_ms: int
    committed: int
    samples: int = 0
    ended_ms: int | None = None
    reason: str = ""


@dataclass(slots=True)
class Chronicle:
    """fold, coverage: those that read before it. undone: files whose steps were rolled back. skipped: steps that the
    model was left out of, LISTED_MAX at most. steps: the newest ones, as a file may be of a step before these.
    """

    fold: Fold
    coverage: Coverage
    begun_ms: int = 0
    done_ms: int | None = None
    kept: list[Kept] = field(default_factory=list)
    undone: list[Kept] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    steps: deque[tuple[int, list[Range]]] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))

    def on_entry(self, read: Read) -> None:
        """One entry."""
        if isinstance(read.body, records.Genesis) and not self.begun_ms:
            self.begun_ms = read.time_ms
        if not read.events:
            return
        assert isinstance(read.body, records.Cycle) and read.state is not None
        time_ms = read.time_ms or read.body.now_ms
        for event in read.events:
            self._step(event)
        for event in read.events:
            self._enter(event, read, read.state, time_ms)
        if self.generations and self.generations[-1].ended_ms is None:
            newest = self.generations[-1]
            newest.samples = max(0, read.state.shards.committed_total - newest.committed)

    def _step(self, event: records.Event) -> None:
        if isinstance(event, records.Committed):
            self.steps.append((event.step, list(self._pieces(event.ranges))))
        elif isinstance(event, records.RolledBack):
            while self.steps and self.steps[-1][0] > event.step:
                self.steps.pop()

    def _pieces(self, ranges: tuple[int, ...]) -> Iterator[Range]:
        """The samples of a step."""
        if self.coverage.holes is not None:
            yield from ((p.epoch, p.start, p.start + p.length) for p in self.coverage.holes.live(*ranges))
            return
        values = iter(ranges)
        for _, epoch, start, length in zip(values, values, values, values, strict=True):
            yield epoch, start, start + length

    def _inside(self, step: int) -> Inside:
        """What a model of this step has."""
        found = {epoch: parts.copy() for epoch, parts in self.coverage.committed.items()}
        for later, pieces in self.steps:
            for epoch, start, end in pieces if later > step else ():
                found[epoch].remove(start, end)
        return tuple((epoch, tuple(parts)) for epoch, parts in sorted(found.items()) if parts)

    def _enter(self, event: records.Event, read: Read, state: State, time_ms: int) -> None:
        if isinstance(event, records.Granted):
            members, committed = len(event.members), state.shards.committed_total
            self._end(time_ms, "the next one began")
            self.generations.append(Generation(event.generation, members, time_ms, committed))
        elif isinstance(event, records.Closed):
            self._end(time_ms, event.reason)
        elif isinstance(event, records.Checkpointed):
            at = read.offset, self.fold.position.hash, time_ms, self._inside(event.step)
            self.kept.append(Kept(event.step, event.lineage, event.file, event.digest, *at))
        elif isinstance(event, records.RolledBack):
            self.undone += [one for one in self.kept if one.step > event.step]
            self.kept = [one for one in self.kept if one.step <= event.step]
        elif isinstance(event, records.StepSkipped):
            self.skipped = [*self.skipped, event.step][-LISTED_MAX:]
        elif isinstance(event, records.Done):
            self._end(time_ms, "the job is done")
            self.done_ms = time_ms

    def _end(self, time_ms: int, reason: str) -> None:
        if self.generations and self.generations[-1].ended_ms is None:
            self.generations[-1].ended_ms, self.generations[-1].reason = time_ms, reason


@dataclass(frozen=True, slots=True)
class Told:
    """A log that was read to its end, or to where it breaks: its account and its chronicle."""

    account: Account
    chronicle: Chronicle
    broken: Break | None


def tell(entries: Iterable[Entry], anchors: Anchors | None = None) -> Told:
    """Read a log from its first entry on."""
    account = Account()
    assert account.coverage is not None
    chronicle = Chronicle(account.fold, account.coverage)
    observers: list[Observer] = [account.coverage, chronicle]
    broken = walk(account.fold, entries, anchors=anchors, observers=observers)
    return Told(account, chronicle, broken)


def final(told: Told) -> Kept | None:
    """The file that everything is in, once the job is done."""
    state = told.account.fold.state
    done = state.done if state is not None else None
    return next((one for one in reversed(told.chronicle.kept) if one.file == done), None)
