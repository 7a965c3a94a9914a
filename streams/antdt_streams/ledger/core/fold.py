"""Reading the shard log: the one rule by which every reader, old or new, leader or auditor, tells what counts.

1. Offsets are dense; a reader keeps a rolling hash over all entries, void ones included.
2. The first Genesis counts; later ones are void, and so is what came before it.
3. A Leader entry sets the current epoch: its offset and the rolling hash there.
4. A Cycle counts if it names the current epoch, else it is void: a zombie wrote it. It must name the rolling hash of an
   entry that its writer had read, and the next dense sequence number.
5. A Digested event must equal the digest of the state so far.
6. What cannot be decoded, or cannot follow from the state, stops the reader: nobody may skip a part of the truth.
7. A void Cycle that names another rolling hash than the log has is a doubt: either its writer had read a tail that was
   lost since, which a Regressed event then says, or the log was altered. A doubt stops nobody and proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from antdt_schemas import codec, lineage, records
from antdt_schemas.errors import LogTampered, Mismatch

from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.state import FOLD_VERSION, Bounds, State


class Verdict(StrEnum):
    """What an entry was worth."""

    GENESIS = "genesis"
    LEADER = "leader"
    COUNTED = "counted"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Office:
    """Who leads: the position of the Leader entry is the epoch of all that it writes."""

    offset: int
    hash: bytes
    leader_id: str
    owner: str


@dataclass(slots=True)
class Position:
    """How far a log was read. `before` is the rolling hash ahead of the last entry: with it, it can be read again."""

    next_offset: int = 0
    hash: bytes = lineage.ROOT
    before: bytes = lineage.ROOT


@dataclass(frozen=True, slots=True)
class Doubt:
    """Rule 7: the void entry at `offset` names `expected` as the rolling hash after `named`; the log has `found`."""

    offset: int
    named: int
    expected: bytes
    found: bytes


class Fold:
    """A reader of the log. `state` is None until Genesis was read.

    `entry` is what the last entry said. `proven` is the newest offset that a later entry which counts has named: what
    stands up to it was not altered.
    """

    def __init__(self, bounds: Bounds | None = None, *, cached: bool = True) -> None:
        """cached: changed rows are kept until somebody writes them to a cache. A mere reader has none, and no end."""
        self.bounds, self.cached = bounds, cached
        self.genesis: records.Genesis | None = None
        self.office: Office | None = None
        self.state: State | None = None
        self.position = Position()
        self.entry: records.EntryBody | None = None
        self.void_entries = self.counted_entries = 0
        self.events = 0  # of counted entries, since this object was made: what it took to get here
        # Rolling hashes from the last entry that counted on: what an entry of the current leader may name.
        self.recent: dict[int, bytes] = {}
        self.proven = -1
        self.doubt: Doubt | None = None
        self.lost_from: int | None = None

    def read(self, offset: int, payload: bytes) -> Verdict:
        """Fold the next entry in.

        Raises:
            LogTampered, Mismatch, Undecodable, UnknownSchema: the log is not what it says it is.
        """
        self.entry = body = codec.decode(payload, records.Entry).body
        self._advance(offset, payload)
        if isinstance(body, records.Genesis):
            return self._read_genesis(body)
        if self.genesis is None:
            # The leader of a topic that was here before this one may still have written into it.
            self.void_entries += 1
            return Verdict.VOID
        if isinstance(body, records.Leader):
            return self._read_leader(offset, body)
        if self.office is None or (body.epoch_offset, body.epoch_hash) != (self.office.offset, self.office.hash):
            self.void_entries += 1
            self._doubt(offset, body)
            return Verdict.VOID
        self._check_cycle(offset, body)
        try:
            self._apply(offset, body)
        except (AssertionError, LookupError, ValueError) as error:
            found = f"{type(error).__name__}: {error}"
            raise LogTampered(f"What the entry at offset {offset} says", "what can follow", found) from error
        return Verdict.COUNTED

    def _apply(self, offset: int, body: records.Cycle) -> None:
        assert self.state is not None
        for event in body.events:
            if isinstance(event, records.Digested):
                self._check_digest(offset, event)
            elif isinstance(event, records.Regressed):
                self._accept_loss(event.first_lost)
            self.state.apply(event)
        self._seal(body)

    def confirm(self, offset: int, payload: bytes, body: records.Cycle) -> None:
        """Fold in an entry of our own whose events were applied when they were decided."""
        self._advance(offset, payload)
        self._seal(body)

    def pass_over(self, hashes: Sequence[bytes], proven: int, events: int) -> None:
        """The next entries count, and what they say was applied. hashes: the rolling hash after each of them. For a
        reader without a cache.
        """
        assert self.state is not None and not self.cached
        position = self.position
        position.before, position.hash = [position.hash, *hashes][-2:]
        position.next_offset += len(hashes)
        self.counted_entries += len(hashes)
        self.events += events
        self.proven, self.entry = proven, None
        self.recent = {position.next_offset - 1: position.hash}
        self.state.dirty.clear()

    def read_foreign(self, offset: int, payload: bytes) -> Verdict:
        """Read an entry while in office: only a new Leader, or what is void, may come from anybody else."""
        verdict = self.read(offset, payload)
        if verdict is Verdict.COUNTED:
            raise LogTampered(f"The writer of the entry at offset {offset}", "this leader", "another one in its name")
        return verdict

    def _advance(self, offset: int, payload: bytes) -> None:
        position = self.position
        if offset != position.next_offset:
            raise LogTampered("The next offset of the log", position.next_offset, offset)
        position.before = position.hash
        position.hash = lineage.chain(position.hash, offset, payload)
        position.next_offset = offset + 1
        self.recent[offset] = position.hash

    def _read_genesis(self, body: records.Genesis) -> Verdict:
        if self.genesis is not None:
            self.void_entries += 1
            return Verdict.VOID
        _check_version(body.fold_version)
        self.genesis = body
        self.state = State(body.spec, self.bounds)
        return Verdict.GENESIS

    def _read_leader(self, offset: int, body: records.Leader) -> Verdict:
        assert self.genesis is not None
        if body.run_id != self.genesis.run_id:
            raise Mismatch(f"The run of the leader at offset {offset}", self.genesis.run_id, body.run_id)
        _check_version(body.fold_version)
        self.office = Office(offset, self.position.hash, body.leader_id, body.owner)
        return Verdict.LEADER

    def _check_cycle(self, offset: int, body: records.Cycle) -> None:
        assert self.state is not None
        known = self.recent.get(body.previous_offset)
        if body.previous_offset >= offset or known != body.previous_hash:
            found = known.hex() if known else "no such entry"
            raise LogTampered(
                f"The hash chain breaks at offset {offset}: the rolling hash after offset {body.previous_offset}",
                body.previous_hash.hex(),
                found,
                f"Entries before offset {body.previous_offset} are proven, nothing after it is.",
            )
        if body.sequence != self.state.sequence + 1:
            raise LogTampered(f"The sequence number at offset {offset}", self.state.sequence + 1, body.sequence)

    def _doubt(self, offset: int, body: records.Cycle) -> None:
        found = self.recent.get(body.previous_offset, b"")
        if found == body.previous_hash or self.doubt is not None:
            return
        if not found and body.previous_offset < offset:
            return  # older than what is remembered: nothing can be said
        if self.lost_from is None or body.previous_offset < self.lost_from:
            self.doubt = Doubt(offset, body.previous_offset, body.previous_hash, found)

    def _accept_loss(self, first_lost: int) -> None:
        """Void entries that name something from the lost tail are explained."""
        self.lost_from = first_lost if self.lost_from is None else min(self.lost_from, first_lost)
        if self.doubt is not None and self.doubt.named >= self.lost_from:
            self.doubt = None

    def _check_digest(self, offset: int, event: records.Digested) -> None:
        assert self.state is not None
        found = rows.digest(self.state)
        if found != event.digest:
            raise LogTampered(f"The digest of the state at offset {offset}", event.digest.hex(), found.hex())

    def _seal(self, body: records.Cycle) -> None:
        assert self.state is not None
        self.state.seal(body.sequence, body.requests_next, body.now_ms, self.position.hash)
        self.counted_entries += 1
        self.events += len(body.events)
        self.proven = body.previous_offset
        last = self.position.next_offset - 1
        self.recent = {last: self.position.hash}
        if not self.cached:
            self.state.dirty.clear()


def _check_version(version: int) -> None:
    if version > FOLD_VERSION:
        raise Mismatch(
            "The version of the log's rules", f"at most {FOLD_VERSION}", version, "Upgrade antdt to read this log."
        )
