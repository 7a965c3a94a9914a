"""A job whose leader was superseded and writes on: what it writes lies in the log and is void."""

from __future__ import annotations

from antdt_schemas import codec, records
from antdt_streams.ledger.core.fold import Fold

from tests.helpers.ledger import Bench
from tests.helpers.memory_ledger import MemoryLedger

SPEC = records.JobSpec("d", 20, bytes(16), "sequential", 1, 0, 10, 10, 2, 3, "allreduce")
# Whoever believes any of these is misled: another step, generation, member, end, loss, or sample.
LIES: tuple[records.Event, ...] = (
    records.Joined("z.0", "z", "worker", "h", 1, "n", "", 0),
    records.Granted(9, ("z.0",), None, None, 77, None),
    records.Leased(500, 1, "z.0", 9, 0, 0, 10),
    records.Committed(9, 99, (500, 0, 0, 10), bytes(16), 7),
    records.StepSkipped(99, ("z",)),
    records.Returned(501, 0, 10, 10, counted=True, quarantined=True),
    records.Checkpointed(99, bytes(16), "zombie.pt"),
    records.RolledBack(0, "zombie"),
    records.Refused("z", "z.0", "Lease", 9, "zombie", 0),
    records.Regressed(0, 1, bytes(16), "zombie", 9, 500, "zombie", "zombie"),
    records.RequestsMoved("zombie", 0, "zombie"),
    records.Done("zombie.pt"),
)


def cycle_of(former: Fold) -> bytes:
    """What somebody who led writes, upon all that it has read, an hour later."""
    assert former.office is not None and former.state is not None
    position, state, office = former.position, former.state, former.office
    last, now_ms = position.next_offset - 1, state.now_ms + 3_600_000
    named = (office.offset, office.hash, state.sequence + 1, last, position.hash)
    return codec.encode(records.Entry(records.Cycle(*named, 999, now_ms, LIES)))


def log(*, haunted: bool) -> tuple[list[tuple[int, bytes]], list[int]]:
    """A log of two steps and two leaders, and where the zombie wrote: amid it and at its end."""
    bench, void = Bench(SPEC), list[int]()
    former = bench.ledger

    def write_on() -> None:
        if haunted:
            void.append(len(bench.broker.log))
            bench.broker.log.append(cycle_of(former.office.fold))

    bench.join("w0.0", "w1.0")
    mine, other = bench.lease("w0.0", 10), bench.lease("w1.0", 10)
    bench.commit("w0.0", (*mine[:3], mine[3], 5), (*other[:3], other[3], 5))
    bench.ledger = MemoryLedger(bench.broker)
    write_on()
    bench.commit("w0.0", (*mine[:3], mine[3] + 5, 5), (*other[:3], other[3] + 5, 5))
    write_on()
    return list(enumerate(bench.broker.log)), void
