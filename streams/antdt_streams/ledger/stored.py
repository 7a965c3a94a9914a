"""All that a reader of the log knows, as rows: its state, its position and whose log it is.

Cache, snapshots and waypoints hold the same rows. Knows no store and no broker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from antdt_schemas import codec, records
from antdt_schemas.errors import ForeignState

from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Doubt, Fold, Office, Position
from antdt_streams.ledger.core.versions import FOLD_VERSION, state_of
from antdt_streams.storage.rows import Identity as Identity  # noqa: PLC0414  handed on
from antdt_streams.storage.rows import json_encoder

POSITION = b"\0position"
GENESIS = b"\0genesis"
LAYOUT = 1
# With spaces, as ever: waypoints of older versions are compared byte for byte.
_ENCODE = json_encoder(separators=(", ", ": "))


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
        "lost_from": fold.lost_from,
        "recent": [(offset, h.hex()) for offset, h in fold.recent.items()],
    }
    # Said only where there is something to say: the rows of most logs are those that older versions wrote.
    if fold.former is not None:
        mark["former"] = [fold.former[0], fold.former[1].hex()]
    if fold.position.holes:
        mark["holes"] = fold.position.holes
    if fold.doubts:
        mark["doubts"] = [astuple(doubt) for doubt in fold.doubts]
    return _ENCODE(mark).encode()


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
    fold.position = Position(
        found["next_offset"], bytes.fromhex(found["hash"]), bytes.fromhex(found["before"]), found.get("holes", 0)
    )
    fold.trusted = fold.position.next_offset - 1
    if former := found.get("former"):
        fold.former = former[0], bytes.fromhex(former[1])
    fold.doubts = [Doubt(*doubt) for doubt in found.get("doubts", ())]
    office = found["office"]
    fold.office = office and Office(office[0], bytes.fromhex(office[1]), office[2], office[3])
    fold.counted_entries, fold.void_entries = found["counted"], found["void"]
    fold.lost_from = found.get("lost_from")  # older rows do not say
    fold.recent = {int(offset): bytes.fromhex(h) for offset, h in found["recent"]}
    if fold.genesis is not None:
        fold.state = rows.load(state_of(fold.genesis), rest)
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
    accepted: tuple[tuple[str, int], ...]  # losses that were accepted before these rows were written


def known_of(stored: Mapping[bytes, bytes]) -> Known | None:
    """What was known when these rows were written; None where nothing was."""
    if POSITION not in stored:
        return None
    mark, genesis = json.loads(stored[POSITION]), _genesis(stored.get(GENESIS))
    rest = {key: row for key, row in stored.items() if key not in (POSITION, GENESIS)}
    state = rows.load(state_of(genesis), rest) if genesis is not None else None
    reached = mark["job"], genesis.run_id if genesis else "", mark["next_offset"], bytes.fromhex(mark["hash"])
    if state is None:
        return Known(*reached, 0, 0, genesis, ())
    return Known(*reached, state.members.generation, state.shards.next_lease, genesis, tuple(state.accepted))


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


def _genesis(row: bytes | None) -> records.Genesis | None:
    if row is None:
        return None
    body = codec.decode(row, records.Entry).body
    assert isinstance(body, records.Genesis)
    return body
