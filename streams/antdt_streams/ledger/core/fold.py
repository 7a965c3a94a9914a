"""Reading the shard log: the one rule by which every reader, old or new, leader or auditor, tells what counts.

1. Offsets grow; a reader keeps a rolling hash over all entries, void ones included. A hole is a hole: where an entry of
   ours is missing, a later one names it, or what was before it, and does not chain (rules 4 and 8).
2. The first Genesis counts; later ones are void, and so is what came before it.
3. A Leader entry of this run sets the current epoch: its offset and the rolling hash there. One of another run is
   void, and so is a copy of the current one.
4. A Cycle counts if it names the current epoch, the next dense sequence number, and the rolling hash of an entry that
   its writer had read; else it is void. A zombie wrote it, or it was copied, or it is nothing of ours.
5. A Digested event must equal the digest of the state so far.
6. What cannot be decoded is void. What counts and cannot follow from the state stops the reader.
7. A void Cycle of another epoch that names another rolling hash than the log has is a doubt: its writer had read a tail
   that was lost since, which a Regressed event then says, or the log was altered, or it is of another log. A doubt of
   this kind stops nobody and proves nothing. There is none where what is proven has no such office.
8. A void Cycle of the current epoch that does not chain is a doubt, too: the log was altered, or somebody wrote into it
   in the leader's name. So is what begins as an entry of ours and cannot be decoded. Nobody takes office over these.
9. A later entry of the same office that counts ends a doubt, if it names an offset from there on: its writer was in
   office all the time, has read these very bytes, and went on. Nobody can have altered them since. Doubts that name an
   office of this log are ended by a Regressed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from antdt_schemas import codec, lineage, records
from antdt_schemas.errors import LogTampered, Undecodable

from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.line import Bounds
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.core.versions import check_version, state_of

DOUBTS_MAX = 64  # of more, the first ones and the last one are kept


class Verdict(StrEnum):
    """What an entry was worth. REFUSED: it counts and cannot follow, which stops the reader."""

    GENESIS = "genesis"
    LEADER = "leader"
    COUNTED = "counted"
    VOID = "void"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Office:
    """Who leads: the position of the Leader entry is the epoch of all that it writes."""

    offset: int
    hash: bytes
    leader_id: str
    owner: str


@dataclass(slots=True)
class Position:
    """How far a log was read. `before` is the rolling hash ahead of the last entry: with it, it can be read again.
    holes: offsets below `next_offset` at which there is no entry.
    """

    next_offset: int = 0
    hash: bytes = lineage.ROOT
    before: bytes = lineage.ROOT
    holes: int = 0

    @property
    def entries(self) -> int:
        """How many there are below `next_offset`."""
        return self.next_offset - self.holes


@dataclass(frozen=True, slots=True)
class Doubt:
    """The void entry at `offset` says of the one at `named` what the log does not say.

    proven: what was proven ahead of it. grave: by rule 8, else by rule 7. lost: it names an office of this log.
    """

    offset: int
    named: int
    proven: int
    what: str
    expected: str
    found: str
    hint: str = ""
    grave: bool = False
    lost: bool = False

    @classmethod
    def of(cls, offset: int, named: int, proven: int, error: LogTampered) -> Doubt:
        """Rule 8: what is wrong is `error`."""
        return cls(offset, named, proven, error.what, str(error.expected), str(error.found), error.hint, grave=True)

    def error(self) -> LogTampered:
        """What it is unless it ends."""
        return LogTampered(self.what, self.expected, self.found, self.hint)


class Fold:
    """A reader of the log. `state` is None until Genesis was read.

    `entry` is what the last entry said, None if it could not be decoded. `proven` is the newest offset that a later
    entry which counts has named: what stands up to it was not altered. `doubts` are those that nothing has ended.
    """

    def __init__(self, bounds: Bounds | None = None, *, cached: bool = True) -> None:
        """cached: changed rows are kept until somebody writes them to a cache. A mere reader has none, and no end."""
        self.bounds, self.cached = bounds, cached
        self.genesis: records.Genesis | None = None
        self.office: Office | None = None
        self.former: tuple[int, bytes] | None = None  # the office before
        self.state: State | None = None
        self.position = Position()
        self.entry: records.EntryBody | None = None
        self.void_entries = self.counted_entries = 0
        self.events = 0  # of counted entries, since this object was made: what it took to get here
        # Rolling hashes from the last entry that counted on: what an entry of the current leader may name.
        self.recent: dict[int, bytes] = {}
        self.proven = -1
        self.trusted = -1  # what rows said that stand for the log up to there
        self.doubts: list[Doubt] = []
        self.lost_from: int | None = None

    def read(self, offset: int, payload: bytes) -> Verdict:
        """Fold the next entry in.

        Raises:
            LogTampered, Mismatch: the log is not what it says it is, or of newer rules.
        """
        try:
            body = codec.decode(payload, records.Entry).body
        except Undecodable as error:
            return self._read_undecodable(offset, payload, error)
        self.entry = body
        self._advance(offset, payload)
        if isinstance(body, records.Genesis):
            return self._read_genesis(body)
        if self.genesis is None:
            # The leader of a topic that was here before this one may still have written into it.
            if isinstance(body, records.Cycle):
                self._suspect(offset, body)
            return self._void()
        if isinstance(body, records.Leader):
            return self._read_leader(offset, body)
        if self.office is None or (body.epoch_offset, body.epoch_hash) != (self.office.offset, self.office.hash):
            self._suspect(offset, body)
            return self._void()
        if not self._chains(offset, body):
            return self._void()
        try:
            self._apply(offset, body)
        except (AssertionError, LookupError, ValueError) as error:
            found = f"{type(error).__name__}: {error}"
            raise LogTampered(f"What the entry at offset {offset} says", "what can follow", found) from error
        return Verdict.COUNTED

    def _read_undecodable(self, offset: int, payload: bytes, error: Undecodable) -> Verdict:
        self.entry = None
        self._advance(offset, payload)
        if codec.begins_as(payload, records.Entry):
            ours = LogTampered(f"The entry at offset {offset}", "an entry of a shard log", str(error))
            self._doubt(Doubt.of(offset, offset, self.proven, ours))
        return self._void()

    def _void(self) -> Verdict:
        self.void_entries += 1
        return Verdict.VOID

    def _apply(self, offset: int, body: records.Cycle) -> None:
        assert self.state is not None
        for event in body.events:
            if isinstance(event, records.Digested):
                self._check_digest(offset, event)
            elif isinstance(event, records.Regressed):
                self._accept_loss(event.first_lost)
            self.state.apply(event)
        last = next((event for event in reversed(body.events) if isinstance(event, records.Committed)), None)
        assert last is None or last.lineage, f"step {last.step} has no lineage, and is the last one of its entry"
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
        self._end_doubts(proven)
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
            if offset < position.next_offset:
                raise LogTampered("The next offset of the log", position.next_offset, offset)
            position.holes += offset - position.next_offset
        position.before = position.hash
        position.hash = lineage.chain(position.hash, offset, payload)
        position.next_offset = offset + 1
        self.recent[offset] = position.hash

    def _read_genesis(self, body: records.Genesis) -> Verdict:
        if self.genesis is not None:
            return self._void()
        self.state = state_of(body, self.bounds)
        self.genesis = body
        self.doubts = [d for d in self.doubts if d.grave]
        return Verdict.GENESIS

    def _read_leader(self, offset: int, body: records.Leader) -> Verdict:
        assert self.genesis is not None
        again = self.office is not None and body.leader_id == self.office.leader_id  # who leads says so once
        if again or body.run_id != self.genesis.run_id:
            return self._void()
        check_version(body.fold_version)
        if self.office is not None:
            self.former = self.office.offset, self.office.hash
        self.office = Office(offset, self.position.hash, body.leader_id, body.owner)
        return Verdict.LEADER

    def _chains(self, offset: int, body: records.Cycle) -> bool:
        """Whether an entry in the name of the leader in office is the next one. A copy of an older one is not, and
        says nothing; whatever else is not raises a doubt.
        """
        assert self.state is not None
        sequence, named = self.state.sequence, body.previous_offset
        known = self.recent.get(named)
        if body.sequence == sequence + 1 and named < offset and known == body.previous_hash:
            return True
        if body.sequence <= sequence:
            return False
        if named < offset and known == body.previous_hash:
            error = LogTampered(f"The sequence number at offset {offset}", sequence + 1, body.sequence)
        elif self._in_a_hole(named):
            error = LogTampered("The next offset of the log", *self._around(named))
        else:
            error = LogTampered(
                f"The hash chain breaks at offset {offset}: the rolling hash after offset {named}",
                body.previous_hash.hex(),
                known.hex() if known else "no such entry",
                f"Entries before offset {named} are proven, nothing after it is.",
            )
        self._doubt(Doubt.of(offset, named, self.proven, error))
        return False

    def _in_a_hole(self, named: int) -> bool:
        """Whether there is no entry at this offset, though it lies among those that are remembered."""
        first = next(iter(self.recent))
        return first < named < self.position.next_offset and named not in self.recent

    def _around(self, named: int) -> tuple[int, int]:
        """Where the hole around this offset begins, and the first offset behind it."""
        return max(n for n in self.recent if n < named) + 1, min(n for n in self.recent if n > named)

    def _suspect(self, offset: int, body: records.Cycle) -> None:
        """Rule 7, for an entry of another epoch than the current one."""
        epoch, named = (body.epoch_offset, body.epoch_hash), body.previous_offset
        lost = epoch == self.former or self.recent.get(epoch[0]) == epoch[1]
        proven = max(self.proven, self.trusted)
        if not lost and epoch[0] <= proven:
            return
        hole = self._in_a_hole(named)
        if named >= offset:
            found = "no such entry yet"
        elif hole:
            found = "no such entry"
        elif named in self.recent:
            found = self.recent[named].hex()
        elif lost or named <= proven:
            return  # older than what is remembered: nothing can be said
        else:
            found = "one that nobody has named"
        expected = body.previous_hash.hex()
        if found == expected or not (self.lost_from is None or named < self.lost_from):
            return
        what = (
            f"The entry at offset {offset}, written by nobody in office, names {expected} as the rolling hash after "
            f"offset {named}, where the log has {found}: an entry before it was altered, or a tail of the log was lost "
            "and nobody has accepted that."
        )
        if hole:
            expected, found = map(str, self._around(named))
        self._doubt(Doubt(offset, named, self.proven, what, expected, found, lost=lost))

    def _doubt(self, doubt: Doubt) -> None:
        if len(self.doubts) == DOUBTS_MAX:
            self.doubts.pop()
        self.doubts.append(doubt)

    def _end_doubts(self, named: int) -> None:
        """Rule 9, for an entry of the current office that counts and names this offset."""
        if self.doubts:
            assert self.office is not None
            since = self.office.offset
            self.doubts = [d for d in self.doubts if d.lost or not since < d.offset <= named]

    def _accept_loss(self, first_lost: int) -> None:
        """Void entries that name something from the lost tail are explained."""
        self.lost_from = first_lost if self.lost_from is None else min(self.lost_from, first_lost)
        self.doubts = [d for d in self.doubts if d.grave or d.named < self.lost_from]

    def check_doubts(self) -> None:
        """Whoever is to go on from here, or to believe it, must not where somebody wrote in the leader's name.

        Raises:
            LogTampered: an entry does not chain, and nothing that came later says why.
        """
        for doubt in self.doubts:
            if doubt.grave:
                raise doubt.error()

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
        self._end_doubts(body.previous_offset)
        if not self.cached:
            self.state.dirty.clear()
