"""The digest of a state says what is in it now, whatever is kept of earlier ones."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.state import State

from tests.helpers.ledger import Bench


def from_rows(state: State) -> bytes:
    """What a digest is by its definition."""
    framed = (len(part).to_bytes(4, "big") + part for pair in rows.all_rows(state) for part in pair)
    return blake2b(b"".join(framed), digest_size=16).digest()


def leasing() -> State:
    """Two members, each with leases, and a step."""
    bench = Bench()
    bench.join("w0.0", "w1.0")
    held = bench.lease("w0.0", 30)
    bench.lease("w1.0", 15)
    bench.commit("w0.0", (*held[:4], 5))
    return bench.state


@pytest.mark.parametrize("what", ["incarnation", "lease"])
def test_a_row_that_was_changed_and_told_to_nobody_is_in_the_next_digest(what: str) -> None:
    state = leasing()
    before = rows.digest(state)
    assert before == from_rows(state) == rows.digest(state)
    some = state.members.incarnations if what == "incarnation" else state.shards.leases  # type: ignore[union-attr]
    found = next(iter(some.values()))
    state.dirty.clear()
    if what == "incarnation":
        found.port += 1
    else:
        found.front += 1
    assert rows.digest(state) == from_rows(state) != before


def test_what_did_not_change_is_written_once() -> None:
    state = leasing()
    for kept in set(rows.KEPT.values()):
        kept.cache_clear()
    rows.digest(state)
    written = sum(kept.cache_info().misses for kept in set(rows.KEPT.values()))
    kinds = [kind for kind, _ in rows._few(state)]
    assert written == sum(kind in rows.KEPT for kind in kinds) > 4
    rows.digest(state)
    assert sum(kept.cache_info().misses for kept in set(rows.KEPT.values())) == written
