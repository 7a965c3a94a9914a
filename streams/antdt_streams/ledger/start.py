"""How a ledger gets from a folder, a snapshot and the log to a state; and what it does when they contradict each other.

The log is the truth, so folder and snapshot are only ever a head start. But they remember: where they know of entries
that the log does not have, acknowledged entries are gone, and that must be said, not repaired.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from time import monotonic

from antdt_schemas import lineage, records
from antdt_schemas.errors import ForeignState, LogTruncated, Mismatch, Unavailable, UsageError
from antdt_schemas.launch_locks import process_name

from antdt_streams.ledger.cache import Cache
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.ledger.ports import LogPort, SnapshotsPort
from antdt_streams.ledger.stored import Known, fold_of, known_of, whole

SAVE_EVERY = 10_000
# What was given away behind the last saved state cannot be known: numbers go on well beyond it.
NUMBERS_APART = 1 << 20

log = logging.getLogger("antdt.ledger")


@dataclass(frozen=True, slots=True)
class Loss:
    """An accepted loss: the event to record, and the Genesis that was known, for a log that has none any more."""

    fact: records.Regressed
    genesis: records.Genesis | None


class Start:
    """Brings a fold to the end of the log."""

    def __init__(self, shard_log: LogPort, cache: Cache, snapshots: SnapshotsPort, options: LedgerOptions) -> None:
        self.log, self.cache, self.snapshots, self.options = shard_log, cache, snapshots, options
        self.from_nothing = False  # the last time, though there was something to begin with

    def catch_up(self) -> Fold:
        """A fold that has read all of the log.

        Raises:
            ForeignState: folder or snapshot are of another job, or of a topic of that name that is no more.
            LogTruncated: they reflect entries that the log does not have.
            LogTampered: the log contradicts itself.
        """
        try:
            fold = self._head_start()
        except (ForeignState, LogTruncated) as error:
            fold = self._accepted(error)
        begins = fold.position.next_offset
        self.fold_to(fold, self.log.end())
        self.from_nothing = begins == 0 < fold.position.next_offset
        return fold

    def fold_to(self, fold: Fold, end: int) -> None:
        self.log.seek(fold.position.next_offset)
        for entry in self.log.read_to(end):
            if entry.offset < end:
                fold.read(entry.offset, entry.payload)
                if fold.position.next_offset % SAVE_EVERY == 0:
                    self.cache.save(fold, self.log.leader_epoch)
        self.log.seek(fold.position.next_offset)
        self.cache.save(fold, self.log.leader_epoch)

    def accept_loss(self, reason: str) -> tuple[Fold, Loss]:
        """A fold of what the log still has, and the event that says what it had. The old folder is kept aside.

        Raises:
            UsageError: nothing is lost, or it was accepted before.
        """
        try:
            self._head_start()
        except (ForeignState, LogTruncated) as error:
            found = error
        else:
            raise UsageError("Nothing is lost: the log has every entry that is known of. Start the job as usual.")
        fold, end = Fold(), self.log.end()
        lost = self._lost(fold, end, found)
        if all(_covers(fold, known) for known in lost):
            raise UsageError("This loss was accepted before: start the job as usual.")
        known = max(lost, key=lambda k: k.next_offset)
        fact = records.Regressed(
            first_lost=end if end < known.next_offset else -1,
            next_offset=known.next_offset,
            hash=known.hash,
            run_id=known.run_id,
            generation=known.generation + NUMBERS_APART,
            next_lease=known.next_lease + NUMBERS_APART,
            author=process_name(),
            reason=reason,
        )
        self._adopt(fold)
        return fold, Loss(fact, known.genesis)

    # -- head starts

    def _head_start(self) -> Fold:
        """What the folder holds, or a snapshot if that saves more; held against the log."""
        fold, end = self.cache.load(), self.log.end()
        behind = end - fold.position.next_offset
        if not fold.position.next_offset or behind > self.options.snapshot_every:
            snapshot = self.snapshots.newest()
            if snapshot is not None and snapshot.next_offset > fold.position.next_offset:
                fold, _ = fold_of(snapshot.rows, self.cache.identity, "the newest snapshot")
                self._verify(fold, end)
                self.cache.replace(snapshot.rows)
                log.info("event=snapshot-loaded next_offset=%d", snapshot.next_offset)
                return fold
        self._verify(fold, end)
        return fold

    def _verify(self, fold: Fold, end: int) -> None:
        """The last entry that a state reflects must still be the one in the log."""
        position = fold.position
        if end < position.next_offset:
            least = f"at least {position.next_offset}, which was reached before"
            raise LogTruncated(f"The end of {self.log.topic}", least, end, self._lost_hint())
        if not position.next_offset:
            return
        self.log.seek(position.next_offset - 1)
        until = monotonic() + self.options.read_timeout_s
        while not (entries := self.log.poll(0.1)):
            if monotonic() > until:
                raise Unavailable(f"Offset {position.next_offset - 1} of {self.log.topic} cannot be read.")
        first = entries[0]
        found = lineage.chain(position.before, first.offset, first.payload)
        if first.offset != position.next_offset - 1 or found != position.hash:
            what = f"The hash of the entry at offset {position.next_offset - 1} of {self.log.topic}"
            raise LogTruncated(what, position.hash.hex(), found.hex(), self._lost_hint())
        if self.cache.leader_epoch is not None and first.leader_epoch > self.cache.leader_epoch:
            log.info("event=leader-epoch was=%d is=%d", self.cache.leader_epoch, first.leader_epoch)

    def _lost_hint(self) -> str:
        return (
            "The broker has lost entries that it had acknowledged. Nothing was started: restore the topic, or accept "
            f"the loss by `antdt recover {self.cache.identity.job} --accept-loss --reason ...`, which records it."
        )

    # -- contradictions

    def _lost(self, fold: Fold, end: int, error: Mismatch) -> list[Known]:
        """Read the log from its first entry on, without touching the folder: what folder and snapshot know otherwise.

        Raises `error` where the contradiction is not about lost entries: the folder of another job, say.
        """
        snapshot = self.snapshots.newest()
        stored = [self.cache.stored()] + ([dict(snapshot.rows)] if snapshot is not None else [])
        known = [k for k in map(known_of, stored) if k is not None]
        hashes = {k.next_offset: b"" for k in known}
        self.log.seek(0)
        for entry in self.log.read_to(end):
            if entry.offset < end:
                fold.read(entry.offset, entry.payload)
                if fold.position.next_offset in hashes:
                    hashes[fold.position.next_offset] = fold.position.hash
        lost = [k for k in known if hashes[k.next_offset] != k.hash]
        if not lost or any(k.job != self.cache.identity.job for k in lost):
            raise error
        return lost

    def _accepted(self, error: Mismatch) -> Fold:
        """The log itself may say that somebody has accepted this very loss; otherwise `error` stands."""
        fold = Fold()
        if not all(_covers(fold, known) for known in self._lost(fold, self.log.end(), error)):
            raise error
        log.warning("event=loss-was-accepted %s", error)
        self._adopt(fold)
        return fold

    def _adopt(self, fold: Fold) -> None:
        self.cache.begin_anew()
        if fold.genesis is not None:
            self.cache.replace(whole(fold, self.cache.identity, self.log.leader_epoch))


def _covers(fold: Fold, known: Known) -> bool:
    # What was accepted before these rows were written was another loss, also where it went further.
    accepted = set(fold.state.accepted if fold.state is not None else ()) - set(known.accepted)
    return any(run == known.run_id and offset >= known.next_offset for run, offset in accepted)
