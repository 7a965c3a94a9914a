"""Figures of a ledger: the job as its log has it, and how the ledger itself fares.

They are taken by the ledger's own thread between two acts, at most once a second, and only read by others: the state is
nobody else's to look at while it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from antdt_schemas import figures
from antdt_schemas.figures import Family, Histogram, Kind, Lag, Metric
from antdt_schemas.topics import REQUESTS

from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.life import Life, Moment

EVERY_S = 1.0
DIGEST_BITS = 48  # what a float has exactly

OFFSET = Metric(
    "antdt_log_offset", Kind.GAUGE, "Offset of the next entry of the shard log, as this ledger has read it."
)
PROVEN = Metric("antdt_log_proven_offset", Kind.GAUGE, "Newest offset that a later entry has proven; -1: none yet.")
DIGEST = Metric(
    "antdt_log_digest",
    Kind.GAUGE,
    f"First {DIGEST_BITS} bits of the rolling hash of the log below antdt_log_offset. The state follows from the log: "
    "ledgers at the same offset have the same number, or one of them is wrong.",
)
ENTRIES = Metric("antdt_log_entries_total", Kind.COUNTER, "Entries of the log that count, from its first one on.")
VOID = Metric(
    "antdt_void_entries_total", Kind.COUNTER, "Entries of former leaders, or of somebody else: they count for nothing."
)
DOUBTS = Metric("antdt_log_doubts", Kind.GAUGE, "Entries that contradict the log, and that nothing has explained.")
OFFICES = Metric("antdt_offices_total", Kind.COUNTER, "How often this process has taken office.")
CYCLE = Metric(
    "antdt_cycle_seconds", Kind.HISTOGRAM, "From a decision until its entry is acknowledged, read back and saved."
)
SAMPLES = Metric(
    "antdt_samples",
    Kind.GAUGE,
    "Samples of all epochs by where they are; the states add up to all of them.",
    ("state",),
)
STEP = Metric("antdt_committed_step", Kind.GAUGE, "Newest committed step; a roll-back takes it back.")
SKIPPED = Metric("antdt_skipped_steps_total", Kind.COUNTER, "Committed steps that the model was left out of.")
CHECKPOINT = Metric("antdt_checkpoint_step", Kind.GAUGE, "Step of the newest checkpoint; 0 while there is none.")
PLAN = Metric("antdt_committed_plan", Kind.GAUGE, "Number of the plan of the newest committed step.")
GENERATION = Metric("antdt_generation", Kind.GAUGE, "Number of the newest generation.")
MEMBERS = Metric("antdt_members", Kind.GAUGE, "Members of the newest generation that live; 0 where it is closed.")
ATTACHED = Metric("antdt_attached_workers", Kind.GAUGE, "Workers beside servers that are the members.")
REFUSED = Metric("antdt_refused_requests_total", Kind.COUNTER, "Requests that were refused, as the log has it.")
DONE = Metric("antdt_job_done", Kind.GAUGE, "1 once the job is done, else 0.")


class LedgerFigures:
    """Of one process. known_end: of the requests, as was told last."""

    def __init__(
        self,
        known_end: Callable[[], int | None],
        buried: Callable[[], int],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._known_end, self._buried, self._clock = known_end, buried, clock
        self._cycles, self._lag = Histogram(), Lag()
        self._begun_s: float | None = None
        self._looked_s = self._turned_s = clock()
        self._offices = self._rebuilds = 0
        self._found: list[Family] = [figures.LEADER.of(0)]

    def look(self, life: Life, moment: Moment) -> None:
        """Between two acts of a life."""
        now_s = self._turned_s = self._clock()
        if moment is Moment.DECIDED:
            self._begun_s = now_s
        elif moment is Moment.SAVED and self._begun_s is not None:
            self._cycles.observe(now_s - self._begun_s)
            self._begun_s = None
        elif moment is Moment.IN_OFFICE:
            self._offices += 1
        elif moment is Moment.CAUGHT_UP:
            self._rebuilds += life.start.from_nothing
        if now_s - self._looked_s >= EVERY_S or moment in (Moment.CAUGHT_UP, Moment.IN_OFFICE):
            self._looked_s = now_s
            self._found = self._take(life, now_s)

    def __call__(self) -> list[Family]:
        return [
            *self._found,
            figures.LOOP_AGE.of(max(0.0, self._clock() - self._turned_s)),
            (CYCLE, {(): self._cycles}),
            OFFICES.of(self._offices),
            figures.REBUILDS.of(self._rebuilds),
            figures.DEAD_LETTERS.of(self._buried()),
        ]

    def _take(self, life: Life, now_s: float) -> list[Family]:
        fold = life.office.fold if life.leads else life.read
        found = [figures.LEADER.of(float(life.leads))]
        if fold is None:
            return found
        found += _of_log(fold)
        if fold.state is not None:
            found += _of_state(fold.state)
            end = self._known_end() if life.leads else None
            if end is not None:
                self._lag.look(now_s, fold.state.requests_next, end)
                found += figures.lag_of(self._lag, REQUESTS.suffix)
        return found


def _of_log(fold: Fold) -> list[Family]:
    return [
        OFFSET.of(fold.position.next_offset),
        PROVEN.of(fold.proven),
        DIGEST.of(int.from_bytes(fold.position.hash[: DIGEST_BITS // 8], "big")),
        ENTRIES.of(fold.counted_entries),
        VOID.of(fold.void_entries),
        DOUBTS.of(len(fold.doubts)),
    ]


def _of_state(state: State) -> list[Family]:
    shards, line, members = state.shards, state.line, state.members
    leased = sum(lease.end - lease.front for lease in shards.leases.values())
    committed, quarantined = shards.committed_total, shards.quarantined_total
    left = state.samples_total - committed - leased - quarantined
    counted = {"committed": committed, "leased": leased, "quarantined": quarantined, "left": left}
    living = sum(not members.incarnations[name].gone for name in members.group) if members.open else 0
    return [
        (SAMPLES, {(where,): count for where, count in counted.items()}),
        STEP.of(line.committed),
        SKIPPED.of(line.skipped),
        CHECKPOINT.of(max((one.step for one in line.checkpoints), default=0)),
        PLAN.of(line.plan),
        GENERATION.of(members.generation),
        MEMBERS.of(living),
        ATTACHED.of(len(members.attached)),
        REFUSED.of(state.refused),
        DONE.of(float(state.done is not None)),
    ]
