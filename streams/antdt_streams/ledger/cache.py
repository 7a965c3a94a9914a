"""The ledger's cache: rows of the state and the position in the log that they reflect, changed in one write batch.

It is only ever a copy of the log. Whatever does not fit (another job or topic, a log that is shorter or different)
stops the ledger with both values named; a folder that cannot be read is set aside and rebuilt from the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from antdt_schemas import codec, records

from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.stored import GENESIS, POSITION, Identity, fold_of, position_row
from antdt_streams.storage.rocks import RowStore, open_or_rebuild, set_aside

log = logging.getLogger("antdt.ledger")


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
        self.store.close()
