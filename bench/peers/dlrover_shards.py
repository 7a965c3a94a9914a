"""DLRover's shard service through the network: get_task + report_task_result, its lease and its commit of one shard.

Runs in DLRover's own environment, from the project's root, and imports nothing of ours:

    python -m bench.peers.environment dlrover
    bench/peers/env/dlrover/bin/python -m bench.peers.dlrover_shards --clients 4 --seconds 5 --json FILE

The master is the one that DLRover ships (`dlrover.python.master.main`, platform local, gRPC: its default) in a process
of its own. Every client is a process with DLRover's own MasterClient, one call at a time. They share the computer.

Logging and event files are off in the timed part, on both sides, although DLRover has them on by default: its two log
lines per shard can only cost it speed, and they say nothing about its design.

What is counted was really served: after every run the ids acknowledged by all clients must be 0..n-1, each once and
with its own range of samples, and the master's checkpoint must show nothing in progress and exactly the rest still to
do. A client's first half second is not timed, but checked as well.

`stolen_percent` is the processor time that a hypervisor took away in each repetition. On a shared virtual machine rates
differed by a factor of six, mostly (not only) with it: compare only runs made side by side, and look at it first.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

SHARDS_PER_EPOCH = 10_000
SAMPLES_PER_SHARD = 100
# More than any run can use up: the end of a data set is not what is measured.
EPOCHS = 1_000
WARM_UP_S = 0.5
START_TIMEOUT_S = 60.0
# Above the time after which DLRover's client gives up on one call and waits (5 s), so that its message is seen.
GRACE_S = 30.0
QUIET = {"DLROVER_LOG_LEVEL": "ERROR", "DLROVER_EVENT_ENABLE": "false"}
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Served:
    """One client's run: every shard it acknowledged, warm-up included, and the latencies of the timed ones."""

    shards: list[tuple[int, int, int]]  # (task id, first sample, end)
    latencies_ms: list[float]
    started_s: float  # CLOCK_MONOTONIC, the same for all processes of a computer
    ended_s: float


