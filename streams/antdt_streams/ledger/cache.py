"""The ledger's cache: rows of the state and the position in the log that they reflect, changed in one write batch.

It is only ever a copy of the log. Whatever does not fit (another job or topic, a log that is shorter or different)
stops the ledger with both values named; a folder that cannot be read is set aside and rebuilt from the log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antdt_schemas import codec, records
from antdt_schemas.errors import ForeignState

from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold, Office, Position
from antdt_streams.ledger.core.state import FOLD_VERSION
from antdt_streams.runtime.store import RowStore, open_or_rebuild, set_aside

POSITION = b"\0position"
GENESIS = b"\0genesis"
LAYOUT = 1

log = logging.getLogger("antdt.ledger")


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose log this is: the name of the job and Kafka's id of the topic, new with every topic of that name."""

    job: str
    topic_id: str


def position_row(fold: Fold, identity: Identity, leader_epoch: int | None) -> bytes:
    """How far the rows reflect the log, and whose log it is."""
    office = fold.office
    mark = {
        "job": identity.job,
        "topic_id": identity.topic_id,
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
    return json.dumps(mark).encode()


def whole(fold: Fold, identity: Identity, leader_epoch: int | None) -> dict[bytes, bytes]:
    """Every row of a fold that has read Genesis: what a snapshot consists of."""
    assert fold.genesis is not None
    assert fold.state is not None
    stored = dict(rows.all_rows(fold.state))
    stored[POSITION] = position_row(fold, identity, leader_epoch)
    stored[GENESIS] = codec.encode(records.Entry(fold.genesis))
    return stored


def fold_of(stored: Mapping[bytes, bytes], identity: Identity, where: str) -> tuple[Fold, int | None]:
    """The fold that wrote these rows, and the leader epoch of the partition then; a new one where there are none.

    Raises:
        ForeignState: the rows belong to another job or topic, or were written by newer rules.
    """
    rest = dict(stored)
    mark = rest.pop(POSITION, None)
    if mark is None:
        return Fold(), None
    found = json.loads(mark)
    _check_identity(found, identity, where)
    fold = Fold()
    fold.genesis = _genesis(rest.pop(GENESIS, None))
    fold.position = Position(found["next_offset"], bytes.fromhex(found["hash"]), bytes.fromhex(found["before"]))
    office = found["office"]
    fold.office = office and Office(office[0], bytes.fromhex(office[1]), office[2], office[3])
    fold.counted_entries, fold.void_entries = found["counted"], found["void"]
    fold.recent = {int(offset): bytes.fromhex(h) for offset, h in found["recent"]}
    if fold.genesis is not None:
        fold.state = rows.load(fold.genesis.spec, rest)
    return fold, found["leader_epoch"]


@dataclass(frozen=True, slots=True)
class Known:
    """What rows say of a log, whether it is still that log or not."""

    job: str
    run_id: str
    next_offset: int
    hash: bytes
    generation: int
    next_lease: int
    genesis: records.Genesis | None


def known_of(stored: Mapping[bytes, bytes]) -> Known | None:
    """What was known when these rows were written; None where nothing was."""
    if POSITION not in stored:
        return None
    mark, genesis = json.loads(stored[POSITION]), _genesis(stored.get(GENESIS))
    rest = {key: row for key, row in stored.items() if key not in (POSITION, GENESIS)}
    state = rows.load(genesis.spec, rest) if genesis is not None else None
    return Known(
        mark["job"],
        genesis.run_id if genesis else "",
        mark["next_offset"],
        bytes.fromhex(mark["hash"]),
        state.generation if state else 0,
        state.next_lease if state else 0,
        genesis,
    )


def _check_identity(found: dict[str, Any], identity: Identity, where: str) -> None:
    hint = (
        f"If it belongs to another job, give this one a folder of its own. If the topic was created again, its entries "
        f"are gone: `antdt recover {identity.job} --accept-loss --reason ...` begins anew and records that."
    )
    for what, expected in (("job", identity.job), ("topic_id", identity.topic_id), ("layout", LAYOUT)):
        if found[what] != expected:
            raise ForeignState(f"The {what} of the state in {where}", expected, found[what], hint)
    if found["fold_version"] > FOLD_VERSION:
        raise ForeignState(f"The rules of the state in {where}", FOLD_VERSION, found["fold_version"], "Upgrade antdt.")


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
        fold, self.leader_epoch = fold_of(self.stored(), self.identity, str(self.folder))
        return fold

    def save(self, fold: Fold, leader_epoch: int | None) -> None:
        """Changed rows and the position, atomically."""
        changes = rows.changes(fold.state) if fold.state is not None else {}
        changes[POSITION] = position_row(fold, self.identity, leader_epoch)
        if fold.genesis is not None and GENESIS not in self._written:
            # The codec writes Genesis as the log has it, so there is no second form of it.
            changes[GENESIS] = codec.encode(records.Entry(fold.genesis))
            self._written.add(GENESIS)
        self.store.write(changes)

    def stored(self) -> dict[bytes, bytes]:
        """Every row as it is."""
        return dict(self.store.rows(b""))

    def begin_anew(self) -> None:
        """Keep the folder under another name, and go on with an empty one."""
        self.store.close()
        log.warning("%s is kept as %s", self.folder, set_aside(self.folder))
        self.store, self._written = RowStore(self.folder), set()

    def replace(self, stored: Mapping[bytes, bytes]) -> None:
        """These rows instead of those that are there, atomically."""
        gone = dict.fromkeys(key for key, _ in self.store.rows(b"") if key not in stored)
        self.store.write({**gone, **stored})

    def close(self) -> None:
        """Release the folder."""
        self.store.close()


def _genesis(row: bytes | None) -> records.Genesis | None:
    if row is None:
        return None
    body = codec.decode(row, records.Entry).body
    assert isinstance(body, records.Genesis)
    return body
