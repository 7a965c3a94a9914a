"""Events per second of verifying a log: Fold.read (hash chain, sequence, digests, state), and the whole audit.

`python -m bench.fold --json FILE`. The log is made by the ledger's own core while it is read, entry by entry, so no
length of it is ever in memory: half a hundred events an entry, two leases for each step, four members. Timed is the
reader alone, by the processor's time of this process; two lengths show whether it stays as fast.

Then a million events in a file, as `antdt export` leaves it: audit and replay, in one piece and in parts between
waypoints, one process a core, by turns and by the clock.
"""

from __future__ import annotations

import argparse
import itertools
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, TypeVar

from antdt_schemas.container import LogEntry
from antdt_schemas.container import write as write_file
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.stored import Identity
from antdt_streams.proof import parts, waypoints
from antdt_streams.proof.audit import audit, report_of
from antdt_streams.proof.replay import replay
from antdt_streams.proof.source import open_file

from bench.common import machine, spread, write
from bench.job import Job, Shape

LENGTHS_EVENTS = (10_000, 100_000)
FILE_EVENTS = 1_000_000
IDENTITY = Identity("bench", "topic-1")
T = TypeVar("T")
CHUNK = 200


class Stopped:
    """A log with its making taken off the clock: entries are made in chunks, ahead of the reader."""

    def __init__(self, events: int) -> None:
        self.events, self.bytes = events, 0
        self.making_s = self.making_cpu_s = 0.0

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        job = Job(Shape())
        entries = job.entries()
        while job.events < self.events:
            before_s, before_cpu_s = perf_counter(), process_time()
            chunk = list(itertools.islice(entries, CHUNK))
            self.making_s += perf_counter() - before_s
            self.making_cpu_s += process_time() - before_cpu_s
            yield from chunk
        self.events, self.bytes = job.events, job.bytes


def read(entries: Stopped) -> None:
    """Fold all of it."""
    fold = Fold(cached=False)
    for offset, payload in entries:
        fold.read(offset, payload)
    assert fold.state is not None and fold.state.shards.committed_total > 0


def prove(entries: Stopped) -> None:
    """Audit all of it. The data go on after the end of the log, so that alone may be wrong."""
    report = audit(entries)
    assert report["committed"] > 0 and not report["broken"] and not report["repeated"], report["verdict"]


def measure_file(repetitions: int) -> dict[str, Any]:
    """The audit of a file by one process, and by one process a core."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log.avro"
        made = Stopped(FILE_EVENTS)
        entries = (LogEntry(offset, 0, payload) for offset, payload in made)
        with waypoints.writing(path) as keep:
            write_file(path, IDENTITY.job, IDENTITY.topic_id, waypoints.marked(entries, IDENTITY, keep))
        rates: dict[str, list[float]] = {"audit": [], "audit_parts": [], "replay": [], "replay_parts": []}

        def timed(name: str, work: Callable[[], T]) -> T:
            before_s = perf_counter()
            done = work()
            rates[name].append(made.events / (perf_counter() - before_s))
            return done

        for _ in range(repetitions):
            with open_file(path) as log:
                report = timed("audit", lambda log=log: audit(log, log.anchors))
            with open_file(path) as log:
                replayed = timed("replay", lambda log=log: replay(log, anchors=log.anchors))
            account = timed("audit_parts", lambda: parts.prove(path, {}))
            assert account is None or report_of(account, None) == report
            account = timed("replay_parts", lambda: parts.prove(path, {}, counting=False))
            assert account is None or account.fold.position == replayed.fold.position
        return {
            "events": made.events,
            "megabytes": round(path.stat().st_size / 1e6, 1),
            "waypoints_megabytes": round(waypoints.beside(path).stat().st_size / 1e6, 1),
            "processes": parts.cores(),
            "events_per_s": {name: spread(found, 0) for name, found in rates.items()},
        }


def measure(repetitions: int) -> dict[str, Any]:
    """Both readers, at both lengths, and the file."""
    out: dict[str, Any] = {}
    for length in LENGTHS_EVENTS:
        for name, reader in (("fold", read), ("audit", prove)):
            per_cpu_s, per_s = [], []
            for _ in range(repetitions):
                entries = Stopped(length)
                before_s, before_cpu_s = perf_counter(), process_time()
                reader(entries)
                per_s.append(entries.events / (perf_counter() - before_s - entries.making_s))
                per_cpu_s.append(entries.events / (process_time() - before_cpu_s - entries.making_cpu_s))
            out[f"{name}_{length}"] = {
                "events_per_cpu_s": spread(per_cpu_s, 0),
                "events_per_s": spread(per_s, 0),
                "bytes_an_event": round(entries.bytes / entries.events, 1),
            }
    longest = max(LENGTHS_EVENTS)
    return {
        "fold_events_per_s": out[f"fold_{longest}"]["events_per_cpu_s"]["median"],
        "audit_events_per_s": out[f"audit_{longest}"]["events_per_cpu_s"]["median"],
        **out,
        "file": measure_file(repetitions),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "repetitions": repetitions,
        "machine": machine(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    results = measure(options.repetitions)
    for name, r in results.items():
        if isinstance(r, dict) and "events_per_cpu_s" in r:
            cpu, wall = r["events_per_cpu_s"], r["events_per_s"]
            print(
                f"{name:<14} {cpu['median']:>9,.0f} events per second of the processor [{cpu['min']:,.0f} to "
                f"{cpu['max']:,.0f}], {wall['median']:>9,.0f} by the clock, {r['bytes_an_event']} B an event"
            )
    for name, r in results["file"]["events_per_s"].items():
        print(
            f"file, {name:<13} {r['median']:>9,.0f} events per second by the clock [{r['min']:,.0f} to {r['max']:,.0f}]"
        )
    print(f"peak memory {results['peak_rss_mb']} MB")
    write(options.json, results)


if __name__ == "__main__":
    main()