def _end_with_parent() -> None:
    """Nothing is left running, even when the benchmark itself is killed with SIGKILL."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(port: int) -> None:
    _end_with_parent()
    from dlrover.python.master import main as master  # type: ignore[import-not-found, unused-ignore]

    sys.argv = ["master", "--platform", "local", "--job_name", "antdt-bench", "--port", str(port)]
    os._exit(master.main())


def _connect(port: int, node_id: int) -> Any:
    from dlrover.python.elastic_agent.master_client import (  # type: ignore[import-not-found, unused-ignore]
        GrpcMasterClient,
    )

    return GrpcMasterClient(f"127.0.0.1:{port}", node_id, "worker")


def _consume(port: int, node_id: int, dataset: str, seconds: float, barrier: Barrier, results: Connection) -> None:
    _end_with_parent()
    client = _connect(port, node_id)
    shards: list[tuple[int, int, int]] = []
    _take_until(client, dataset, time.monotonic() + WARM_UP_S, shards)
    barrier.wait(START_TIMEOUT_S)
    started_s = time.monotonic()
    latencies_ms = _take_until(client, dataset, started_s + seconds, shards)
    results.send(Served(shards, latencies_ms, started_s, time.monotonic()))


def _take_until(client: Any, dataset: str, deadline_s: float, shards: list[tuple[int, int, int]]) -> list[float]:
    latencies_ms = []
    before_s = time.monotonic()
    while before_s < deadline_s:
        found, task = client.get_task(dataset)
        answer = client.report_task_result(dataset, task.task_id, "")
        after_s = time.monotonic()
        assert found and answer.success and task.shard.end > task.shard.start, (found, answer, task)
        shards.append((task.task_id, task.shard.start, task.shard.end))
        latencies_ms.append((after_s - before_s) * 1e3)
        before_s = after_s
    return latencies_ms


@contextmanager
def local_master(folder: str) -> Iterator[int]:
    """Port of a master that is up and writes to `folder` only; RuntimeError when it is not within START_TIMEOUT_S."""
    # DLRover opens an event file at start even with events off, by default in one fixed folder that is never cleared.
    os.environ["DLROVER_EVENT_FILE_DIR"] = folder
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = SPAWN.Process(target=_serve, args=(port,), name="dlrover-master", daemon=True)
    process.start()
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            if not process.is_alive() or time.monotonic() > deadline_s:
                raise RuntimeError(f"DLRover's master did not come up: its status is {process.exitcode}.")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.join(GRACE_S)


def run_once(port: int, dataset: str, clients: int, seconds: float) -> list[Served]:
    """`clients` processes taking shards of a new data set for `seconds`; RuntimeError when one of them fails."""
    registrar = _connect(port, clients)
    registrar.report_dataset_shard_params(
        batch_size=SAMPLES_PER_SHARD,
        num_epochs=EPOCHS,
        dataset_size=SHARDS_PER_EPOCH * SAMPLES_PER_SHARD,
        num_minibatches_per_shard=1,
        dataset_name=dataset,
        storage_type="table",
    )
    barrier = SPAWN.Barrier(clients)
    ends, processes = [], []
    try:
        for node_id in range(clients):
            mine, theirs = SPAWN.Pipe(duplex=False)
            process = SPAWN.Process(
                target=_consume, args=(port, node_id, dataset, seconds, barrier, theirs), daemon=True
            )
            process.start()
            theirs.close()  # so that a client that dies is an EOFError here and not a wait
            ends.append(mine)
            processes.append(process)
        deadline_s = time.monotonic() + START_TIMEOUT_S + seconds + GRACE_S
        served = [_receive(end, deadline_s) for end in ends]
        _check(served, json.loads(registrar.get_shard_checkpoint(dataset)))
        return served
    finally:
        for process in processes:
            process.kill()
            process.join(GRACE_S)


def _receive(end: Connection, deadline_s: float) -> Served:
    if not end.poll(max(0.0, deadline_s - time.monotonic())):
        raise RuntimeError("A client of DLRover had no result in time.")
    try:
        served: Served = end.recv()
    except EOFError:
        raise RuntimeError("A client of DLRover ended without a result; its error is above.") from None
    return served


def _check(served: list[Served], checkpoint: dict[str, Any]) -> None:
    """RuntimeError unless every shard was served and acknowledged once, for the clients as for the master."""
    shards = sorted(shard for one in served for shard in one.shards)
    starts = [index % SHARDS_PER_EPOCH * SAMPLES_PER_SHARD for index in range(len(shards))]
    expected = [(index, start, start + SAMPLES_PER_SHARD) for index, start in enumerate(starts)]
    rest = checkpoint["epoch"] * SHARDS_PER_EPOCH - len(shards)
    if shards != expected or checkpoint["doing"] or len(checkpoint["todo"]) != rest:
        ids = {shard[0] for shard in shards}
        raise RuntimeError(
            f"Not every shard was served once: {len(shards)} acknowledgements of {len(ids)} ids, the master has "
            f"{len(checkpoint['doing'])} in progress and {len(checkpoint['todo'])} to do where {rest} are left."
        )


def _cpu_ticks() -> tuple[int, int]:
    """(stolen, all) since boot, by /proc/stat; (0, 0) where there is none."""
    if not Path("/proc/stat").exists():
        return 0, 0
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[7], sum(ticks)


def pairs_per_s(served: list[Served]) -> float:
    """Completed pairs of all clients over the time from the first start to the last end."""
    elapsed_s = max(one.ended_s for one in served) - min(one.started_s for one in served)
    return sum(len(one.latencies_ms) for one in served) / elapsed_s


def measure(clients: int, seconds: float, repetitions: int) -> dict[str, Any]:
    """The report that goes to the file: rates with `clients`, latencies of a run of its own with one client."""
    os.environ.update(QUIET)  # before anything of DLRover is imported, here and in the processes that inherit it
    with tempfile.TemporaryDirectory() as folder, local_master(folder) as port:
        ticks = [_cpu_ticks()]
        (alone,) = run_once(port, "latency", 1, seconds)
        runs = []
        ticks.append(_cpu_ticks())
        for index in range(repetitions):
            runs.append(run_once(port, f"rate-{index}", clients, seconds))
            ticks.append(_cpu_ticks())
    stolen = [round(100 * (b[0] - a[0]) / max(1, b[1] - a[1]), 1) for a, b in pairwise(ticks)]
    percentiles_ms = statistics.quantiles(alone.latencies_ms, n=100)
    rates = [round(pairs_per_s(served), 1) for served in runs]
    return {
        "clients": clients,
        "pairs_per_s": rates,
        "pairs_per_s_median": round(statistics.median(rates), 1),
        "p50_ms": round(percentiles_ms[49], 3),
        "p99_ms": round(percentiles_ms[98], 3),
        "stolen_percent": stolen[1:],
        "stolen_percent_latency": stolen[0],
        "acknowledged_once": sum(len(one.shards) for served in [[alone], *runs] for one in served),
        "version": metadata.version("dlrover"),
    }


def main() -> None:
    """Measure, and write the report as JSON to --json or to stdout."""
    parser = argparse.ArgumentParser(description="Shard pairs per second of DLRover's master")
    parser.add_argument("--clients", type=int, default=1, choices=range(1, 65), metavar="1..64")
    parser.add_argument("--seconds", type=float, default=5.0, help="timed part of one repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the report, stdout without it")
    options = parser.parse_args()
    if not (0.5 <= options.seconds <= 600 and 1 <= options.repetitions <= 100):
        parser.error("--seconds must be within 0.5..600 and --repetitions within 1..100")
    try:
        metadata.version("dlrover")
    except metadata.PackageNotFoundError:
        parser.error(
            "DLRover is not installed here: run the Python that `python -m bench.peers.environment dlrover` prints"
        )
    text = json.dumps(measure(options.clients, options.seconds, options.repetitions)) + "\n"
    if options.json:
        options.json.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
