"""A log of ten million entries: how fast it is proven, and how fast a ledger leads again from a snapshot of it.

`python -m bench.biglog --json FILE [--entries 1000000,10000000]`. The entries are the ledger core's own, in office, at
the product's settings (a digest every 1,000 entries): four workers, a committed step of four ranges in each entry (in
a busy ledger: 16 of them), a lease for every 16 steps of a worker, a checkpoint now and then. They go straight into a
container file as `antdt export` writes it, and never lie in memory or in a broker, where ten million of them would take
longer to write than to measure.

Measured, each in a process of its own so that its peak of memory is its own:
  verify    `replay` of the file in one piece: chain, sequence, digests, anchor of its last entry
  audit     `audit` of the file in one piece: all that, and the coverage
  parts     `audit` of the file in parts between waypoints, one process a core
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
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from antdt_schemas import codec, container, lineage, records
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.leader import InOffice
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.core.versions import FOLD_VERSION
from antdt_streams.ledger.options import LedgerOptions
from antdt_streams.ledger.stored import Identity, fold_of, whole
from antdt_streams.proof import parts, waypoints
from antdt_streams.proof.audit import audit, report_of
from antdt_streams.proof.replay import document, replay
from antdt_streams.proof.source import open_file
from antdt_streams.proof.waypoints import Waypoint
from antdt_streams.storage.snapshots import pack, unpack

from bench.common import machine, write

IDENTITY = Identity("biglog", "topic-1")
WORKERS = [f"w{n}" for n in range(4)]
BATCH, STEPS_A_LEASE, CHECKPOINT_EVERY = 64, 16, 5_000


class Writer:
    """The ledger in office over a job that never ends; `entries` yields its log, `snapshot` are the rows of a snapshot
    that was taken when the next one was nearly due: the worst case for a start.
    """

    def __init__(self, total: int, steps: int, identity: Identity = IDENTITY) -> None:
        options = LedgerOptions()
        self.total, self.steps, self.every, self.identity = total, steps, behind_most(steps), identity
        samples = (total * steps + 2 * STEPS_A_LEASE) * BATCH * len(WORKERS)
        spec = records.JobSpec("big", samples, bytes(16), "sequential", 1, 0, BATCH, 4 * BATCH, 4, 3, "allreduce")
        self.genesis = records.Genesis(
            "run-1", "biglog", "bench", spec, FOLD_VERSION, "none", options.digest_every, options.patience_ms
        )
        self.fold, self.snapshot = Fold(), b""
        self.events = self.cursor = 0
        self.next_lease = 1
        # What the workers hold: [lease, front, end] of each.
        self.held: dict[str, deque[list[int]]] = {worker: deque() for worker in WORKERS}

    def entries(self) -> Iterator[container.LogEntry]:
        """The whole log."""
        leader = records.Leader("run-1", "leader-1", "bench", FOLD_VERSION)
        for offset, body in enumerate((self.genesis, leader)):
            first = codec.encode(records.Entry(body))
            self.fold.read(offset, first)
            yield container.LogEntry(offset, 1_000, first)
        office = InOffice(self.fold)
        for offset in range(2, self.total):
            payload, _ = office.propose([], self._facts(office.state, offset))
            cycle = office.read_back(offset, payload)
            assert cycle is not None
            self.events += len(cycle.body.events)
            yield container.LogEntry(offset, 1_000 + offset, payload)
            if offset + 1 == self.total - self.every:
                self.snapshot = pack(whole(self.fold, self.identity, 0))

    def marked(self, keep: Callable[[Waypoint], None]) -> Iterator[container.LogEntry]:
        """The whole log, with waypoints as `antdt export` makes them, but of the writer's own fold."""
        due = waypoints.EVERY_EVENTS
        for entry in self.entries():
            yield entry
            if self.events >= due:
                keep(Waypoint.of(self.fold, IDENTITY))
                due = self.events + waypoints.EVERY_EVENTS

    def _facts(self, state: State, offset: int) -> tuple[records.Event, ...]:
        if offset == 2:
            joined = [records.Joined(w, w, "worker", "h", 1, "n", "", 0) for w in WORKERS]
            return (*joined, records.Granted(1, tuple(WORKERS), None, None, 0, "init"))
        if offset == 3:
            return (*map(self._lease, 2 * WORKERS), records.Settled(1))
        out: list[records.Event] = []
        step, after = state.line.committed, state.line.lineage
        for _ in range(self.steps):
            step += 1
            ranges = [number for worker in WORKERS for number in self._take(worker)]
            after = lineage.next_lineage(after, step, ranges)
            out.append(records.Committed(1, step, tuple(ranges), after, 0))
        out += [self._lease(worker) for worker in WORKERS if len(self.held[worker]) < 2]
        if step // CHECKPOINT_EVERY > state.line.committed // CHECKPOINT_EVERY:
            out.append(records.Checkpointed(step, after, f"step-{step}"))
        return tuple(out)

    def _lease(self, worker: str) -> records.Leased:
        length = BATCH * STEPS_A_LEASE
        event = records.Leased(self.next_lease, STEPS_A_LEASE, worker, 1, 0, self.cursor, length)
        self.held[worker].append([self.next_lease, self.cursor, self.cursor + length])
        self.next_lease, self.cursor = self.next_lease + STEPS_A_LEASE, self.cursor + length
        return event

    def _take(self, worker: str) -> tuple[int, int, int, int]:
        lease = self.held[worker][0]
        number, front, end = lease
        lease[1] += BATCH
        if lease[1] == end:
            self.held[worker].popleft()
        return number, 0, front, BATCH


