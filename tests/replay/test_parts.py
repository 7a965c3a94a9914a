"""A log proven in parts: the same account as in one piece, and nothing that a wrong waypoint could make of it."""

from __future__ import annotations

import json
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import container
from antdt_schemas.errors import Undecodable
from antdt_streams.ledger.stored import Identity
from antdt_streams.proof import parts, waypoints
from antdt_streams.proof.audit import Account, audit, report_of
from antdt_streams.proof.source import open_file
from antdt_streams.proof.waypoints import Waypoint
from antdt_streams.storage.snapshots import pack, unpack

from tests.helpers.logs import entries, simulated
from tests.helpers.warm import python
from tests.helpers.warm_server import SERVICES

ANTDT = "from antdt_streams.cli.main import main; main()"
IDENTITY = Identity("memory", "topic-1")
EVERY = 15
# Among them: roll-backs, void entries, quarantine, and an accepted loss of the log's tail.
SEEDS = (4, 19, 42, 48, 55, 57)
A_LOG = 19


def exported(folder: Path, log: tuple[bytes, ...] | list[bytes], every: int = EVERY) -> Path:
    """A file of this log with waypoints beside it, as `antdt export` makes both."""
    path = folder / "log.avro"
    with waypoints.writing(path) as keep:
        container.write(path, "memory", "topic-1", waypoints.marked(entries(log), IDENTITY, keep, every))
    return path


def in_parts(path: Path) -> Account:
    """What `parts.prove` does, in this process."""
    with container.LogFile(path) as file:
        header = file.header
    anchors = {header.entries - 1: header.head_hash}
    return parts.joined(map(parts.prove_part, parts.parts_of(path, header.entries, IDENTITY, anchors)))


def in_one_piece(path: Path) -> dict[str, Any]:
    with open_file(path) as log:
        return audit(log, log.anchors)


def with_waypoints(path: Path, chosen: list[Waypoint]) -> None:
    with waypoints.writing(path) as keep:
        for waypoint in chosen:
            keep(waypoint)


@pytest.mark.parametrize("seed", SEEDS)
def test_parts_give_the_account_of_the_whole(seed: int, tmp_path: Path) -> None:
    path = exported(tmp_path, simulated(seed))
    assert len(list(waypoints.reading(path))) >= 2, "the log has too few parts to show anything"
    assert report_of(in_parts(path), None) == in_one_piece(path)


def test_processes_give_it_too_and_the_commands_say_the_same(tmp_path: Path) -> None:
    path = exported(tmp_path, simulated(A_LOG))
    account = parts.prove(path, {}, 2)
    assert account is not None
    assert report_of(account, None) == in_one_piece(path)
    told = []
    for command in ("audit", "replay"):
        done = []
        for processes in "12":
            (folder := tmp_path / f"{command}-{processes}").mkdir()
            line = [command, "--file", str(path), "--json", "--processes", processes]
            done.append(python(ANTDT, *line, folder=folder, kind=SERVICES))
        assert done[0].stdout == done[1].stdout and not done[1].stderr, done[1].stderr
        told.append(json.loads(done[1].stdout))
    assert told[0]["digest"] == told[1]["digest"]


def test_one_core_no_waypoints_or_those_of_another_log_prove_nothing_in_parts(tmp_path: Path) -> None:
    path = exported(tmp_path, simulated(A_LOG))
    assert parts.prove(path, {}, 1) is None
    other = exported(tmp_path / "..", simulated(5))
    waypoints.beside(other).replace(waypoints.beside(path))
    assert parts.prove(path, {}, 2) is None
    waypoints.beside(path).unlink()
    assert parts.prove(path, {}, 2) is None


def test_no_forged_waypoint_is_believed(tmp_path: Path) -> None:
    """Each row of a waypoint in turn is altered, then left out: the part before it does not arrive there."""
    path = exported(tmp_path, simulated(A_LOG))
    honest = list(waypoints.reading(path))
    at = len(honest) // 2
    true = unpack(honest[at].unpacked())
    forgeries = [{**true, key: row + b" "} for key, row in true.items()]
    forgeries += [{k: r for k, r in true.items() if k != key} for key in true]
    before = honest[at - 1]
    for forged in forgeries:
        wrong = Waypoint(honest[at].next_offset, honest[at].proven, zlib.compress(pack(forged)))
        with pytest.raises(parts.PartBroken):
            parts.prove_part(parts.Part(path, IDENTITY, before, wrong, {}))
    # And who begins there says so, or proves a log that nobody has arrived at: all of it is refused.
    with_waypoints(
        path,
        [
            *honest[:at],
            Waypoint(honest[at].next_offset, honest[at].proven, zlib.compress(pack(forgeries[0]))),
            *honest[at + 1 :],
        ],
    )
    with pytest.raises(parts.PartBroken):
        in_parts(path)


def test_a_waypoint_at_another_offset_is_not_believed(tmp_path: Path) -> None:
    path = exported(tmp_path, simulated(A_LOG))
    honest = list(waypoints.reading(path))
    for shift in (-1, 1):
        moved = honest[1]._replace(next_offset=honest[1].next_offset + shift)
        with pytest.raises(parts.PartBroken):
            parts.prove_part(parts.Part(path, IDENTITY, honest[0], moved, {}))


def test_an_altered_entry_breaks_its_part_whichever_it_is(tmp_path: Path) -> None:
    """The waypoints are those of the log as it was: whoever altered an entry cannot hide behind them."""
    log = list(simulated(A_LOG))
    path = exported(tmp_path, log)
    kept = waypoints.beside(path).read_bytes()
    marks = [0, *(w.next_offset for w in waypoints.reading(path)), len(log)]
    for low, high in pairwise(marks):
        altered = list(log)
        middle = (low + high) // 2
        altered[middle] = altered[middle][:-1] + bytes([altered[middle][-1] ^ 1])
        again = exported(tmp_path, altered)
        waypoints.beside(again).write_bytes(kept)
        with pytest.raises((parts.PartBroken, Undecodable)):
            in_parts(again)


def test_a_log_that_breaks_is_marked_up_to_there_and_exported_whole(tmp_path: Path) -> None:
    log = list(simulated(A_LOG))
    log[-3], log[-2] = log[-2], log[-3]
    path = exported(tmp_path, log)
    assert [e.payload for e in entries(log)] == [e.payload for e in container.LogFile(path)]
    assert 0 < max(w.next_offset for w in waypoints.reading(path)) <= len(log) - 3


def test_a_damaged_file_of_waypoints_is_said(tmp_path: Path) -> None:
    path = exported(tmp_path, simulated(A_LOG))
    whole = waypoints.beside(path).read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        waypoints.beside(path).write_bytes(damaged)
        with pytest.raises(Undecodable, match="not a file of waypoints"):
            list(waypoints.reading(path))
        assert parts.prove(path, {}, 2) is None
    bad = Waypoint(10, 9, zlib.compress(b"x" * 100)[:-6])
    with pytest.raises(Undecodable, match="cut"):
        bad.unpacked()
    with pytest.raises(Undecodable, match="damaged"):
        Waypoint(10, 9, b"nonsense").unpacked()


def test_a_file_is_read_from_any_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "BLOCK_BYTES", 500)
    log = list(simulated(A_LOG))
    path = exported(tmp_path, log)
    with container.LogFile(path) as file:
        for start in (0, 1, len(log) // 3, len(log) - 1, len(log), len(log) + 5):
            assert [e.offset for e in file.entries(start)] == list(range(start, len(log)))
