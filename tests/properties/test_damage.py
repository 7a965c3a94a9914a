"""R06: what is altered, removed, inserted or moved in a log is found, at the latest where somebody names it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from antdt_schemas import codec, records
from antdt_streams.ledger.core.fold import Fold, Verdict
from antdt_streams.proof.replay import Break, walk

from tests.helpers.logs import Standing, simulated

ENTRIES = 400
Log = tuple[bytes, ...]


def kinds(log: Log) -> set[str]:
    """What happens in a log: its events, and whether a zombie wrote into it, or several leaders."""
    fold, out, leaders = Fold(), set[str](), 0
    for offset, payload in enumerate(log):
        leaders += fold.read(offset, payload) is Verdict.LEADER
        if isinstance(fold.entry, records.Cycle):
            out |= {type(event).__name__ for event in fold.entry.events}
    return out | ({"void"} if fold.void_entries else set()) | ({"leaders"} if leaders > 2 else set())


@pytest.fixture(scope="module")
def logs() -> list[Log]:
    """Some hundred entries in which everything occurs that matters here."""
    out, seen, entries = list[Log](), set[str](), 0
    for seed in range(1_000):
        log = simulated(seed)
        found = kinds(log)
        if "Regressed" in found:
            continue  # an accepted loss excuses who names what is gone, up to the entry that says so
        if found - seen or (entries < ENTRIES and len(log) > 60):
            out.append(log)
            seen |= found
            entries += len(log)
        if entries >= ENTRIES and {"void", "leaders", "RolledBack", "Returned", "Digested", "Lost"} <= seen:
            return out
    raise AssertionError(f"{entries} entries, {sorted(seen)}")


def prefixes(log: Log) -> Iterator[tuple[int, Standing]]:
    """For each entry, where a reader stands before it."""
    fold = Fold()
    for offset, payload in enumerate(log):
        yield offset, Standing(fold)
        fold.read(offset, payload)


def witnesses(log: Log) -> list[int]:
    """For each entry, the first that counts and was written by somebody who had read it; the log's length if nobody."""
    fold, out = Fold(), list[int]()
    for offset, payload in enumerate(log):
        fold.read(offset, payload)
        out += [offset] * (fold.proven + 1 - len(out))
    return out + [len(log)] * (len(log) + 1 - len(out))


def judge(before: Standing, at: int, tail: list[bytes]) -> Break | None:
    """Read on from `at` with another tail."""
    return walk(before.reader(), enumerate(tail, at))


def test_every_altered_byte_is_found(logs: list[Log]) -> None:
    """One bit of every eighth byte of every entry that another one names, flipped."""
    rng = random.Random(1)
    tried = 0
    for log in logs:
        named = witnesses(log)
        for at, before in prefixes(log):
            limit = named[at]
            if limit == len(log):
                break  # nobody has named these entries yet: only an anchor proves them
            for byte in range(at % 8, len(log[at]), 8):
                bad = bytearray(log[at])
                bad[byte] ^= 1 << rng.randrange(8)
                found = judge(before, at, [bytes(bad), *log[at + 1 : limit + 1]])
                assert found is not None, (at, byte)
                assert found.proven < at <= found.offset <= limit, (at, byte, limit, found)
                tried += 1
    assert tried > 4_000, tried


def test_every_removed_inserted_and_moved_entry_is_found(logs: list[Log]) -> None:
    """Also where the offsets are made dense again, as whoever rewrites a topic would, and where they are not."""
    tried = named_at_once = 0
    for log in logs:
        named = witnesses(log)
        for at, before in prefixes(log):
            # A Leader that stands there twice voids one entry more: two must have read what stood before them.
            limit = named[named[at]]
            if at == 0 or limit == len(log):
                continue
            tail = list(log[at : limit + 1])
            variants = {"removed": tail[1:], "repeated": [tail[0], *tail], "inserted": [log[at // 2], *tail]}
            if tail[0] != tail[1]:
                variants["moved"] = [tail[1], tail[0], *tail[2:]]
            for name, altered in variants.items():
                found = judge(before, at, altered)
                assert found is not None, (at, name)
                assert found.proven <= at and found.offset <= limit + 1, (at, name, found)
                tried += 1
            gap = walk(before.reader(), [(offset, log[offset]) for offset in range(at + 1, limit + 1)])
            assert gap is not None and gap.proven < at < gap.offset <= limit
            witness = codec.decode(log[at + 1], records.Entry).body
            if isinstance(witness, records.Cycle) and witness.previous_offset == at:
                assert (gap.offset, gap.expected, gap.found) == (at + 1, str(at), str(at + 1))
                named_at_once += 1
    assert tried > 1_000 and named_at_once > 200, (tried, named_at_once)
