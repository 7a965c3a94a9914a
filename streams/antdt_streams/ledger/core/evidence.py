"""Which samples are to blame for the end of a worker: evidence, and what follows from it.

Owns what counts as evidence. A sample that raised while it was loaded, or in the step, is evidence; so is a death that
a launcher reported, of a worker that was loading or computing. Where samples are leased it must have died alone; in
steps of a fixed size others may have died as well, but it counts against a sample only where a member survives. Silence
is no evidence, nor is being told to go, or displaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from antdt_schemas import records
from antdt_schemas.batches import Piece
from antdt_schemas.errors import ExitCode
from antdt_schemas.strategies import period_of

from antdt_streams.ledger.core.batches import EVIDENCE_MAX, Batches
from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.ledger.core.samples import ELSEWHERE
from antdt_streams.ledger.core.shards import Shards
from antdt_streams.ledger.core.state import State

if TYPE_CHECKING:
    from antdt_streams.ledger.core.turn import Turn

A_LEASE_MAX = 64
NAMED_MAX = 3
TEXT_CHARS_MAX = 200
HANGUP, INTERRUPT, TERMINATE = -1, -2, -15  # signals that ask a process to end
NO_FAULT = frozenset(
    (HANGUP, INTERRUPT, TERMINATE, *(code for code in ExitCode if code is not ExitCode.BUG)),
)


def died_of_samples(state: State, incarnation: str, exit_code: int) -> bool:
    """Whether the end of this process, which is lost by now, may be the fault of the samples that it had."""
    took_part = state.members.took_part(incarnation)
    return exit_code not in NO_FAULT and took_part and state.death_speaks(incarnation)


def blame(turn: Turn, incarnation: str, where: Sequence[int], key: str, reason: str, step: int) -> None:
    """There is evidence against samples (epoch, start, length), which a worker had at hand in a step.

    What is in the model by now is above suspicion; so is whatever a request names that is repeated.
    """
    if isinstance(turn.state.shards, Batches):
        text = key[:TEXT_CHARS_MAX], reason[:TEXT_CHARS_MAX]
        _suspect(turn, turn.state.shards, records.Blamed(incarnation, where[0], where[1], where[2], *text, step))
    else:
        _accuse(turn, turn.state.shards, incarnation, where, key, reason)


def _suspect(turn: Turn, shards: Batches, blamed: records.Blamed) -> None:
    """Evidence to be judged when it is clear which step the others go on from."""
    piece = Piece(blamed.epoch, blamed.start, blamed.length)
    known = any((c.incarnation, c.piece, c.step) == (blamed.incarnation, piece, blamed.step) for c in shards.clues)
    in_data = 0 <= piece.epoch < shards.spec.epochs and piece.start >= 0 and 0 < piece.length <= shards.samples
    if in_data and blamed.step > turn.state.line.committed and not known and len(shards.clues) < EVIDENCE_MAX:
        turn.emit(blamed)


def _accuse(turn: Turn, shards: Shards, incarnation: str, where: Sequence[int], key: str, reason: str) -> None:
    """Recorded for what of the samples this incarnation still holds; what went back is above suspicion."""
    epoch, start, length = where
    for number in list(shards.held.get(incarnation, ())):
        lease = shards.leases[number]
        low, high = max(start, lease.front), min(start + length, lease.end)
        known = shards.blamed.get(number, ())
        if lease.epoch != epoch or low >= high or len(known) >= A_LEASE_MAX:
            continue
        if not any((e.incarnation, e.start, e.end) == (incarnation, low, high) for e in known):
            text = key[:TEXT_CHARS_MAX] if low == start else ""
            turn.emit(records.Blamed(incarnation, epoch, low, high - low, text, reason[:TEXT_CHARS_MAX]))


def against(shards: Shards, number: int) -> list[tuple[int, int]]:
    """The parts of what a lease still holds against which there is evidence, in order."""
    front, inside = shards.leases[number].front, IntervalSet()
    for found in shards.blamed.get(number, ()):
        low = max(found.start, front)
        for gap in inside.gaps(low, found.end) if low < found.end else ():
            inside.add(*gap)
    return list(inside)


def suffices(state: State, start: int, end: int) -> bool:
    """Whether evidence against [start, end) may bring it into quarantine.

    Where nobody has completed a step yet, whole steps that fail speak against the script, not against their samples.
    """
    size = state.spec.shard_size
    return state.line.committed > 0 or start // size == (end - 1) // size


def suspects(shards: Shards, epoch: int, start: int, end: int) -> int:
    """Where [start, end) is to be cut, which begins with several shards under suspicion; 0 where it does not.

    Somebody gets the first half of those that failed equally often: the next failure tells in which half it lies.
    Where a step holds several batches, what lies in front of suspects is a lease of its own: with them in one step it
    would never be committed, and always the same batch would fail. (Found by simulation.)
    """
    size, attempts = shards.spec.shard_size, shards.epoch(epoch).attempts
    if not attempts:
        return 0
    first = last = start // size
    while last * size < end and attempts.get(last, 0) == attempts.get(first, 0):
        last += 1
    if first not in attempts:
        return last * size if period_of(shards.spec.strategy) > 1 and last * size < end else 0
    if last - first == 1 and last not in attempts:
        return 0
    cut = (first + -(-(last - first) // 2)) * size
    return cut if cut < end else 0


def sentence(blamed: records.Blamed) -> str:
    """Evidence in words."""
    key = f" ({blamed.key})" if blamed.key else ""
    where = f"{_positions(blamed.start, blamed.length)} of epoch {blamed.epoch}{key}"
    return f"{blamed.incarnation} failed at {where}: {blamed.reason}"


def _positions(start: int, length: int) -> str:
    return f"position {start}" if length == 1 else f"positions {start} to {start + length - 1}"


def faults(state: State) -> list[dict[str, Any]]:
    """What is in quarantine because there was evidence against it, ready for JSON."""
    return [
        {"epoch": epoch, "start": start, "length": f.length, "key": f.key, "reason": f.reason}
        for (epoch, start), f in sorted(state.shards.faults.items())
    ]


def in_quarantine(state: State) -> str:
    """What is in quarantine and why, as one sentence; empty where nothing is."""
    if not state.shards.quarantined_total:
        return ""
    named, faults = [], sorted(state.shards.faults.items())
    faults.sort(key=lambda item: item[1].reason.startswith(ELSEWHERE))
    for (epoch, start), fault in faults[:NAMED_MAX]:
        key = f" ({fault.key})" if fault.key else ""
        named.append(f"{_positions(start, fault.length)} of epoch {epoch}{key}: {fault.reason}")
    more = len(state.shards.faults) - len(named)
    if more > 0:
        named.append(f"and {more} more")
    total = state.shards.quarantined_total
    which = ": " + "; ".join(named) if named else ""
    return f"{total:,} sample{' is' if total == 1 else 's are'} in quarantine{which}"
