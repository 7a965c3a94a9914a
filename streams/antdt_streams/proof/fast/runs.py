"""Runs: plain entries folded in many at once, with the outcome of one after the other.

What may follow is said in Fold and State. Here are the same rules over columns, for leases that are cut from an epoch's
cursor and commits of them; whether an entry breaks one is decided here, how that is reported is not: a run ends before
the first entry that does not follow, or that only State can tell of, and Fold reads that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from antdt_schemas import lineage

from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.line import Step
from antdt_streams.ledger.core.samples import Lease
from antdt_streams.ledger.core.shards import Shards, token_of
from antdt_streams.ledger.core.state import State
from antdt_streams.proof.fast import columns
from antdt_streams.proof.fast.columns import Columns, Numbers

FEWEST = 16  # entries that are worth it
TRIES = 4  # a run that is shortened this often is left to Fold
NOWHERE = -(1 << 62)


class _Known(NamedTuple):
    """Leases before a run touches them. row: among those that it begins itself, or -1. end: `NOWHERE` of a lease
    that nobody knows. since: the place of the event that began it, -1 if that is before the run.
    """

    row: Numbers
    front: Numbers
    end: Numbers
    epoch: Numbers
    since: Numbers


class Run:
    """The entries from `first` to before `last` of some columns."""

    def __init__(self, of: Columns, first: int, last: int) -> None:
        self.cycles, self.first, self.last = of.cycles, first, last
        self.l0, self.l1 = (int(n) for n in np.searchsorted(of.leases.entry, (first, last)))
        self.c0, self.c1 = (int(n) for n in np.searchsorted(of.commits.entry, (first, last)))
        self.leases, self.commits = of.leases, of.commits
        self._lineages: dict[bytes, list[bytes]] = {}  # several readers ask, of the same lineage before

    def __len__(self) -> int:
        return self.last - self.first

    @property
    def steps(self) -> int:
        """How many steps are committed."""
        return self.c1 - self.c0

    @property
    def first_lease_ms(self) -> int | None:
        """When its first lease began."""
        return int(self.cycles.now_ms[self.leases.entry[self.l0]]) if self.l0 < self.l1 else None

    @property
    def last_commit_ms(self) -> int:
        """When its last step was committed."""
        return int(self.cycles.now_ms[self.commits.entry[self.c1 - 1]])

    @cached_property
    def events(self) -> int:
        """Of all entries."""
        return int(self.cycles.events[self.first : self.last].sum())

    @cached_property
    def counts(self) -> Numbers:
        """Ranges of each step."""
        return self.commits.count[self.c0 : self.c1]

    @cached_property
    def ranges(self) -> Numbers:
        """Of all steps, in their order: lease, epoch, start, length."""
        if not self.steps:
            return self.commits.ranges[:0]
        first = int(self.commits.first[self.c0])
        return self.commits.ranges[first : first + int(self.counts.sum())]

    @cached_property
    def step_numbers(self) -> Numbers:
        """The steps."""
        return self.commits.step[self.c0 : self.c1]

    @cached_property
    def lineages(self) -> list[bytes]:
        """What the log says is the lineage after each step."""
        return self.commits.lineage[self.c0 : self.c1]

    def lineages_after(self, previous: bytes) -> list[bytes]:
        """What it is, if `previous` is the lineage before the first one."""
        found = self._lineages.get(previous)
        if found is None:
            found = self._lineages[previous] = lineage.lineages(previous, *self._packed())
        return found

    def _packed(self) -> tuple[bytes, list[int]]:
        # Each step is its number and those of its ranges, as `lineage.next_lineage` packs them.
        widths = 4 * self.counts + 1
        ends = np.cumsum(widths)
        packed = np.empty(int(ends[-1]) if ends.size else 0, ">i8")
        heads = ends - widths
        packed[heads] = self.step_numbers
        packed[np.delete(np.arange(packed.size), heads)] = self.ranges.reshape(-1)
        return packed.tobytes(), (8 * ends).tolist()

    def compositions(self, most: int) -> list[tuple[int, ...]]:
        """The flat ranges of the last steps, at most so many."""
        counts = self.counts[max(self.steps - most, 0) :]
        flat = self.ranges[self.ranges.shape[0] - int(counts.sum()) :].reshape(-1).tolist()
        ends = accumulate((4 * counts).tolist(), initial=0)
        return [tuple(flat[low:high]) for low, high in pairwise(ends)]

    @cached_property
    def unions(self) -> dict[int, list[tuple[int, int]]]:
        """What all steps together commit of each epoch: [start, end) in order, no two of which touch.

        Raises:
            ValueError: they commit a position twice.
        """
        found = {}
        for epoch in np.unique(self.ranges[:, 1]).tolist():
            parts = columns.union(self.ranges[self.ranges[:, 1] == epoch, 2:])
            if parts is None:
                raise ValueError(f"a position of epoch {epoch} is committed twice")
            found[epoch] = parts
        return found


def read(fold: Fold, of: Columns, payloads: Sequence[bytes], first: int, last: int) -> Run | None:
    """Fold in as many of the entries from `first` to before `last` as follow, or nothing and return None.

    payloads: all entries that `of` was decoded from; that at `first` is the next one of the log.
    """
    state, office = fold.state, fold.office
    if state is None or office is None or fold.cached or type(state.shards) is not Shards:
        return None  # what is dealt ahead is leased from a part, not from the cursor
    for _ in range(TRIES):
        if last - first < FEWEST:
            return None
        run = Run(of, first, last)
        follows = _Follows(fold, state, run)
        if (limit := follows.limit()) == last:
            break
        last = limit
    else:
        return None
    position = fold.position
    hashes = lineage.chains(position.hash, position.next_offset, payloads[first:last])
    right = (of.cycles.previous_hash[first:last] == columns.words_of([position.hash, *hashes[:-1]])).all(axis=1)
    lineages = run.lineages_after(state.line.lineage)
    if not right.all() or lineages != run.lineages or not follows.disjoint():
        return None
    follows.apply(hashes)
    fold.pass_over(hashes, int(of.cycles.previous_offset[last - 1]), run.events)
    return run


class _Follows:
    """Whether a run follows from a state, and what comes of it."""

    def __init__(self, fold: Fold, state: State, run: Run) -> None:
        self.fold, self.state, self.run = fold, state, run
        x, part = run.leases, slice(run.l0, run.l1)
        # Of each lease that the run begins; `fronts` moves with its commits.
        self.numbers, self.fronts, self.ends = x.lease[part], x.start[part].copy(), x.start[part] + x.length[part]
        self.cursors: dict[int, int] = {}
        self.old_fronts: dict[int, int] = {}

    def limit(self) -> int:
        """The first entry that does not follow, or the end of the run. Hashes, lineages and overlaps are not looked
        at.
        """
        wrong = np.concatenate((self._cycles(), self._leases(), self._commits(), self._ranges()))
        return int(wrong.min(initial=self.run.last))

    def _cycles(self) -> Numbers:
        """Entries that are not the next ones of the leader in office."""
        run, state, office = self.run, self.state, self.fold.office
        assert office is not None
        cycles, part, each = run.cycles, slice(run.first, run.last), np.arange(len(run))
        requests = cycles.requests_next[part]
        ok = cycles.epoch_offset[part] == office.offset
        ok &= (cycles.epoch_hash[part] == columns.words_of([office.hash])).all(axis=1)
        ok &= cycles.sequence[part] == state.sequence + 1 + each
        ok &= cycles.previous_offset[part] == self.fold.position.next_offset - 1 + each
        ok &= requests >= np.append(state.requests_next, requests[:-1])
        return run.first + np.flatnonzero(~ok)

    def _leases(self) -> Numbers:
        """Entries with leases that are not the next ones from the cursor of their epoch."""
        run, state = self.run, self.state
        x, part = run.leases, slice(run.l0, run.l1)
        shards, start, epoch = x.shards[part], x.start[part], x.epoch[part]
        ok = self.numbers == state.shards.next_lease + np.cumsum(shards) - shards
        ok &= (shards > 0) & (self.ends > start) & (self.ends <= state.shards.samples)
        ok &= state.members.open & (x.generation[part] == state.members.generation)
        for number in np.unique(epoch).tolist():
            mine, known = epoch == number, state.shards.epochs.get(number)
            ends = self.ends[mine]
            ok[mine] &= start[mine] == np.append(known.cursor if known else 0, ends[:-1])
            self.cursors[number] = int(ends[-1])
        wrong: Numbers = x.entry[part][~ok]
        return wrong

    def _commits(self) -> Numbers:
        """Entries with commits that are not the next steps."""
        run, state = self.run, self.state
        x, part = run.commits, slice(run.c0, run.c1)
        ok = run.step_numbers == state.line.committed + 1 + np.arange(run.steps)
        ok &= state.members.open & (x.generation[part] == state.members.generation)
        wrong: Numbers = x.entry[part][~ok]
        return wrong

    def _ranges(self) -> Numbers:
        """Entries with ranges that are not the front of a lease."""
        run = self.run
        if not run.steps:
            return run.ranges[:, 0]
        # Every lease with its ranges side by side, in the order of the log.
        order = np.argsort(run.ranges[:, 0], kind="stable")
        number, epoch, start, length = run.ranges[order].T
        new = np.append(True, number[1:] != number[:-1])
        first, lease = np.flatnonzero(new), np.cumsum(new) - 1
        known = self._known(number[first])
        ends = start + length
        expected = np.append(0, ends[:-1])
        expected[first] = known.front
        place = np.repeat(run.commits.place[run.c0 : run.c1], run.counts)[order]
        ok = (start == expected) & (length > 0) & (ends <= known.end[lease])
        ok &= (epoch == known.epoch[lease]) & (place > known.since[lease])
        fronts = np.append(ends[first[1:] - 1], ends[-1:])
        mine = known.row >= 0
        self.fronts[known.row[mine]] = fronts[mine]
        self.old_fronts = dict(zip(number[first][~mine].tolist(), fronts[~mine].tolist(), strict=True))
        wrong: Numbers = np.repeat(run.commits.entry[run.c0 : run.c1], run.counts)[order][~ok]
        return wrong

    def _known(self, numbers: Numbers) -> _Known:
        run, state = self.run, self.state
        row = np.searchsorted(self.numbers, numbers)
        mine = np.append(self.numbers, -1)[row] == numbers
        front, epoch, since = np.zeros_like(numbers), np.zeros_like(numbers), np.full_like(numbers, -1)
        end = np.full_like(numbers, NOWHERE)
        row[~mine] = -1
        at = row[mine] + run.l0
        front[mine], end[mine] = run.leases.start[at], self.ends[row[mine]]
        epoch[mine], since[mine] = run.leases.epoch[at], run.leases.place[at]
        for n in np.flatnonzero(~mine).tolist():
            lease = state.shards.leases.get(int(numbers[n]))
            if lease is not None:
                front[n], end[n], epoch[n] = lease.front, lease.end, lease.epoch
        return _Known(row, front, end, epoch, since)

    def disjoint(self) -> bool:
        """Whether no position is committed twice."""
        epochs = self.state.shards.epochs
        try:
            unions = self.run.unions.items()
        except ValueError:
            return False
        return not any(n in epochs and epochs[n].committed.overlaps(*part) for n, parts in unions for part in parts)

    def apply(self, hashes: Sequence[bytes]) -> None:
        """Change the state. hashes: the rolling hash after each entry."""
        run, state, shards = self.run, self.state, self.state.shards
        assert isinstance(shards, Shards)
        for number, cursor in self.cursors.items():
            state.shards.epoch(number).cursor = cursor
        for number, parts in run.unions.items():
            committed = state.shards.epoch(number).committed
            for start, end in parts:
                committed.add(start, end)
        for number, front in self.old_fronts.items():
            shards.move_front(number, front)
        leases = run.leases
        for n in np.flatnonzero(self.fronts < self.ends).tolist():
            at = run.l0 + n
            shards.hold(
                int(self.numbers[n]),
                Lease(
                    int(leases.shards[at]),
                    leases.incarnation[at],
                    int(leases.generation[at]),
                    int(leases.epoch[at]),
                    int(leases.start[at]),
                    int(self.fronts[n]),
                    int(self.ends[n]),
                    token_of(hashes[int(leases.entry[at]) - run.first]),
                ),
            )
        state.shards.next_lease += int(leases.shards[run.l0 : run.l1].sum())
        if run.steps:
            state.line.plan = int(run.commits.plan[run.c1 - 1])
            state.shards.committed_total += int(run.ranges[:, 3].sum())
            self._steps()
        state.sequence += len(run)
        state.requests_next = int(run.cycles.requests_next[run.last - 1])
        state.now_ms = max(state.now_ms, int(run.cycles.now_ms[run.first : run.last].max()))

    def _steps(self) -> None:
        """Remember the last steps, as many as State would have kept."""
        run, state, last = self.run, self.state, int(self.run.step_numbers[-1])
        compositions = run.compositions(state.line.bounds.steps)
        if len(compositions) < run.steps:
            state.line.forget_steps()
        numbers = range(last - len(compositions) + 1, last + 1)
        state.line.remember(list(map(Step, numbers, compositions, run.lineages[-len(compositions) :])))
        state.line.committed, state.line.lineage = last, run.lineages[-1]
