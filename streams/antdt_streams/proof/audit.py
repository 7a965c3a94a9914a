"""The audit: from the log alone, was each sample of each epoch committed exactly once?

The state of a full replay, with its sequence, hash chain and digests, and beside it the coverage, which counts anew
what the state asserts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from antdt_schemas import records
from antdt_schemas.space import TOPIC
from antdt_schemas.strategies import WATCHED

from antdt_streams.ledger.core import evidence, rows
from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.state import State
from antdt_streams.proof.coverage import RANGES_LISTED_MAX, Coverage
from antdt_streams.proof.replay import Break, walk
from antdt_streams.proof.walker import Anchors, Entries

WATCHED_SAID = (
    "This job is only watched: a framework has handed out its samples, so this log says who took part, and of no "
    "sample whether it was trained on."
)


@dataclass(slots=True)
class Account:
    """What an audit knows: the fold, and beside it the coverage, which a mere replay does without."""

    coverage: Coverage | None = field(default_factory=Coverage)
    fold: Fold = field(default_factory=lambda: Fold(cached=False))

    def read(self, entries: Entries, anchors: Anchors | None = None) -> Break | None:
        """Read a log, or a part of one, to its end. Returns where it breaks, or None."""
        return walk(self.fold, entries, anchors=anchors, observers=[] if self.coverage is None else [self.coverage])


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
    fold, coverage = account.fold, account.coverage
    assert coverage is not None, "a replay is no audit"
    state, genesis = fold.state, fold.genesis
    report: dict[str, Any] = {
        "exactly_once": False,
        "job": genesis.job if genesis else None,
        "run_id": genesis.run_id if genesis else None,
        "entries": fold.position.entries if broken is None else broken.offset,
        "void_entries": len(coverage.voids),
        "void_offsets": coverage.voids[:RANGES_LISTED_MAX],
        "head_hash": fold.position.hash.hex(),
        "broken": broken and broken.document(),
        "last_proven": fold.proven if broken is None else broken.proven,
        "fold_version": genesis.fold_version if genesis else None,
    }
    if state is None:
        return report | {"verdict": f"NOT PROVEN. {broken.sentence() if broken else 'The log holds no job.'}"}
    counted = _counted(coverage, state.spec)
    wrong = any(counted[what] for what in ("missing", "repeated", "quarantined", "wrong_lineage"))
    watched = state.spec.strategy == WATCHED
    proven = not (broken or wrong or coverage.grows or watched)
    # Coverage and state are two pieces of code: they must agree.
    agree = broken is not None or coverage.agrees(state)
    report |= counted | _of_topic(coverage, state)
    report |= {
        "exactly_once": proven and agree,
        "watched": watched,
        "finished": not (counted["missing"] or broken or coverage.grows or watched),
        "faults": evidence.faults(state),
        "batch_sizes": resizes(state),
        "skipped_steps": state.line.skipped,
        "refused_reports": state.refused,
        "digest": rows.digest(state).hex(),
        "file": state.done,
    }
    return report | {"verdict": _verdict(report, broken, agree)}


def _of_topic(coverage: Coverage, state: State) -> dict[str, Any]:
    """Where the positions of a topic are in it, as [partition, first offset, next offset], and what was found there."""
    if state.spec.order != TOPIC:
        return {}
    committed = sum(inside.total for inside in coverage.committed.values())
    blocks = [list(block) for block in state.shards.space.blocks]
    told = {"topic": state.spec.dataset, "blocks": blocks[:RANGES_LISTED_MAX], "ended": not coverage.grows}
    return told | {"records": committed - coverage.vacancies, "vacant": coverage.vacancies}


def _counted(coverage: Coverage, spec: records.JobSpec) -> dict[str, Any]:
    """What a coverage says of a job."""
    first_ms, last_ms, stop = coverage.first_lease_ms, coverage.last_commit_ms, coverage.stop
    not_trained, left = coverage.not_trained(spec)
    return {
        "epochs": spec.epochs,
        "samples": spec.samples + coverage.added,
        "committed": sum(inside.total for inside in coverage.committed.values()),
        "missing": [list(r) for r in coverage.missing(spec)],
        "repeated": [list(r) for r in coverage.repeated],
        "quarantined": [list(r) for r in coverage.apart(spec)],
        "not_trained": [list(r) for r in not_trained],
        "not_trained_samples": left,
        "steps_asked": spec.steps,
        "stopped": stop and {"step": stop.step, "author": stop.author, "reason": stop.reason},
        "wrong_lineage": coverage.wrong_lineage[:RANGES_LISTED_MAX],
        "steps": coverage.step,
        "lineage": coverage.lineage.hex(),
        "rolled_back_steps": coverage.rolled_back,
        "accepted_losses": [
            {"first_lost": e.first_lost, "next_offset": e.next_offset, "author": e.author, "reason": e.reason}
            for e in coverage.losses
        ],
        "requests_moved": [{"next": e.next, "reason": e.reason} for e in coverage.moves],
        "train_s": None if first_ms is None or last_ms is None else (last_ms - first_ms) / 1000,
    }


def _verdict(report: dict[str, Any], broken: Break | None, agree: bool) -> str:
    if broken is not None:
        return f"NOT PROVEN. {broken.sentence()}"
    if not agree:
        return "NOT PROVEN. What was counted and the state of the replay disagree: report this as a bug."
    if report["watched"]:
        return f"NOT VOUCHED FOR. {WATCHED_SAID}"
    if report["exactly_once"]:
        total = report["samples"] * report["epochs"]
        if _is_early(report) or report["steps_asked"]:
            return f"EXACTLY ONCE, what was trained: {_trained(report)}"
        said = f"EXACTLY ONCE. Each of {report['samples']} samples in each of {report['epochs']} epochs ({total:,})."
        if "records" in report:
            said += f" {report['records']:,} are records of {report['topic']}, at {report['vacant']:,} offsets is none."
        return said
    parts = []
    if not report.get("ended", True):
        parts.append(f"{report['topic']} has not ended")
    if report["missing"]:
        parts.append(f"{_count(report['missing']):,} samples are not committed")
    if report["repeated"]:
        parts.append(f"{_count(report['repeated']):,} samples are committed more than once")
    if report["quarantined"]:
        parts.append(f"{_count(report['quarantined']):,} samples are in quarantine")
    if report["wrong_lineage"]:
        parts.append(f"the lineage of {len(report['wrong_lineage'])} steps is wrong")
    return "NOT exactly once: " + ", ".join(parts) + "."


def _trained(report: dict[str, Any]) -> str:
    """Of a job that ends behind a step."""
    said = f"{report['committed']:,} samples in {report['steps']:,} steps."
    left, stop = report["not_trained_samples"], report["stopped"]
    if _is_early(report):
        early = f"The job was finished early, behind step {stop['step']:,}, by {stop['author']}: {stop['reason']}."
        return f"{said} {early} {left:,} samples were not trained."
    rest = f" The rest of the last epoch, {left:,} samples, is not meant to be trained." if left else ""
    return f"{said} So many steps were asked for.{rest}"


def _is_early(report: dict[str, Any]) -> bool:
    """Whether it ends where a script stopped it: there may be no such step any more, once steps are larger."""
    return report["stopped"] is not None and report["steps"] >= report["stopped"]["step"]


def resizes(state: State) -> list[dict[str, Any]]:
    """How the global batch was changed, ready for JSON. step: the first one that has it; 0: none was begun yet."""
    if not isinstance(state.shards, Batches):
        return []
    return [
        {"step": c.step, "batch_size": c.batch_size, "author": c.author, "reason": c.reason}
        for c in state.shards.changes
    ]


def _count(ranges: list[list[int]]) -> int:
    return sum(end - start for _, start, end in ranges)
