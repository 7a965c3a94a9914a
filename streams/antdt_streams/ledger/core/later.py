"""What is proven of a sample in one epoch holds for those behind it: where it is left out, and where not any more.

Owns the way from positions to samples. Must not know evidence, nor what a step consists of. Rules
  1. A sample is out from where it was proven to fail, until any position of it is readmitted.
  2. At every grant, its positions in later epochs that are to be trained are left out, the nearest epochs first. No
     more than LATER_MAX are at once, nor any beyond as many epochs: the others follow with the grants to come. Where
     there is none before such an epoch, the sample costs one more failure there, which brings one about.
  3. What was to be left out of a sample that is not out any more is lifted at the next grant, as far as no model can
     have a step that comes to it: it is trained in its place. What a step has left out comes behind the last epoch.
  4. There, what else was readmitted of a sample that fails again is left out as well.
Where a sampler draws the order (`Order.is_known`), positions say nothing of samples: each epoch has its own evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice

from antdt_schemas import batches, records
from antdt_schemas.batches import Cursor, Piece
from antdt_schemas.order import Order

from antdt_streams.ledger.core.batches import Batches
from antdt_streams.ledger.core.holes import Holes
from antdt_streams.ledger.core.samples import ELSEWHERE, Fault
from antdt_streams.ledger.core.state import State

LATER_MAX = 1024  # of 200 bytes at most
TEXT_CHARS_MAX = 64
PLACES_KEPT = 1 << 14

_sample = lru_cache(PLACES_KEPT)(Order.sample)


def changes(
    s: State, proven: Sequence[records.Excluded], generation: int, source_step: int
) -> Iterator[records.Excluded | records.Lifted]:
    """What follows for other epochs at the grant of this generation, which goes on behind that step. proven: what it
    leaves out by evidence.
    """
    shards = s.shards
    assert isinstance(shards, Batches)
    order, holes = _order(shards), shards.holes
    for found in proven:
        holes = holes.exclude(generation, Piece(found.epoch, found.start, found.length))
    if not holes.exclusions or not order.is_known:
        return
    out = _out(shards, holes)
    for piece in _lifted(shards, out, _reach(shards, source_step)):
        yield records.Lifted(*piece)
    faults = shards.faults | {(e.epoch, e.start): Fault(e.length, e.key, e.reason) for e in proven}
    for piece, root in islice(_left_out(s, shards, holes, out), LATER_MAX):
        fault = faults.get((root.epoch, root.start), Fault(1, "", "it failed there"))
        reason = f"{ELSEWHERE}{root.start} of epoch {root.epoch}: {fault.reason[:TEXT_CHARS_MAX]}"
        yield records.Excluded(generation, *piece, fault.key[:TEXT_CHARS_MAX], reason)


def lifted(shards: Batches) -> int:
    """How many positions are lifted at the next grant, where nobody has steps that are not committed."""
    if not _order(shards).is_known:
        return 0
    return batches.total(_lifted(shards, _out(shards, shards.holes), shards.cursor))


def _order(shards: Batches) -> Order:
    return Order(shards.spec.order, shards.spec.seed, shards.spec.samples)


def _places(pieces: Iterable[Piece]) -> Iterator[tuple[int, int]]:
    return ((piece.epoch, piece.start + number) for piece in pieces for number in range(piece.length))


def _out(shards: Batches, holes: Holes) -> dict[int, Piece]:
    """Samples that are out, and where each was proven to fail: that is the first exclusion since it was readmitted,
    unless a model has it there, as it was in a step that was executed before.
    """
    order = _order(shards)
    readmitted = {_sample(order, *at): found.exclusions for found in holes.appended for at in _places((found.piece,))}
    out: dict[int, Piece] = {}
    for number, exclusion in enumerate(holes.exclusions):
        for at in _places((exclusion.piece,)):
            sample = _sample(order, *at)
            if number >= readmitted.get(sample, 0):
                out.setdefault(sample, Piece(*at, 1))
    return {sample: root for sample, root in out.items() if not _is_committed(shards, root.epoch, root.start)}


def _is_committed(shards: Batches, epoch: int, position: int) -> bool:
    found = shards.epochs.get(epoch)
    return found is not None and bool(found.committed.overlaps(position, position + 1))


def _left_out(s: State, shards: Batches, holes: Holes, out: dict[int, Piece]) -> Iterator[tuple[Piece, Piece]]:
    """Positions that are not left out yet and come to be, the nearest epochs first, each with where it was proven."""
    order, layout = _order(shards), shards.layout
    if s.stop is not None:
        layout = replace(layout, steps=min(s.stop.step, layout.steps or s.stop.step))
    known = {(at[0], _sample(order, *at)) for at in _places(e.piece for e in holes.exclusions)}
    for ahead, _ in islice(layout.ahead(shards.cursor, shards.made), LATER_MAX):
        for sample, root in out.items():
            if ahead.epoch > root.epoch and (ahead.epoch, sample) not in known:
                at = Piece(ahead.epoch, order.position(ahead.epoch, sample), 1)
                if batches.within((at,), (ahead,)):
                    yield at, root
    yield from _left_out_of_tail(shards, holes, out)


def _left_out_of_tail(shards: Batches, holes: Holes, out: dict[int, Piece]) -> Iterator[tuple[Piece, Piece]]:
    """The same of what is ahead in the tail."""
    order, newest = _order(shards), dict[tuple[int, int], int]()
    for number, exclusion in enumerate(holes.exclusions):
        newest.update(dict.fromkeys(_places((exclusion.piece,)), number))
    places = [(at, found.exclusions) for found in holes.appended for at in _places((found.piece,))]
    failed = {_sample(order, *at) for at, before in places if newest.get(at, -1) >= before}
    passed = shards.cursor.position if shards.cursor.epoch == shards.spec.epochs else 0
    for at, before in places[passed:]:
        sample = _sample(order, *at)
        if sample in failed and sample in out and newest.get(at, -1) < before:
            yield Piece(*at, 1), out[sample]


def _lifted(shards: Batches, out: dict[int, Piece], reach: Cursor) -> Iterator[Piece]:
    """What is still to be left out, of samples that are not out. reach: no model has a step that comes further."""
    order, tail = _order(shards), shards.holes.tail
    for _, piece in shards.holes.exclusions:
        ahead = (piece.epoch, piece.start) >= reach and not batches.within((piece,), tail)
        if ahead and not any(_sample(order, *at) in out for at in _places((piece,))):
            yield piece


def _reach(shards: Batches, source_step: int) -> Cursor:
    """Behind all that steps up to this one, the last that any model of the next generation begins with, can have."""
    steps = max(0, source_step - shards.made)
    size = max(shards.spec.batch_size, *(change.batch_size for change in shards.changes), 0)
    # What an epoch drops is less than a batch.
    at = shards.cursor.epoch * shards.samples + shards.cursor.position + 2 * steps * size
    return Cursor(*divmod(at, shards.samples)) if steps else shards.cursor
