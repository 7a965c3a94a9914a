"""A log of ten million entries: how fast it is proven, and how fast a ledger leads again from a snapshot of it.

`python -m bench.biglog --json FILE [--entries 1000000,10000000]`. The entries are the ledger core's own, in office, at
the product's settings (a digest every 1,000 entries): four workers, one committed step of four ranges in an entry, a
lease in every fourth, a checkpoint now and then. They go straight into a container file as `antdt export` writes it,
and never lie in memory or in a broker, where ten million of them would take longer to write than to measure.

Measured, each in a process of its own so that its peak of memory is its own:
  verify    `replay` of the file: chain, sequence, digests, anchor of its last entry
  start     from the rows of the newest snapshot to an object that leads: rows to state, the entries behind the snapshot
            (as many as there can be) folded in, digest compared with the generator's
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from antdt_schemas import codec, container, lineage, records
from antdt_streams.ledger.cache import Identity, fold_of, whole
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.leader import InOffice
from antdt_streams.ledger.core.state import FOLD_VERSION
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.log_source import open_file
from antdt_streams.replay import document, replay
from antdt_streams.snapshots import pack, unpack

from bench.common import machine, write

IDENTITY = Identity("biglog", "topic-1")
WORKERS = [f"w{n}" for n in range(4)]
BATCH, STEPS_A_LEASE, CHECKPOINT_EVERY = 64, 16, 5_000


class Writer:
    """The ledger in office over a job that never ends; `entries` yields its log, `rows` are those of its snapshots."""

    def __init__(self, total: int) -> None:
        options = LedgerOptions()
        self.total, self.every = total, options.snapshot_every
        samples = total * BATCH * len(WORKERS) + BATCH * STEPS_A_LEASE * len(WORKERS)
        spec = records.JobSpec("big", samples, bytes(16), "sequential", 1, 0, BATCH, 4 * BATCH, 4, 3, "allreduce")
        self.genesis = records.Genesis(
            "run-1", "biglog", "bench", spec, FOLD_VERSION, "none", options.digest_every, options.patience_ms
        )
        self.fold = Fold()
        self.snapshot: bytes = b""
        self.events = 0

    def entries(self) -> Iterator[container.LogEntry]:
        """The whole log."""
        payload = codec.encode(records.Entry(self.genesis))
        leader = codec.encode(records.Entry(records.Leader("run-1", "leader-1", "bench", FOLD_VERSION)))
        for offset, first in enumerate((payload, leader)):
            self.fold.read(offset, first)
            yield container.LogEntry(offset, 1_000, first)
        office = InOffice(self.fold)
        for offset in range(2, self.total):
            payload, _ = office.propose([], self._facts(office, offset))
            cycle = office.read_back(offset, payload)
            assert cycle is not None
            self.events += len(cycle.body.events)
            yield container.LogEntry(offset, 1_000 + offset, payload)
            # The worst case for a start: the next snapshot was due and has not been written yet.
            if offset + 1 == self.total - self.every:
                self.snapshot = pack(whole(self.fold, IDENTITY, 0))

    def _facts(self, office: InOffice, offset: int) -> tuple[records.Event, ...]:
        state = office.state
        if offset == 2:
            joined = [records.Joined(w, w, "worker", "h", 1, "n", "", 0) for w in WORKERS]
            return (*joined, records.Granted(1, tuple(WORKERS), None, None, 0, "init"))
        if offset == 3:
            length, cursor, lease, out = BATCH * STEPS_A_LEASE, 0, state.next_lease, list[records.Event]()
            for worker in WORKERS:
                out.append(records.Leased(lease, STEPS_A_LEASE, worker, 1, 0, cursor, length))
                lease, cursor = lease + STEPS_A_LEASE, cursor + length
            return (*out, records.Settled(1))
        ranges: list[int] = []
        spent: list[str] = []
        for worker in WORKERS:
            number = next(iter(state.held[worker]))
            front = state.leases[number]
            ranges += (number, 0, front.front, BATCH)
            if front.front + BATCH == front.end and len(state.held[worker]) == 1:
                spent.append(worker)
        step = state.committed + 1
        after = lineage.next_lineage(state.lineage, step, ranges)
        out = [records.Committed(1, step, tuple(ranges), after, 0)]
        # Each worker asks anew while it still holds something, one worker an entry.
        worker = WORKERS[offset % 4]
        if len(state.held[worker]) == 1 and offset % STEPS_A_LEASE < 4:
            start = state.epoch(0).cursor
            length = BATCH * STEPS_A_LEASE
            out.append(records.Leased(state.next_lease, STEPS_A_LEASE, worker, 1, 0, start, length))
        elif spent:
            raise AssertionError(f"{spent} hold nothing")
        if step % CHECKPOINT_EVERY == 0:
            out.append(records.Checkpointed(step, after, f"step-{step}"))
        return tuple(out)


def generate(folder: Path, total: int) -> dict[str, Any]:
    """Write the log and its snapshot."""
    writer, began = Writer(total), time.perf_counter()
    header = container.write(folder / "log.avro", "biglog", "topic-1", writer.entries())
    (folder / "snapshot").write_bytes(writer.snapshot)
    assert writer.fold.state is not None
    return {
        "entries": header.entries,
        "events": writer.events,
        "digest": rows.digest(writer.fold.state).hex(),
        "file_mb": round((folder / "log.avro").stat().st_size / 1e6),
        "snapshot_kb": round(len(writer.snapshot) / 1e3),
        "generate_s": round(time.perf_counter() - began, 1),
    }


def verify(folder: Path) -> dict[str, Any]:
    """Replay the whole file."""
    wall, cpu = time.perf_counter(), time.process_time()
    with open_file(folder / "log.avro") as log:
        found = document(replay(log, anchors=log.anchors))
    assert found["whole"], found
    return {
        "verify_s": round(time.perf_counter() - wall, 2),
        "verify_cpu_s": round(time.process_time() - cpu, 2),
        "peak_rss_mb": peak_mb(),
        "digest": found["digest"],
    }


def start(folder: Path, total: int) -> dict[str, Any]:
    """From the snapshot to office. The entries behind it are in memory, as a fetch from a broker brings them."""
    packed = (folder / "snapshot").read_bytes()
    behind = LedgerOptions().snapshot_every
    with open_file(folder / "log.avro") as log:
        tail = list(islice(log, total - behind, None))
    wall, cpu = time.perf_counter(), time.process_time()
    fold, _ = fold_of(unpack(packed), IDENTITY, "the snapshot")
    loaded = time.perf_counter()
    for offset, payload in tail:
        fold.read(offset, payload)
    office = InOffice(fold)
    ready = time.perf_counter()
    cpu_s = time.process_time() - cpu
    return {
        "load_s": round(loaded - wall, 3),
        "tail_entries": len(tail),
        "start_s": round(ready - wall, 3),
        "start_cpu_s": round(cpu_s, 3),
        "digest": rows.digest(office.state).hex(),
    }


def peak_mb() -> int:
    """Peak of this process's resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def apart(action: str, folder: Path, total: int) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, "-m", "bench.biglog", "--only", action, "--folder", str(folder), "--entries", str(total)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(total: int, starts: int) -> dict[str, Any]:
    """All figures of one length."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = apart("generate", folder, total)
        verified = apart("verify", folder, total)
        started = sorted((apart("start", folder, total) for _ in range(starts)), key=lambda s: s["start_s"])
        for found in (verified, *started):
            assert found.pop("digest") == made["digest"], "another state than the generator's"
        verified["entries_per_s"] = round(total / verified["verify_s"])
        verified["events_per_s"] = round(made["events"] / verified["verify_s"])
        verified["events_per_cpu_s"] = round(made["events"] / verified["verify_cpu_s"])
        return made | verified | {"start": started[len(started) // 2]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--entries", default="1000000,10000000")
    parser.add_argument("--starts", type=int, default=3, help="starts measured of each length, the median counts")
    parser.add_argument("--only", choices=("generate", "verify", "start"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(n) for n in options.entries.split(",")]
    if options.only:
        action = {"generate": generate, "start": start}.get(options.only)
        print(json.dumps(action(options.folder, sizes[0]) if action else verify(options.folder)))
        return
    results: list[dict[str, Any]] = []
    for total in sizes:
        results.append(measure(total, options.starts))
        print(json.dumps(results[-1]), flush=True)
    out: dict[str, Any] = {"machine": machine(), "logs": results}
    if len(results) > 1:
        out["start_ratio"] = round(results[-1]["start"]["start_cpu_s"] / results[0]["start"]["start_cpu_s"], 2)
        print(f"start, {sizes[-1]:,} against {sizes[0]:,} entries: {out['start_ratio']} times the CPU time")
    write(options.json, out)


if __name__ == "__main__":
    main()