def generate(folder: Path, total: int, steps: int) -> dict[str, Any]:
    """Write the log and its snapshot."""
    writer, began = Writer(total, steps), time.perf_counter()
    with waypoints.writing(folder / "log.avro") as keep:
        header = container.write(folder / "log.avro", "biglog", "topic-1", writer.marked(keep))
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


def prove(folder: Path, processes: int) -> dict[str, Any]:
    """Audit the whole file, in one piece or in parts."""
    path, wall = folder / "log.avro", time.perf_counter()
    if processes == 1:
        with open_file(path) as log:
            report = audit(log, log.anchors)
    else:
        account = parts.prove(path, {}, processes)
        assert account is not None
        report = report_of(account, None)
    assert not report["broken"] and not report["repeated"] and not report["wrong_lineage"], report["verdict"]
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(sum(u.ru_utime + u.ru_stime for u in usage), 2),
        "peak_rss_mb": [u.ru_maxrss // 1024 for u in usage],  # of this process, and of the largest of its parts
        "digest": report["digest"],
    }


def behind_most(steps: int) -> int:
    """Entries that may lie behind the newest snapshot: an entry has about an event a step, and leases."""
    options = LedgerOptions()
    return min(options.snapshot_every, options.snapshot_events // steps)


def start(folder: Path, total: int, steps: int) -> dict[str, Any]:
    """From the snapshot to office. The entries behind it are in memory, as a fetch from a broker brings them."""
    packed = (folder / "snapshot").read_bytes()
    behind = behind_most(steps)
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


def apart(action: str, folder: Path, total: int, steps: int) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, "-m", "bench.biglog", "--only", action, "--folder", str(folder)]
    command += ["--entries", str(total), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(total: int, steps: int, starts: int) -> dict[str, Any]:
    """All figures of one length."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = apart("generate", folder, total, steps)
        verified = apart("verify", folder, total, steps)
        proven = {"audit": apart("audit", folder, total, steps), "parts": apart("parts", folder, total, steps)}
        started = sorted((apart("start", folder, total, steps) for _ in range(starts)), key=lambda s: s["start_s"])
        for found in (verified, *proven.values(), *started):
            assert found.pop("digest") == made["digest"], "another state than the generator's"
        verified["entries_per_s"] = round(total / verified["verify_s"])
        verified["events_per_s"] = round(made["events"] / verified["verify_s"])
        verified["events_per_cpu_s"] = round(made["events"] / verified["verify_cpu_s"])
        verified["ranges_per_s"] = round(len(WORKERS) * steps * total / verified["verify_s"])
        for found in proven.values():
            found["events_per_s"] = round(made["events"] / found["s"])
        proven["parts"]["processes"] = parts.cores()
        return {"steps_an_entry": steps} | made | verified | proven | {"start": started[len(started) // 2]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--entries", default="1000000,10000000")
    parser.add_argument("--busy", type=int, default=100_000, help="entries of the log of a busy ledger; 0: none")
    parser.add_argument("--starts", type=int, default=3, help="starts measured of each length, the median counts")
    parser.add_argument("--only", choices=("generate", "verify", "audit", "parts", "start"), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = [int(n) for n in options.entries.split(",")]
    if options.only:
        actions: dict[str, Callable[[], dict[str, Any]]] = {
            "generate": lambda: generate(options.folder, sizes[0], options.steps),
            "verify": lambda: verify(options.folder),
            "audit": lambda: prove(options.folder, 1),
            "parts": lambda: prove(options.folder, parts.cores()),
            "start": lambda: start(options.folder, sizes[0], options.steps),
        }
        print(json.dumps(actions[options.only]()))
        return
    results: list[dict[str, Any]] = []
    for total, steps in [*((n, 1) for n in sizes), *([(options.busy, 16)] if options.busy else [])]:
        results.append(measure(total, steps, options.starts))
        print(json.dumps(results[-1]), flush=True)
    out: dict[str, Any] = {"machine": machine(), "logs": results}
    if len(sizes) > 1:
        first, last = (results[n]["start"]["start_cpu_s"] for n in (0, len(sizes) - 1))
        out["start_ratio"] = round(last / first, 2)
        print(f"start, {sizes[-1]:,} against {sizes[0]:,} entries: {out['start_ratio']} times the CPU time")
    write(options.json, out)


if __name__ == "__main__":
    main()
