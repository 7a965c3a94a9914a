"""The audit: from the log alone, was each sample of each epoch committed exactly once?

An accounting of its own: it reads entries, not the ledger's state, and shares only the interval sets with it. The fold
runs beside it for what only a full replay can prove: sequence, hash chain and digests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from antdt_schemas import lineage, records
from antdt_schemas.errors import LogTampered

from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold, Verdict
from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.replay import Anchors, Break, Entries, walk

RANGES_LISTED_MAX = 1000


@dataclass(slots=True)
class Books:
    """What the entries that count say: which positions are in the model, by how many steps."""

    spec: records.JobSpec
    committed: dict[int, IntervalSet] = field(default_factory=dict)
    quarantined: dict[int, IntervalSet] = field(default_factory=dict)
    repeated: list[tuple[int, int, int]] = field(default_factory=list)
    steps: list[tuple[int, ...]] = field(default_factory=list)
    first_step_kept: int = 1
    checkpoints: dict[int, dict[int, IntervalSet]] = field(default_factory=lambda: {0: {}})
    lineage: bytes = lineage.ROOT
    lineages: dict[int, bytes] = field(default_factory=lambda: {0: lineage.ROOT})
    wrong_lineage: list[int] = field(default_factory=list)
    step: int = 0
    refused: int = 0
    decisions: int = 0
    first_lease_ms: int | None = None
    last_commit_ms: int | None = None
    done: str | None = None
    rolled_back: int = 0
    regressions: list[records.Regressed] = field(default_factory=list)

    def enter(self, event: records.Event, now_ms: int) -> None:
        """Book one event of an entry that counts."""
        if isinstance(event, records.Committed):
            self._commit(event)
            self.last_commit_ms = now_ms
        elif isinstance(event, records.Leased) and self.first_lease_ms is None:
            self.first_lease_ms = now_ms
        elif isinstance(event, records.RolledBack):
            self._roll_back(event.step)
        elif isinstance(event, records.Checkpointed):
            self._checkpoint(event.step)
        elif isinstance(event, records.Returned) and event.quarantined:
            self.quarantined.setdefault(event.epoch, IntervalSet()).add(event.start, event.start + event.length)
        elif isinstance(event, records.Readmitted):
            self.quarantined[event.epoch].remove(event.start, event.start + event.length)
        elif isinstance(event, records.Refused):
            self.refused += 1
        elif isinstance(event, records.Regressed):
            self.regressions.append(event)
        elif isinstance(event, records.Done):
            self.done = event.file

    def _commit(self, event: records.Committed) -> None:
        r = event.ranges
        values = iter(r)
        for _, epoch, start, length in zip(values, values, values, values, strict=True):
            inside = self.committed.get(epoch)
            if inside is None:
                inside = self.committed[epoch] = IntervalSet()
            if not inside.try_add(start, start + length):
                self._repeat(epoch, start, start + length)
        self.step += 1
        self.lineage = lineage.next_lineage(self.lineage, self.step, r)
        self.lineages[self.step] = self.lineage
        if event.step != self.step or event.lineage != self.lineage:
            self.wrong_lineage.append(event.step)
        self.steps.append(r)

    def _repeat(self, epoch: int, start: int, end: int) -> None:
        inside = self.committed[epoch]
        for low, high in inside.overlaps(start, end):
            if len(self.repeated) < RANGES_LISTED_MAX:
                self.repeated.append((epoch, low, high))
        for low, high in inside.gaps(start, end):
            inside.add(low, high)

    def _checkpoint(self, step: int) -> None:
        """What the model of this step contains; steps before it need not be kept apart any more."""
        inside = {epoch: s.copy() for epoch, s in self.committed.items()}
        for r in self.steps[max(0, step + 1 - self.first_step_kept) :]:
            for i in range(0, len(r), 4):
                inside[r[i + 1]].remove(r[i + 2], r[i + 2] + r[i + 3])
        self.checkpoints[step] = inside
        for old in sorted(self.checkpoints)[:-8]:
            del self.checkpoints[old]
        oldest = min(self.checkpoints)
        if oldest >= self.first_step_kept:
            del self.steps[: oldest + 1 - self.first_step_kept]
            self.lineages = {s: h for s, h in self.lineages.items() if s >= oldest}
            self.first_step_kept = oldest + 1

    def _roll_back(self, step: int) -> None:
        self.rolled_back += self.step - step
        if step == 0:  # the model before any step is always kept
            self.checkpoints, self.lineages, self.first_step_kept = {0: {}}, {0: lineage.ROOT}, 1
            self.steps.clear()
        inside = self.checkpoints.get(step)
        if inside is None:
            raise LogTampered("The step that the log rolls back to", sorted(self.checkpoints), step)
        self.committed = {epoch: s.copy() for epoch, s in inside.items()}
        self.checkpoints = {s: c for s, c in self.checkpoints.items() if s <= step}
        del self.steps[max(0, step + 1 - self.first_step_kept) :]
        self.step, self.lineage = step, self.lineages[step]

    def missing(self) -> list[tuple[int, int, int]]:
        """(epoch, start, end) of positions that are neither committed nor quarantined."""
        out: list[tuple[int, int, int]] = []
        for epoch in range(self.spec.epochs):
            inside = self.committed.get(epoch, IntervalSet())
            apart = self.quarantined.get(epoch, IntervalSet())
            for start, end in inside.gaps(0, self.spec.samples):
                out += ((epoch, low, high) for low, high in apart.gaps(start, end))
                if len(out) >= RANGES_LISTED_MAX:
                    return out[:RANGES_LISTED_MAX]
        return out


def audit(entries: Entries, anchors: Anchors | None = None) -> dict[str, Any]:
    """Audit a log, given as (offset, entry) from its first entry on; `anchors` are rolling hashes that it must meet.

    Returns a report that is ready for JSON; `exactly_once` is true only when every sample of every epoch is committed
    once and everything else holds. Ranges are [epoch, start, end), at most 1,000 of each kind are listed.
    """
    fold, voids, kept = Fold(cached=False), list[int](), list[Books]()

    def book(offset: int, verdict: Verdict) -> None:
        if verdict is Verdict.GENESIS and fold.genesis is not None:
            kept.append(Books(fold.genesis.spec))
        elif verdict is Verdict.VOID:
            voids.append(offset)
        elif verdict is Verdict.COUNTED:
            assert isinstance(fold.entry, records.Cycle)
            for event in fold.entry.events:
                kept[0].enter(event, fold.entry.now_ms)

    broken = walk(fold, entries, anchors=anchors, each=book)
    return _report(fold, kept[0] if kept else None, broken, voids)


def _report(fold: Fold, books: Books | None, broken: Break | None, voids: list[int]) -> dict[str, Any]:
    state, genesis = fold.state, fold.genesis
    report: dict[str, Any] = {
        "exactly_once": False,
        "job": genesis.job if genesis else None,
        "run_id": genesis.run_id if genesis else None,
        "entries": fold.position.next_offset if broken is None else broken.offset,
        "void_entries": len(voids),
        "void_offsets": voids[:RANGES_LISTED_MAX],
        "head_hash": fold.position.hash.hex(),
        "broken": broken and broken.document(),
        "last_proven": fold.proven if broken is None else broken.proven,
        "fold_version": genesis.fold_version if genesis else None,
    }
    if books is None or state is None:
        return report | {"verdict": f"NOT PROVEN. {broken.sentence() if broken else 'The log holds no job.'}"}
    missing, spec = books.missing(), books.spec
    committed = sum(s.total for s in books.committed.values())
    quarantined = sum(s.total for s in books.quarantined.values())
    proven = not (missing or books.repeated or quarantined or broken or books.wrong_lineage)
    # The accounting and the fold are two pieces of code: they must agree.
    agree = broken or (committed == state.committed_total and books.lineage == state.lineage)
    span = (books.first_lease_ms, books.last_commit_ms)
    report |= {
        "exactly_once": bool(proven and agree),
        "finished": not missing and not broken,
        "epochs": spec.epochs,
        "samples": spec.samples,
        "committed": committed,
        "missing": [list(r) for r in missing],
        "repeated": [list(r) for r in books.repeated],
        "quarantined": [[e, a, b] for e, s in sorted(books.quarantined.items()) for a, b in s],
        "steps": books.step,
        "rolled_back_steps": books.rolled_back,
        "accepted_losses": [
            {"first_lost": e.first_lost, "next_offset": e.next_offset, "author": e.author, "reason": e.reason}
            for e in books.regressions
        ],
        "refused_reports": books.refused,
        "wrong_lineage": books.wrong_lineage[:RANGES_LISTED_MAX],
        "lineage": books.lineage.hex(),
        "digest": rows.digest(state).hex(),
        "file": books.done,
        "train_s": None if None in span else (span[1] - span[0]) / 1000,  # type: ignore[operator]
    }
    return report | {"verdict": _verdict(report, broken, bool(agree))}


def _verdict(report: dict[str, Any], broken: Break | None, agree: bool) -> str:
    if broken is not None:
        return f"NOT PROVEN. {broken.sentence()}"
    if not agree:
        return "NOT PROVEN. The accounting and the replay of the state disagree: report this as a bug."
    if report["exactly_once"]:
        total = report["samples"] * report["epochs"]
        return f"EXACTLY ONCE. Each of {report['samples']} samples in each of {report['epochs']} epochs ({total:,})."
    parts = []
    if report["missing"]:
        parts.append(f"{_count(report['missing']):,} samples are not committed")
    if report["repeated"]:
        parts.append(f"{_count(report['repeated']):,} samples are committed more than once")
    if report["quarantined"]:
        parts.append(f"{_count(report['quarantined']):,} samples are in quarantine")
    if report["wrong_lineage"]:
        parts.append(f"the lineage of {len(report['wrong_lineage'])} steps is wrong")
    return "NOT exactly once: " + ", ".join(parts) + "."


def _count(ranges: list[list[int]]) -> int:
    return sum(end - start for _, start, end in ranges)
