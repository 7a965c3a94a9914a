"""Shards leased and committed per second: by Agents over a real broker, one at a time, in process, and by DLRover.

`python -m bench.ledger --json FILE`. A pair is one shard that was leased and committed. An Agent does not ask for one
shard: a lease request is answered with a run of them, a commit reports many steps at once. So the number of requests
and of log entries stands beside every rate, and so does the rate when every request covers a single shard.

What was counted was really served: after every run the whole log is folded anew (hash chain included), and what it says
was committed must cover what the clients counted, without a refusal.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError
from antdt_schemas.topics import SHARD_LOG
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.reader import TopicReader
from antdt_streams.ledger.core.fold import Fold

from bench import shard_clients as clients
from bench.common import machine, spread, write
from bench.job import ONE_SHARD_A_REQUEST, Job, Shape
from bench.peers.environment import python_of

ROOT = Path(__file__).resolve().parent.parent
SHARD_SIZE = 8
SHARDS_A_TAKE = 8  # what the Agent chooses: a shard is an eighth of an even share
WINDOW = 32
WARM_UP_S = 1.5
IN_PROCESS_ENTRIES = 400
MEMBERS = 4


@dataclass(frozen=True, slots=True)
class Rate:
    """One run over the broker, and what it took."""

    pairs_per_s: float
    pairs: int
    requests_a_pair: float
    entries_a_pair: float
    ledger_cpu_us_a_pair: float


class Bench:
    """A broker, and jobs that come and go on it."""

    def __init__(self, connection: Connection, folder: Path, seconds: float) -> None:
        self.connection, self.folder, self.seconds = connection, folder, seconds
        self._jobs = itertools.count(1)

    def as_agents(self) -> Rate:
        """Four members with prefetch and batched commits, one of which commits."""
        batch = SHARD_SIZE * SHARDS_A_TAKE

        def start(job: str, pipes: list[tuple[Pipe, Pipe]], result: Pipe) -> list[Any]:
            common = self.connection, job
            others = [mine for mine, _ in pipes]
            seconds = WARM_UP_S, self.seconds
            first = _process(clients.lead, *common, MEMBERS, batch, SHARD_SIZE, others, seconds, result)
            return [first] + [
                _process(clients.follow, *common, i + 1, MEMBERS, batch, SHARD_SIZE, theirs)
                for i, (_, theirs) in enumerate(pipes)
            ]

        return self._run(start)

    def one_shard_a_request(self) -> Rate:
        """Four clients, each request for one shard, WINDOW of them in flight."""

        def start(job: str, pipes: list[tuple[Pipe, Pipe]], result: Pipe) -> list[Any]:
            common = self.connection, job
            others = [mine for mine, _ in pipes]
            rest = MEMBERS, SHARD_SIZE, WINDOW
            return [_process(clients.ask, *common, 0, *rest, others, self.seconds, result)] + [
                _process(clients.ask, *common, i + 1, *rest, theirs, self.seconds, None)
                for i, (_, theirs) in enumerate(pipes)
            ]

        return self._run(start)

    def one_at_a_time(self) -> dict[str, Any]:
        """Milliseconds of single requests of a single client."""
        with self._job() as job, clients.ledger_process(self.connection, job, self.folder / job):
            leases_ms, commits_ms = clients.one_at_a_time(self.connection, job, SHARD_SIZE, self.seconds)
            self._verify(job, len(commits_ms))
        both = leases_ms + commits_ms
        pairs = [a + b for a, b in zip(leases_ms, commits_ms, strict=True)]
        return {
            "p50_ms": _percentile(both, 50),
            "p99_ms": _percentile(both, 99),
            "p50_ms_lease": _percentile(leases_ms, 50),
            "p50_ms_commit": _percentile(commits_ms, 50),
            "p50_ms_pair": _percentile(pairs, 50),
            "requests": len(both),
        }

    @contextmanager
    def _job(self) -> Iterator[str]:
        job = f"bench-{next(self._jobs)}"
        topics_admin.create(self.connection, job)
        try:
            yield job
        finally:
            topics_admin.delete(self.connection, job)

    def _run(self, start: Callable[[str, list[tuple[Pipe, Pipe]], Pipe], list[Any]]) -> Rate:
        pipes = [clients.SPAWN.Pipe() for _ in range(MEMBERS - 1)]
        mine, theirs = clients.SPAWN.Pipe(duplex=False)
        with self._job() as job:
            with clients.ledger_process(self.connection, job, self.folder / job) as used:
                processes = start(job, pipes, theirs)
                try:
                    for pipe in (theirs, *(p for both in pipes for p in both)):
                        pipe.close()  # so that a process that dies is an EOFError and not a wait
                    served: clients.Served = clients.receive(mine)
                    for process in processes:
                        process.join(clients.WAIT_S)
                finally:
                    for process in processes:
                        process.kill()
            fold = self._verify(job, served.samples // SHARD_SIZE)
        assert fold.state is not None
        pairs, all_pairs = served.samples / SHARD_SIZE, fold.state.shards.committed_total / SHARD_SIZE
        return Rate(
            pairs_per_s=round(pairs / served.seconds),
            pairs=round(pairs),
            requests_a_pair=round(fold.state.requests_next / all_pairs, 4),
            entries_a_pair=round(fold.counted_entries / all_pairs, 4),
            ledger_cpu_us_a_pair=round(used[0] / all_pairs * 1e6, 1),
        )

    def _verify(self, job: str, pairs: int) -> Fold:
        fold = Fold(cached=False)
        with TopicReader(self.connection, job, SHARD_LOG) as reader:
            for raw in reader.to_end():
                fold.read(raw.offset, raw.value)
        assert fold.state is not None
        if fold.state.shards.committed_total < pairs * SHARD_SIZE or fold.state.refused:
            raise RuntimeError(
                f"Not what was counted: the log has {fold.state.shards.committed_total} samples committed and "
                f"{fold.state.refused} requests refused, the clients counted {pairs * SHARD_SIZE} samples."
            )
        return fold


def _process(target: Callable[..., None], *args: Any) -> multiprocessing.process.BaseProcess:
    process = clients.SPAWN.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def _percentile(values: list[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100)[percent - 1], 3)


def in_process(shape: Shape, entries: int = IN_PROCESS_ENTRIES) -> dict[str, float]:
    """The ledger's core alone: bytes of requests in, entries appended to a list in memory, bytes of replies out."""
    job = Job(shape)
    for _ in itertools.islice(job.entries(), entries):
        pass
    return {
        "pairs_per_s": job.pairs / job.ledger_s,
        "pairs_per_cpu_s": job.pairs / job.ledger_cpu_s,
        "requests_a_pair": job.requests / job.pairs,
        "entries_a_pair": entries / job.pairs,
    }


