"""The audit: from the log alone, was each sample of each epoch committed exactly once?

The books are an accounting of their own. The fold runs beside them for what only a full replay can prove: sequence,
hash chain and digests.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from antdt_schemas import records

from antdt_streams.ledger.core import evidence, rows
from antdt_streams.ledger.core.fold import Fold, Verdict
from antdt_streams.proof.books import RANGES_LISTED_MAX, Books
from antdt_streams.proof.fast.runs import Run
from antdt_streams.proof.replay import Break, walk
from antdt_streams.proof.walker import Anchors, Entries


@dataclass(slots=True)
class Account:
    """What an audit knows: the fold, and beside it the books and the offsets of void entries.

    accounting: a mere replay keeps no books.
    """

    accounting: bool = True
    fold: Fold = field(default_factory=lambda: Fold(cached=False))
    books: Books | None = None
    voids: list[int] = field(default_factory=list)

    def read(self, entries: Entries, anchors: Anchors | None = None) -> Break | None:
        """Read a log, or a part of one, to its end. Returns where it breaks, or None."""
        return walk(self.fold, entries, anchors=anchors, observer=self)

    def entry(self, verdict: Verdict) -> None:
        """Book the entry that the fold has read."""
        if verdict is Verdict.COUNTED:
            body, books = self.fold.entry, self.books
            assert isinstance(body, records.Cycle)
            if books is not None:
                for event in body.events:
                    books.enter(event, body.now_ms)
        elif verdict is Verdict.VOID:
            self.voids.append(self.fold.position.next_offset - 1)
        elif verdict is Verdict.GENESIS and self.accounting:
            assert self.fold.genesis is not None
            self.books = Books(self.fold.genesis.spec)

    def run(self, run: Run) -> None:
        """Book all entries of a run."""
        if self.books is not None:
            self.books.enter_run(run)


def audit(entries: Entries, anchors: Anchors | None = None) -> dict[str, Any]:
    """Audit a log, given as (offset, entry) from its first entry on; `anchors` are rolling hashes that it must meet.

    Returns a report that is ready for JSON; `exactly_once` is true only when every sample of every epoch is committed
    once and everything else holds. Ranges are [epoch, start, end), at most 1,000 of each kind are listed.
    """
    account = Account()
    broken = account.read(entries, anchors)
    return report_of(account, broken)


def report_of(account: Account, broken: Break | None) -> dict[str, Any]:
    """The report of an audit that has read a log to its end, or to where it breaks."""
    fold, books, voids = account.fold, account.books, account.voids
    state, genesis = fold.state, fold.genesis
    report: dict[str, Any] = {
        "exactly_once": False,
        "job": genesis.job if genesis else None,
        "run_id": genesis.run_id if genesis else None,
        "entries": fold.position.entries if broken is None else broken.offset,
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
    agree = broken or (committed == state.shards.committed_total and books.lineage == state.line.lineage)
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
        "faults": evidence.faults(state),
        "steps": books.step,
        "skipped_steps": books.skipped,
        "rolled_back_steps": books.rolled_back,
        "accepted_losses": [
            {"first_lost": e.first_lost, "next_offset": e.next_offset, "author": e.author, "reason": e.reason}
            for e in books.regressions
        ],
        "requests_moved": [{"next": e.next, "reason": e.reason} for e in books.moves],
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
