"""What exactness costs a run beside the time of a step: comparing replicas, memory at a checkpoint, bytes of the log.

`python -m bench.costs --json FILE`; `--only fingerprint`, `memory` or `log` measures one of them.
    fingerprint   a member's part of comparing a model of 40 million parameters at the default interval, spread over the
                  steps between two comparisons, as a share of a step of 100 ms
    memory        the largest resident size of a process that trains 41 million parameters with AdamW, and writes a
                  checkpoint every two steps as a job's first member does, over that of a plain loop with torch.save
    log           bytes of values in `shard-log` and in `requests` for each step of 100 ms, of the same job of two and
                  of eight workers (--workers), with steps of a fixed size and with leased samples. event_bytes: what
                  events make of it from the first committed step to the last; the rest is the entries' own, one for
                  whatever requests came together, and the job's beginning and end
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import torch
from antdt.agent import Agent, AgentOptions
from antdt.files import checkpoint
from antdt.strategies.allreduce.memory import Buffers
from antdt.strategies.allreduce.options import AllReduce
from antdt.strategies.allreduce.replicas import Replica
from antdt_schemas import codec, records
from antdt_schemas.topics import REQUESTS
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.chaos.judge import entries_of, judge_log
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.reader import TopicReader
from antdt_streams.local.place import Place
from antdt_streams.local.services import environment_of, start_services
from antdt_streams.local.supervise import last_words, start_process
from torch import nn
from torch.utils.data import TensorDataset

from bench.common import machine, spread, write
from bench.habit_loops import ENV_DEVICE

WITHIN_S = 300.0
DEVICE = torch.device(os.environ.get(ENV_DEVICE, "cpu"))  # of the model whose replicas are compared
STEP_MS = 100.0  # that of which a comparison is a share
WIDTH, LAYERS = 1024, 39
MEMORY_STEPS, CHECKPOINT_EVERY = 8, 2
ORDERS = ("steps", "shards")
LOG_WORKERS, LOG_STEPS, LOG_BATCH, LOG_STEP_S = (2, 8), 200, 64, STEP_MS / 1000


def model_of(width: int, layers: int) -> nn.Module:
    """layers * width * (width + 1) parameters."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)]).to(DEVICE)


# -- replicas compared


def fingerprint(repetitions: int) -> dict[str, Any]:
    """Milliseconds of one comparison, and microseconds that it makes of each step."""
    model = model_of(WIDTH, LAYERS)
    optimizer = torch.optim.AdamW(model.parameters())
    replica = Replica(model, optimizer, Buffers(model))
    size_bytes = sum(param.numel() * param.element_size() for param in model.parameters())
    every = AllReduce().compared_every(size_bytes)
    replica.state(frozen=False)
    whole = [_timed_ms(lambda: replica.state(frozen=False)) for _ in range(repetitions)]
    each = [_timed_ms(lambda: (replica.stepped(1.0), replica.trained(0))) for _ in range(repetitions)]
    shares = [100 * (at / every + always) / STEP_MS for at, always in zip(whole, each, strict=True)]
    return {
        "parameters": size_bytes // 4,
        "every_steps": every,
        "comparison_ms": spread(whole, 2),
        "each_step_us": spread([ms * 1e3 for ms in each], 1),
        "percent_of_step": spread(shares, 4),
    }


def _timed_ms(act: Callable[[], Any]) -> float:
    before = perf_counter()
    act()
    return (perf_counter() - before) * 1e3


# -- memory at a checkpoint


def resident_mb() -> float:
    """The largest that this process has had, in MB. (`ru_maxrss` would know that of whoever forked it.)"""
    (line,) = (one for one in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if "VmHWM" in one)
    return int(line.split()[1]) * 1024 / 1e6


def _memory_of(kind: str, folder: Path) -> None:
    """A process of its own: trains, writes, prints what it needed. kind: "plain" or "agent"."""
    torch.set_num_threads(1)
    model = model_of(WIDTH, LAYERS + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if kind == "plain":
        for step in range(1, MEMORY_STEPS + 1):
            optimizer.zero_grad()
            model(torch.randn(8, WIDTH)).square().mean().backward()
            optimizer.step()
            if step % CHECKPOINT_EVERY == 0:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "plain.pt")
    else:
        data = TensorDataset(torch.randn(8 * MEMORY_STEPS, WIDTH))
        agent = Agent(model, optimizer, data, batch_size=8)
        for (x,) in agent:
            agent.step(model(x).square().mean())
            if agent.step_number % CHECKPOINT_EVERY == 0:  # alone nothing is recorded: as a first member does it
                agent.strategy.verify()
                random = agent.strategy.gather_random()
                checkpoint.write(folder, "agent.pt", lambda out, random=random: agent.strategy.save(out, random))
    print(f"{resident_mb():.1f}")


