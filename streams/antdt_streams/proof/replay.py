"""Replay: the state of a job rebuilt from its log, and how far the log proves itself.

Owns the walk over a log that every proof shares (replay, audit), what is said where it breaks, and the document of
`antdt replay`. Knows no broker: entries come from a topic or from a file.

What a log can prove by itself: each entry that counts names the rolling hash up to an entry before it, so nothing up to
there was altered, removed, inserted or moved. What it cannot: that its last entry is whole, and that nobody wrote all
of it anew with a fresh chain. Both need a rolling hash that was kept elsewhere: an anchor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from antdt_schemas import codec, lineage
from antdt_schemas.errors import AntdtError, LogTampered, Mismatch, UsageError

from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Doubt, Fold
from antdt_streams.ledger.core.state import State
from antdt_streams.proof.walker import Anchors, Entries, Entry, Observer, Walker, chunks

DOCUMENT = "antdt.replay/1"


@dataclass(frozen=True, slots=True)
class Break:
    """Where a log stops being believable: the entry at `offset` contradicts what stands before it.

    proven: newest offset that is proven; the first bad entry is behind it, and not behind `offset`.
    """

    offset: int
    expected: str
    found: str
    message: str
    proven: int

    @classmethod
    def of(cls, offset: int, error: AntdtError, proven: int) -> Break:
        """The break that an error of the reader means."""
        if isinstance(error, Mismatch):
            return cls(offset, str(error.expected), str(error.found), str(error), proven)
        return cls(offset, "an entry of a shard log", str(error), str(error), proven)

    @classmethod
    def of_doubt(cls, doubt: Doubt, proven: int) -> Break:
        """The break that a doubt means when nothing has ended it."""
        if doubt.grave:
            return cls.of(doubt.offset, doubt.error(), doubt.proven)
        return cls(doubt.offset, doubt.expected, doubt.found, doubt.what, min(proven, doubt.named - 1))

    def sentence(self) -> str:
        """For people: where, what, and what is still proven."""
        still = f"Entries up to offset {self.proven} are proven." if self.proven >= 0 else "No entry is proven."
        return f"The log breaks at offset {self.offset}. {self.message} {still}"

    def document(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "offset": self.offset,
            "expected": self.expected,
            "found": self.found,
            "message": self.message,
            "last_proven": self.proven,
        }


def walk(
    fold: Fold,
    entries: Iterable[Entry],
    *,
    at: int | None = None,
    anchors: Anchors | None = None,
    observers: Iterable[Observer] = (),
) -> Break | None:
    """Fold a log in, up to and including offset `at`. Returns where it breaks, or None.

    anchors: rolling hashes after some offsets, known from elsewhere. Every one that is within reach must be met.
    """
    due = {offset: h for offset, h in (anchors or {}).items() if at is None or offset <= at}
    walker, found = Walker(fold, due, observers), None
    try:
        for chunk in chunks(entries, at):
            walker.read(chunk)
        walker.end()
    except AntdtError as error:
        if error.exit_code != LogTampered.exit_code:
            raise
        found = Break.of(fold.position.next_offset if walker.reading is None else walker.reading, error, fold.proven)
    return Break.of_doubt(fold.doubts[0], fold.proven) if fold.doubts else found


@dataclass(frozen=True, slots=True)
class Replayed:
    """A fold that has read a log; `start` is where it began: 0, or the position of a snapshot."""

    fold: Fold
    start: int
    broken: Break | None


def replay(
    entries: Entries, *, fold: Fold | None = None, at: int | None = None, anchors: Anchors | None = None
) -> Replayed:
    """Rebuild the state from `entries`, which begin where `fold` (of a snapshot) ends.

    Raises:
        UsageError: there is no entry at `at`.
    """
    fold = fold or Fold(cached=False)
    start = fold.position.next_offset
    broken = walk(fold, entries, at=at, anchors=anchors)
    if broken is None and at is not None and fold.position.next_offset <= at:
        end = fold.position.next_offset
        raise UsageError(f"No entry at offset {at}: the log ends at offset {end - 1}." if end else "The log is empty.")
    return Replayed(fold, start, broken)


def behind(fold: Fold, entries: Entries) -> Iterator[tuple[int, bytes]]:
    """The entries behind a fold that a snapshot brought. `entries` begin with the last one that it reflects.

    Raises:
        LogTampered: that one is missing, or another than it was.
    """
    position, seen = fold.position, False
    for offset, payload in entries:
        if seen:
            yield offset, payload
            continue
        found = lineage.chain(position.before, offset, payload)
        if offset != position.next_offset - 1 or found != position.hash:
            what = f"The rolling hash after offset {position.next_offset - 1}, where the snapshot ends"
            raise LogTampered(what, position.hash.hex(), found.hex())
        seen = True
    if not seen:
        raise LogTampered("The end of the log", f"at least offset {position.next_offset - 1}, as the snapshot", "less")


# -- what is said about it


def document(replayed: Replayed, *, full: bool = False) -> dict[str, Any]:
    """The document of `antdt replay --json`; of a log that breaks it holds no state. `full` adds all rows."""
    fold, broken = replayed.fold, replayed.broken
    genesis, office = fold.genesis, fold.office
    state = fold.state if broken is None else None
    out: dict[str, Any] = {
        "document": DOCUMENT,
        "whole": broken is None,
        "broken": broken and broken.document(),
        "last_proven": fold.proven if broken is None else broken.proven,
        "start": replayed.start,
        "offset": fold.position.next_offset - 1 if broken is None else broken.offset,
        "head_hash": fold.position.hash.hex() if broken is None else None,
        "counted_entries": fold.counted_entries,
        "void_entries": fold.void_entries,
        "genesis": codec.to_json(genesis) if genesis is not None else None,
        "leader": office and {"offset": office.offset, "leader_id": office.leader_id, "owner": office.owner},
        "state": _state(state) if state is not None else None,
        "digest": rows.digest(state).hex() if state is not None else None,
    }
    if full and state is not None:
        out["rows"] = {key.decode(): row.decode() for key, row in rows.all_rows(state)}
    return out


def _state(s: State) -> dict[str, Any]:
    leased = dict.fromkeys(s.shards.epochs, 0)
    for lease in s.shards.leases.values():
        leased[lease.epoch] += lease.end - lease.front
    return {
        "sequence": s.sequence,
        "requests_next": s.requests_next,
        "now_ms": s.now_ms,
        "generation": s.members.generation,
        "open": s.members.open,
        "members": [{"worker": s.members.incarnations[m].worker, "incarnation": m} for m in s.members.group],
        "attached": [{"worker": s.members.incarnations[m].worker, "incarnation": m} for m in s.members.attached],
        "incarnations": len(s.members.incarnations),
        "steps": s.line.committed,
        "lineage": s.line.lineage.hex(),
        "plan": s.line.plan,
        "samples": s.samples_total,
        "committed": s.shards.committed_total,
        "quarantined": s.shards.quarantined_total,
        "refused": s.refused,
        "skipped_steps": s.line.skipped,
        "epochs": [
            {
                "epoch": number,
                "handed_out": epoch.cursor,
                "committed": epoch.committed.total,
                "leased": leased[number],
                "returned": epoch.returned.total,
                "quarantined": epoch.quarantined.total,
            }
            for number, epoch in sorted(s.shards.epochs.items())
        ],
        "leases": [
            {"lease": n, "incarnation": x.incarnation, "epoch": x.epoch, "start": x.front, "end": x.end}
            for n, x in sorted(s.shards.leases.items())
        ],
        "checkpoints": [{"step": c.step, "lineage": c.lineage.hex(), "file": c.file} for c in s.line.checkpoints],
        "file": s.done,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """A document for people."""
    genesis, state, leader = found["genesis"], found["state"], found["leader"]
    if genesis is None:
        return ["The log is empty: no worker has joined yet."]
    out = [f"job {genesis['job']}   run {genesis['run_id']}"]
    if state is None:
        return out
    since, proven = "the first entry", f"up to offset {found['last_proven']}"
    if found["start"]:
        since = f"the snapshot before offset {found['start']}"
        proven = f"{proven}, given that snapshot" if found["last_proven"] >= found["start"] else "given that snapshot"
    out += [
        f"  replayed       from {since} to offset {found['offset']}: "
        f"{found['counted_entries']:,} entries count, {found['void_entries']:,} are void",
        f"  proven         {proven}; sequence {state['sequence']:,}, digests hold",
        f"  head hash      {found['head_hash']}",
        f"  digest         {found['digest']}",
        f"  leader         {leader['owner']}, since offset {leader['offset']}" if leader else "  leader         none",
        f"  generation     {state['generation']} ({'open' if state['open'] else 'closed'}): "
        + (", ".join(m["worker"] for m in state["members"]) or "no members")
        + (f"; workers: {', '.join(m['worker'] for m in state['attached'])}" if state["attached"] else ""),
        f"  steps          {state['steps']:,}, lineage {state['lineage']}, plan {state['plan']}",
        f"  samples        {state['committed']:,} of {state['samples']:,} committed, {state['quarantined']:,} in "
        f"quarantine, {len(state['leases'])} leases live, {state['refused']:,} requests refused",
    ]
    out += [
        f"    epoch {e['epoch']:<5} {e['committed']:,} committed, {e['leased']:,} leased, {e['returned']:,} returned, "
        f"{e['quarantined']:,} in quarantine"
        for e in state["epochs"]
    ]
    out += [f"  checkpoint     step {c['step']:,}: {c['file']}" for c in state["checkpoints"]]
    if state["file"]:
        out.append(f"  done           {state['file']}")
    return out