def dlrover(seconds: float) -> dict[str, Any]:
    """One repetition of the peer, in its own environment."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "dlrover.json"
        command = [str(python_of("dlrover")), "-m", "bench.peers.dlrover_shards", "--clients", str(MEMBERS)]
        command += ["--seconds", str(seconds), "--repetitions", "1", "--json", str(file)]
        subprocess.run(command, cwd=ROOT, check=True, timeout=300)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found


def measure(seconds: float, repetitions: int, peer: bool) -> dict[str, Any]:
    """Everything, repetition by repetition, so that what the machine does meanwhile hits all of them."""
    agents, singles, alone, cores, cores_single, peers = [], [], [], [], [], []
    trouble = "" if peer else "left out"
    with tempfile.TemporaryDirectory() as scratch, EmbeddedBroker(Path(scratch) / "broker") as broker:
        bench = Bench(broker.connection, Path(scratch), seconds)
        for _ in range(repetitions):
            agents.append(bench.as_agents())
            alone.append(bench.one_at_a_time())
            singles.append(bench.one_shard_a_request())
            cores.append(in_process(Shape()))
            cores_single.append(in_process(ONE_SHARD_A_REQUEST))
            if peer and not trouble:
                try:
                    peers.append(dlrover(seconds))
                except (AntdtError, subprocess.SubprocessError) as error:
                    trouble = str(error)
    rates = spread([r.pairs_per_s for r in agents], 0)
    return {
        "pairs_per_s_4_clients": rates["median"],
        "p50_ms_1_client": statistics.median(a["p50_ms"] for a in alone),
        "in_process_pairs_per_s": round(statistics.median(c["pairs_per_s"] for c in cores)),
        "dlrover_pairs_per_s_4_clients": statistics.median(p["pairs_per_s_median"] for p in peers) if peers else None,
        "dlrover_p50_ms_1_client_pair": statistics.median(p["p50_ms"] for p in peers) if peers else None,
        "dlrover_missing": trouble or None,
        "as_agents": _rates(agents),
        "one_shard_a_request": _rates(singles),
        "one_at_a_time": {key: spread([a[key] for a in alone], 3) for key in alone[0]},
        "in_process": _table(cores),
        "in_process_one_shard_a_request": _table(cores_single),
        "dlrover": spread([p["pairs_per_s_median"] for p in peers]) if peers else None,
        "stolen_percent": [p["stolen_percent"][0] for p in peers],
        "repetitions": repetitions,
        "seconds": seconds,
        "machine": machine(),
    }


def _rates(runs: list[Rate]) -> dict[str, Any]:
    return {name: spread([getattr(r, name) for r in runs], 4) for name in Rate.__slots__}


def _table(runs: list[dict[str, float]]) -> dict[str, Any]:
    return {name: spread([r[name] for r in runs], 4) for name in runs[0]}


def show(results: dict[str, Any]) -> None:
    """The results for people."""
    print(f"{'pairs/s':>10} {'[min':>9} {'max]':>9} {'requests':>10} {'entries':>9}   each for one pair, as is CPU")
    lines = [
        ("as_agents", "pairs_per_s", "4 clients as the Agent does it, real broker"),
        ("one_shard_a_request", "pairs_per_s", f"4 clients, one shard a request, {WINDOW} in flight, real broker"),
        ("in_process", "pairs_per_s", "in process, requests as Agents write them"),
        ("in_process", "pairs_per_cpu_s", "the same, per second of the processor"),
        ("in_process_one_shard_a_request", "pairs_per_s", "in process, one shard a request"),
        ("in_process_one_shard_a_request", "pairs_per_cpu_s", "the same, per second of the processor"),
    ]
    for name, field, words in lines:
        part = results[name]
        rate, requests, entries = part[field], part["requests_a_pair"]["median"], part["entries_a_pair"]["median"]
        cpu = f", ledger {part['ledger_cpu_us_a_pair']['median']:.0f} µs" if "ledger_cpu_us_a_pair" in part else ""
        print(
            f"{rate['median']:>10,.0f} {rate['min']:>9,.0f} {rate['max']:>9,.0f} {requests:>10.3f} {entries:>9.4f}"
            f"   {words}{cpu}"
        )
    if results["dlrover"]:
        rate = results["dlrover"]
        print(
            f"{rate['median']:>10,.0f} {rate['min']:>9,.0f} {rate['max']:>9,.0f} {2:>10.3f} {0:>9.4f}"
            "   DLRover 0.6.1, 4 clients, not durable"
        )
    else:
        print(f"DLRover was not measured: {results['dlrover_missing']}")
    alone = results["one_at_a_time"]
    print(
        f"One client, one request at a time: p50 {alone['p50_ms']['median']:.2f} ms "
        f"[{alone['p50_ms']['min']:.2f} to {alone['p50_ms']['max']:.2f}], p99 {alone['p99_ms']['median']:.2f} ms; "
        f"a pair p50 {alone['p50_ms_pair']['median']:.2f} ms (DLRover {results['dlrover_p50_ms_1_client_pair']})."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--seconds", type=float, default=4.0, help="timed part of one run")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--without-dlrover", action="store_true", help="do not build its environment, do not run it")
    options = parser.parse_args()
    results = measure(options.seconds, options.repetitions, not options.without_dlrover)
    show(results)
    write(options.json, results)


if __name__ == "__main__":
    main()