def _started(kind: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.costs", "--child", kind, "--folder", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _read(process: subprocess.Popen[str]) -> float:
    out, _ = process.communicate(timeout=WITHIN_S)
    if process.returncode:
        raise RuntimeError(f"A process of the benchmark ended with status {process.returncode}; its error is above.")
    return float(out.split()[-1])


def memory(folder: Path, repetitions: int) -> dict[str, Any]:
    """Megabytes, and how many times the plain loop's."""
    plain, agent = list[float](), list[float]()
    for _ in range(repetitions):
        plain.append(_read(_started("plain", folder)))
        agent.append(_read(_started("agent", folder)))
    times = [mine / theirs for mine, theirs in zip(agent, plain, strict=True)]
    return {"plain_mb": spread(plain), "agent_mb": spread(agent), "times_plain": spread(times, 3)}


# -- bytes of the log


def _log_worker(order: str) -> None:
    """A process of its own: a member of the job whose log is measured."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = TensorDataset(torch.randn(LOG_STEPS * LOG_BATCH, 8))
    agent = Agent(model, optimizer, data, batch_size=LOG_BATCH, options=AgentOptions(order=order))
    for (x,) in agent:
        sleep(LOG_STEP_S)  # what a batch takes
        agent.step(model(x).square().mean())


def log_of(broker: EmbeddedBroker, folder: Path, order: str, workers: int) -> dict[str, float]:
    """Bytes and entries a step, of one job."""
    job, connection, place = folder.name, broker.connection, Place(broker.connection, True, folder, None)
    folder.mkdir(parents=True)
    topics_admin.create(connection, job)
    services = start_services(job, place, connection, ("ledger",))
    command = [sys.executable, "-m", "antdt.launch", "--job", job, "-n", str(workers), "--"]
    command += ["-m", "bench.costs", "--child", order]
    launch = start_process(command, dict(os.environ) | environment_of(connection, place), folder / "workers.log")
    until = monotonic() + WITHIN_S
    try:
        while launch.poll() is None and monotonic() < until:
            services.poll()
            sleep(0.02)  # between two looks
        assert launch.poll() == 0, last_words(folder / "workers.log")
    finally:
        launch.kill()
        launch.wait(10)
        services.stop()
    entries = entries_of(connection, job)
    report, wrong = judge_log(entries)
    assert not wrong, wrong
    with TopicReader(connection, job, REQUESTS) as reader:
        requests = sum(len(raw.value) for raw in reader.to_end())
    topics_admin.delete(connection, job)
    found = {
        "log_bytes": sum(len(value) for _, value in entries),
        "event_bytes": event_bytes([value for _, value in entries]),
        "request_bytes": requests,
        "entries": len(entries),
    }
    return {"steps": report["steps"], **{what: total / report["steps"] for what, total in found.items()}}


def event_bytes(values: Sequence[bytes]) -> int:
    """By how much events lengthen entries, from the first one with a committed step to the last."""
    lengths = list[tuple[bool, int]]()
    for value in values:
        entry = codec.decode(value, records.Entry)
        if isinstance(entry.body, records.Cycle):
            commits = any(isinstance(event, records.Committed) for event in entry.body.events)
            bare = replace(entry, body=replace(entry.body, events=()))
            lengths.append((commits, len(value) - len(codec.encode(bare))))
    at = [number for number, (commits, _) in enumerate(lengths) if commits]
    return sum(length for _, length in lengths[at[0] : at[-1] + 1])


def log_bytes(broker: EmbeddedBroker, folder: Path, repetitions: int, worlds: Sequence[int]) -> dict[str, Any]:
    """A step's, for each order and number of workers, in turn."""
    made: dict[str, list[dict[str, float]]] = {f"{order}, {n} workers": [] for n in worlds for order in ORDERS}
    for number in range(repetitions):
        for workers in worlds:
            for order in ORDERS:
                job = folder / f"bench-log-{order}-{workers}-{number}"
                made[f"{order}, {workers} workers"].append(log_of(broker, job, order, workers))
    return {kind: {name: spread([row[name] for row in rows], 2) for name in rows[0]} for kind, rows in made.items()}


# -- the whole


def measure(only: str, repetitions: int, worlds: Sequence[int]) -> dict[str, Any]:
    """What was asked for."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    if only in ("", "fingerprint"):
        results["fingerprint"] = r = fingerprint(10 * repetitions)
        ms, percent = r["comparison_ms"], r["percent_of_step"]
        print(
            f"fingerprint: {ms['median']} ms [{ms['min']} to {ms['max']}] every {r['every_steps']} steps, "
            f"{percent['median']} % [{percent['min']} to {percent['max']}] of a step of {STEP_MS:g} ms",
            flush=True,
        )
    if only in ("", "memory"):
        with tempfile.TemporaryDirectory(prefix="antdt-costs-") as folder:
            results["memory"] = r = memory(Path(folder), repetitions)
        times = r["times_plain"]
        print(
            f"memory: {r['agent_mb']['median']} MB, a plain loop {r['plain_mb']['median']}: {times['median']} times "
            f"[{times['min']} to {times['max']}]"
        )
    if only in ("", "log"):
        with (
            tempfile.TemporaryDirectory(prefix="antdt-costs-") as name,
            EmbeddedBroker(Path(name) / "kafka") as broker,
        ):
            results["log"] = log_bytes(broker, Path(name), repetitions, worlds)
        for kind, r in results["log"].items():
            shown = (f"{what} {one['median']} [{one['min']} to {one['max']}]" for what, one in r.items())
            print(f"log of {kind}, a step: {', '.join(shown)}")
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--only", choices=("fingerprint", "memory", "log"), default="")
    parser.add_argument("--workers", type=int, nargs="+", default=LOG_WORKERS, help="of the jobs whose log is measured")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child in ORDERS:
        _log_worker(options.child)
    elif options.child:
        _memory_of(options.child, options.folder)
    else:
        write(options.json, {**measure(options.only, options.repetitions, options.workers), "machine": machine()})


if __name__ == "__main__":
    main()
