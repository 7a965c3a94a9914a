"""Records that are not ours, in a log that is: void and counted, whoever reads it and however."""

from __future__ import annotations

from pathlib import Path

import pytest
from antdt_schemas import container
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.stored import Identity, fold_of, whole
from antdt_streams.proof import parts, waypoints
from antdt_streams.proof.audit import Account, audit, report_of
from antdt_streams.proof.fast import columns, runs
from antdt_streams.proof.replay import walk
from antdt_streams.proof.source import open_file
from antdt_streams.proof.waypoints import packed

from tests.helpers.foreign_log import JUNK, DisturbedWriter, disturbed
from tests.replay.test_verify_standalone import SHARED
from tools import verify_standalone

SEEDS = 40
IDENTITY = Identity("plain", "topic-1")


@pytest.fixture(scope="module")
def logs() -> list[DisturbedWriter]:
    """In which every kind of record occurs that is not ours."""
    out = [disturbed(seed) for seed in range(SEEDS)]
    assert set().union(*(writer.written for writer in out)) == set(JUNK)
    return out


def test_whoever_reads_it_reaches_the_leaders_state_and_counts_what_is_void(logs: list[DisturbedWriter]) -> None:
    for writer in logs:
        fold = Fold()
        broken = walk(fold, writer.entries())
        assert broken is None, broken
        assert fold.state is not None and rows.digest(fold.state) == rows.digest(writer.state)
        assert fold.position == writer.fold.position and not writer.fold.doubts
        assert (fold.void_entries, fold.position.entries) == (len(writer.foreign), len(writer.log))
        assert audit(writer.entries())["void_offsets"] == writer.foreign


def test_a_reader_that_starts_anew_at_any_entry_goes_on_alike(logs: list[DisturbedWriter]) -> None:
    for writer in logs[:10]:
        fold = Fold()
        for offset, payload in writer.entries():
            fold.read(offset, payload)
            if fold.genesis is not None:
                again, _ = fold_of(whole(fold, IDENTITY, None), IDENTITY, "the rows")
                again.proven, again.trusted = fold.proven, fold.trusted
                assert packed(again, IDENTITY) == packed(fold, IDENTITY)
                fold = again
        assert not fold.doubts and fold.void_entries == len(writer.foreign)


def test_a_file_keeps_it_and_is_proven_whole_in_parts_and_by_the_checker_that_shares_no_code(
    logs: list[DisturbedWriter], tmp_path: Path
) -> None:
    path = tmp_path / "log.avro"
    for writer in logs:
        with waypoints.writing(path) as keep:
            header = container.write(path, "plain", "topic-1", waypoints.marked(writer.lying(), IDENTITY, keep, 15))
        assert (header.entries, header.next_offset) == (len(writer.log), writer.next_offset)
        with open_file(path) as log:
            one_piece = audit(log, log.anchors)
        assert one_piece["broken"] is None and one_piece["entries"] == len(writer.log)
        marks = list(waypoints.reading(path))
        pieces = parts.parts_of(path, header.next_offset, IDENTITY, header.anchors)
        assert report_of(parts.joined(map(parts.prove_part, pieces)), None) == one_piece and marks
        checked = verify_standalone.verify(str(path))
        assert {key: checked.get(key) for key in SHARED} == {key: one_piece.get(key) for key in SHARED}
        assert checked["broken"] is None


def test_what_nothing_ends_is_a_break_and_the_same_to_both(logs: list[DisturbedWriter], tmp_path: Path) -> None:
    """Cut behind any entry: what stands there in the leader's name is not explained yet."""
    path, broken = tmp_path / "log.avro", 0
    for writer in logs[:3]:
        for end in range(2, len(writer.log)):
            part = writer.lying()[:end]
            container.write(path, "plain", "topic-1", part)
            mine, theirs = verify_standalone.verify(str(path)), audit((e.offset, e.payload) for e in part)
            found = [report["broken"] and report["broken"]["offset"] for report in (mine, theirs)]
            assert found[0] == found[1], (writer.log[:end], mine["broken"], theirs["broken"])
            if found[0] is None:
                assert {key: mine.get(key) for key in SHARED} == {key: theirs.get(key) for key in SHARED}
            else:
                broken += 1
                assert found[0] in writer.foreign
    assert broken > 5, broken


@pytest.mark.parametrize("kind", ["text", "nothing", "an unknown schema", "a copy", "genesis again", "a request"])
def test_what_is_nothing_of_ours_takes_nothing_from_a_log_that_has_ended(kind: str) -> None:
    writer = disturbed(3, share=0.0)
    before = audit(writer.entries())
    for _ in range(3):
        writer.disturb(kind)
    after = audit(writer.entries())
    assert after["broken"] is None and after["void_offsets"] == writer.foreign
    same = ("exactly_once", "committed", "lineage", "digest", "steps", "last_proven")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}


def test_runs_give_way_where_offsets_have_holes_or_entries_are_not_plain(logs: list[DisturbedWriter]) -> None:
    """Many at once come to what one by one comes to."""
    for writer in logs:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs, "FEWEST", 1 << 30)
            slow = Account()
            assert slow.read(writer.entries()) is None
        with pytest.MonkeyPatch.context() as patch:
            for module in (runs, columns):
                patch.setattr(module, "FEWEST", 2)
            fast = Account()
            assert fast.read(writer.entries()) is None
        assert report_of(fast, None) == report_of(slow, None)
        assert packed(fast.fold, IDENTITY) == packed(slow.fold, IDENTITY)
        assert (fast.fold.position, fast.fold.proven) == (slow.fold.position, slow.fold.proven)


def test_every_altered_byte_is_still_found() -> None:
    """One bit of every eighth byte of every entry that a later one names, foreign ones too: they are in the hashes."""
    tried = 0
    for seed in range(3):
        writer = disturbed(seed, 25)
        log, fold = writer.entries(), Fold()
        for offset, payload in log:
            fold.read(offset, payload)
        for number, (offset, payload) in enumerate(log):
            if offset > fold.proven:
                break
            for byte in range(number % 8, len(payload), 8):
                bad = bytearray(payload)
                bad[byte] ^= 1 << (byte % 7)
                found = walk(Fold(), [*log[:number], (offset, bytes(bad)), *log[number + 1 :]])
                assert found is not None, (seed, offset, byte)
                assert found.proven < offset, (seed, offset, byte, found)
                tried += 1
            gone = walk(Fold(), [*log[:number], *log[number + 1 :]])
            assert gone is not None and gone.proven < offset, (seed, offset)
    assert tried > 500, tried
