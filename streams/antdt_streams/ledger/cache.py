"""The ledger's cache: rows of the state and the position in the log that they reflect, changed in one write batch.

It is only ever a copy of the log. Whatever does not fit (another job or topic, a log that is shorter or different)
stops the ledger with both values named; a folder that cannot be read is set aside and rebuilt from the log.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antdt_schemas import codec, records
from antdt_schemas.errors import ForeignState

from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold, Office, Position
from antdt_streams.ledger.core.state import FOLD_VERSION
from antdt_streams.runtime.store import RowStore, open_or_rebuild

POSITION = b"\0position"
GENESIS = b"\0genesis"
LAYOUT = 1

log = logging.getLogger("antdt.ledger")


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose log this is: the name of the job and Kafka's id of the topic, new with every topic of that name."""

    job: str
    topic_id: str


class Cache:
    """A folder with the state of one ledger. One process at a time."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder, self.identity = folder, identity
        self.store: RowStore = open_or_rebuild(folder)
        self.leader_epoch: int | None = None
        self._written: set[bytes] = set()

    def load(self) -> Fold:
        """The fold as it was last saved, or a new one.

        Raises:
            ForeignState: the folder belongs to another job or topic, or was written by newer rules.
        """
        stored = dict(self.store.rows(b""))
        mark = stored.pop(POSITION, None)
        if mark is None:
            return Fold()
        found = json.loads(mark)
        self._check_identity(found)
        fold = Fold()
        fold.genesis = _genesis(stored.pop(GENESIS, None))
        fold.position = Position(found["next_offset"], bytes.fromhex(found["hash"]), bytes.fromhex(found["before"]))
        office = found["office"]
        fold.office = office and Office(office[0], bytes.fromhex(office[1]), office[2], office[3])
        fold.counted_entries, fold.void_entries = found["counted"], found["void"]
        fold.recent = {int(offset): bytes.fromhex(h) for offset, h in found["recent"]}
        if fold.genesis is not None:
            fold.state = rows.load(fold.genesis.spec, stored)
        self.leader_epoch = found["leader_epoch"]
        return fold

    def _check_identity(self, found: dict[str, Any]) -> None:
        hint = f"Give this job a folder of its own, or remove {self.folder}: the log is the truth."
        for what, expected in (("job", self.identity.job), ("topic_id", self.identity.topic_id), ("layout", LAYOUT)):
            if found[what] != expected:
                raise ForeignState(f"The {what} of the state in {self.folder}", expected, found[what], hint)
        if found["fold_version"] > FOLD_VERSION:
            raise ForeignState(f"The rules of the state in {self.folder}", FOLD_VERSION, found["fold_version"], hint)

    def save(self, fold: Fold, leader_epoch: int | None) -> None:
        """Changed rows and the position, atomically."""
        changes = rows.changes(fold.state) if fold.state is not None else {}
        office = fold.office
        mark = {
            "job": self.identity.job,
            "topic_id": self.identity.topic_id,
            "layout": LAYOUT,
            "fold_version": FOLD_VERSION,
            "next_offset": fold.position.next_offset,
            "hash": fold.position.hash.hex(),
            "before": fold.position.before.hex(),
            "leader_epoch": leader_epoch,
            "office": office and [office.offset, office.hash.hex(), office.leader_id, office.owner],
            "counted": fold.counted_entries,
            "void": fold.void_entries,
            "recent": [(offset, h.hex()) for offset, h in fold.recent.items()],
        }
        changes[POSITION] = json.dumps(mark).encode()
        if fold.genesis is not None and GENESIS not in self._written:
            # The codec writes Genesis as the log has it, so there is no second form of it.
            changes[GENESIS] = codec.encode(records.Entry(fold.genesis))
            self._written.add(GENESIS)
        self.store.write(changes)

    def close(self) -> None:
        """Release the folder."""
        self.store.close()


def _genesis(row: bytes | None) -> records.Genesis | None:
    if row is None:
        return None
    body = codec.decode(row, records.Entry).body
    assert isinstance(body, records.Genesis)
    return body
