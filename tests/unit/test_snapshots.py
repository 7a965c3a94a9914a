"""Snapshots as records: packing, parts, and what a reader finds in a topic where writers died or overlapped."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from antdt_schemas import codec
from antdt_schemas.errors import Unavailable
from antdt_schemas.records import Snapshot
from antdt_streams.storage import snapshots
from antdt_streams.storage.snapshots import Assembly, cut, key_of, pack, unpack
from hypothesis import given
from hypothesis import strategies as st

Written = tuple[bytes, Snapshot]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "PART_BYTES", 16)


def state(at: int) -> dict[bytes, bytes]:
    """Rows that do not compress: the later, the more of them, so that the number of parts differs."""
    draw = random.Random(at)
    return {draw.randbytes(3): draw.randbytes(9) for _ in range(1 + at % 7)}


def written(slot: int, next_offset: int, topic_id: str = "t", partition: int = 0) -> list[Written]:
    """Every record of one snapshot, in order."""
    parts = cut("s", topic_id, partition, next_offset, state(next_offset))
    return [(key_of("s", partition, slot, part.part), part) for part in parts]


def compacted(log: Sequence[Written], cleaned: int) -> list[Written]:
    """What compaction leaves when it has cleaned the first records: the last of each key among them."""
    last = {key: at for at, (key, _) in enumerate(log[:cleaned])}
    return [log[at] for at in sorted(last.values())] + list(log[cleaned:])


def found(log: Sequence[Written], **options: object) -> int | None:
    """Position of the newest whole snapshot; its rows are checked against what was written."""
    assembly = Assembly("s", 0, **options)  # type: ignore[arg-type]
    for key, snapshot in log:
        if assembly.concerns(key):
            assembly.add(key, snapshot)
    newest = assembly.found()
    if newest is None:
        return None
    assert newest.rows == state(newest.next_offset)
    return newest.next_offset


@given(st.dictionaries(st.binary(max_size=20), st.binary(max_size=40), max_size=8))
def test_rows_survive_packing(rows: dict[bytes, bytes]) -> None:
    assert unpack(pack(rows)) == rows
    assert pack(dict(reversed(rows.items()))) == pack(rows)


@given(
    st.lists(st.none() | st.integers(0, 8), min_size=1, max_size=12),
    st.floats(0, 1),
)
def test_a_writer_that_dies_anywhere_leaves_its_last_whole_snapshot(deaths: list[int | None], clean: float) -> None:
    """Each write is whole, or cut off behind some of its parts by a death; the next writer looks what there is."""
    log: list[Written] = []
    slot, whole = 0, None
    for number, parts in enumerate(deaths):
        next_offset = 10 * (number + 1)
        records = written(slot, next_offset)
        taken = records if parts is None else records[:parts]
        log += taken
        if len(taken) == len(records):
            slot, whole = 1 - slot, next_offset
    assert found(log) == whole
    assert found(compacted(log, int(clean * len(log)))) == whole


@given(st.data())
def test_mixed_writers_never_give_rows_that_nobody_wrote(data: st.DataObject) -> None:
    """Two writers who do not know of each other, their records in any order; `found` checks the rows."""
    order = data.draw(st.permutations([0] * 8 + [1] * 8))
    queues: list[list[Written]] = [[], []]
    for writer, queue in enumerate(queues):
        for number in range(3):
            slot = data.draw(st.integers(0, 1))
            queue += written(slot, 10 * number + data.draw(st.integers(0, 6)) + writer)
    log = [queues[writer].pop(0) for writer in order if queues[writer]]
    cleaned = data.draw(st.integers(0, len(log)))
    newest, after = found(log), found(compacted(log, cleaned))
    assert after is None or (newest is not None and newest >= after)


def test_a_late_zombie_does_not_replace_a_newer_one() -> None:
    assert found([*written(0, 50), *written(1, 60), *written(0, 20)]) == 60
    assert found([*written(0, 60), *written(1, 20)]) == 60


def test_a_snapshot_can_be_asked_for_by_topic_and_position() -> None:
    log = [*written(0, 50), *written(1, 60), *written(0, 70, "other")]
    assert found(log) == 70
    assert found(log, topic_id="t") == 60
    assert found(log, topic_id="none") is None
    assert found(log, at_most=59) == 50
    assert found(log, at_most=49) is None


def test_parts_of_others_and_strange_keys_do_not_concern_it() -> None:
    others = [*written(0, 90, partition=1), (b"ss/0/0/0", written(0, 95)[0][1]), (b"s/0/x/0", written(0, 95)[0][1])]
    assert found([*written(0, 50), *others]) == 50
    assert not Assembly("s", 0).concerns(None)


def test_damaged_bytes_are_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    def damage(record: Written, rows: bytes) -> Written:
        return record[0], replace(record[1], rows=rows)

    good, bad = written(0, 50), written(1, 63)
    assert len(bad) >= 2
    flipped = bytes([bad[-1][1].rows[0] ^ 1]) + bad[-1][1].rows[1:]
    for rows in (flipped, b"", bad[0][1].rows):
        assert found([*good, *bad[:-1], damage(bad[-1], rows)]) == 50
        assert "event=snapshot-damaged" in caplog.text


def test_an_empty_state_is_a_snapshot_too() -> None:
    (only,) = cut("s", "t", 0, 7, {})
    assembly = Assembly("s", 0)
    assembly.add(key_of("s", 0, 0, 0), only)
    newest = assembly.found()
    assert newest is not None and (newest.rows, newest.next_offset) == ({}, 7)


def test_every_part_is_well_below_what_a_broker_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows = {b"%d" % n: random.Random(n).randbytes(100_000) for n in range(30)}
    parts = list(cut("s", "t", 0, 7, rows))
    assert len(parts) > 3
    assert max(len(codec.encode(part)) for part in parts) < 600_000
    monkeypatch.setattr(snapshots, "PACKED_BYTES_MAX", 1_000_000)
    with pytest.raises(Unavailable, match="too many for a snapshot"):
        list(cut("s", "t", 0, 7, rows))
