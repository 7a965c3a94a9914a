"""What the live page costs, and how soon it shows something: `python -m bench.page --json FILE`.

Over a real broker, with the server as users start it (`antdt web`), each as a process of its own:
  cpu_share_256, cpu_share_4096   share of one core that the server takes while so many workers report: two records of
                                  `steps` a second each, a measurement of all of them every half second, ten committed
                                  steps a second in the log, now and then a decision; five viewers by server-sent
                                  events, two of which look further down the list
  first_paint_s                   of a job of a million entries, from the newest snapshot, which is as old as it may be,
                                  on a server that has not looked at the job: from the navigation until the numbers are
                                  on the page in a real Chromium, or, without one, until they have arrived
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
from antdt_schemas import codec, records, topics
from antdt_schemas.connection import Connection
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.host.readiness import ENV_READY_FILE
from antdt_streams.kafka import topics_admin
from antdt_streams.ledger.snapshots import SERVICE
from antdt_streams.ledger.stored import Identity
from antdt_streams.storage.snapshots import SnapshotWriter, unpack
from confluent_kafka import Producer

from bench.biglog import Writer
from bench.chromium import chromium, program
from bench.common import machine, spread, write

VIEWERS = 5
TARGETS = {"cpu_share_256": 0.02, "cpu_share_4096": 0.05, "first_paint_s": 1.0}
STEPS_A_RECORD, STEP_S, RECORDS_EVERY_S = 5, 0.1, 0.5
JOB = "biglog"


def step_batch(worker: str, first: int) -> bytes:
    n = STEPS_A_RECORD
    numbers = tuple(range(first, first + n))
    columns = ((0.0021,) * n, (0.0617,) * n, (0.0043,) * n, (0.0319,) * n)
    return codec.encode(records.StepBatch(worker, f"{worker}.0.x", 1, "node", "gpu", first, 0, numbers, (32,) * n,
                                          (1,) * n, *columns))  # fmt: skip


def measurement(workers: int, window: int) -> bytes:
    nodes = tuple(
        records.NodeMeasurement(f"w{n}", f"w{n}.0.x", "worker", records.NodeClass.HEALTHY, 0.01, 0.002 + 1e-8 * n, 0.05,
                                0.001, 32, 0, 0, 64, "worker", 0, 0.7)
        for n in range(workers)
    )  # fmt: skip
    cause = records.Cause(0, window, 0)
    return codec.encode(records.Measurement(cause, window, False, 1, 5 * window, 1, nodes, False, (), 0.0, 0, 9,
                                            "allreduce", STEP_S, 32.0 * workers / STEP_S))  # fmt: skip


def decision(workers: int, plan: int) -> bytes:
    shares = tuple(records.Assignment(f"w{n}", 32, 1) for n in range(workers))
    return codec.encode(records.Decision(records.Cause(0, plan, 0), plan, records.Action.ADJUST_BS, shares, 1.0, 0, "",
                                         "nd", 1, "w1 needs 2.0x the median time", 0.2, plan, plan))  # fmt: skip


def report(bootstrap: str, job: str, workers: int, seconds: float) -> None:
    """Write what so many workers do, spread over time as they do it."""
    producer = Producer(Connection(bootstrap).producer(linger_ms=20))
    names = {topic.suffix: topic.name(job) for topic in topics.TOPICS}
    log = Writer(1 << 40, 1).entries()
    for entry in islice(log, 4):
        producer.produce(names["shard-log"], entry.payload, partition=0)
    slices, number = 10, 0
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        step = STEPS_A_RECORD * (number // slices)
        for n in range(number % slices, workers, slices):
            producer.produce(names["steps"], step_batch(f"w{n}", step), f"w{n}", 0)
        if number % 2 == 0:
            producer.produce(names["shard-log"], next(log).payload, partition=0)
        if number % slices == 0:
            producer.produce(names["measurements"], measurement(workers, number // slices), partition=0)
        if number % (20 * slices) == 0:
            producer.produce(names["decisions"], decision(workers, 1 + number // slices), partition=0)
        number += 1
        producer.poll(0)
        time.sleep(max(0.0, began + number * RECORDS_EVERY_S / slices - time.monotonic()))
    producer.flush(10)
    print(json.dumps({"behind_s": round(time.monotonic() - began - number * RECORDS_EVERY_S / slices, 2)}))


@contextmanager
def page_server(bootstrap: str, folder: Path, job: str = "") -> Iterator[tuple[str, int]]:
    """Its address and its process."""
    ready = folder / "page.ready"
    ready.unlink(missing_ok=True)
    place = ["--bootstrap-servers", bootstrap, "--data-dir", str(folder), "--port", "0"]
    command = [sys.executable, "-m", "antdt_streams", "web", *([job] if job else []), *place]
    with (folder / "page.log").open("ab") as out:
        process = subprocess.Popen(command, env={**os.environ, ENV_READY_FILE: str(ready)}, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < until, (folder / "page.log").read_text()
            time.sleep(0.05)  # between two looks
        yield ready.read_text().strip().partition("jobs/")[0].rstrip("/"), process.pid
    finally:
        process.terminate()
        process.wait(20)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def looked_at(url: str, job: str, pid: int, warm_s: float, measured_s: float) -> dict[str, Any]:
    """What the server takes while viewers look on, and what they get."""
    got, counting = [0, 0], asyncio.Event()

    async def view(first: int) -> None:
        path = f"{url}/api/jobs/{job}/events?rows=40&first={first}"
        async with session.get(path, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=1 << 20) as answer:
            async for line in answer.content:
                if counting.is_set() and line.startswith(b"data: "):
                    got[0], got[1] = got[0] + 1, got[1] + len(line)

    async with aiohttp.ClientSession() as session:
        tasks = [asyncio.create_task(view(first)) for first in [0, 0, 0, 40, 80][:VIEWERS]]
        await asyncio.sleep(warm_s)
        counting.set()
        began, before = time.monotonic(), cpu_s(pid)
        await asyncio.sleep(measured_s)
        share = (cpu_s(pid) - before) / (time.monotonic() - began)
        ended = [task.exception() for task in tasks if task.done()]
        assert not ended, ended
        for task in tasks:
            task.cancel()
    documents_s = got[0] / VIEWERS / measured_s
    return {"share": share, "documents_a_s": round(documents_s, 2), "kb_each": round(got[1] / max(1, got[0]) / 1e3, 1)}


def share_of(bootstrap: str, folder: Path, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    job = f"page-{workers}"
    topics_admin.create(Connection(bootstrap), job)
    total_s = 15 + options.warm_s + options.runs * (options.measured_s + options.warm_s) + 15
    command = [sys.executable, "-m", "bench.page", "--only", "report", "--bootstrap", bootstrap, "--job", job]
    command += ["--workers", str(workers), "--seconds", str(total_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reporter:
        time.sleep(5)  # the job is under way when somebody looks
        with page_server(bootstrap, folder, job) as (url, pid):
            times = options.warm_s, options.measured_s
            found = [asyncio.run(looked_at(url, job, pid, *times)) for _ in range(options.runs)]
            rss = next(int(line.split()[1]) // 1024 for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                       if line.startswith("VmRSS"))  # fmt: skip
        reporter.terminate()
    shares = [one.pop("share") for one in found]
    return {"workers": workers, "share": spread(shares, 4), "rss_mb": rss, **found[-1]}


def make_big(connection: Connection, entries: int) -> None:
    """A job with so many entries in its log, and a snapshot that is as old as it may be."""
    topics_admin.create(connection, JOB)
    topic_id = topics_admin.topic_ids(connection, JOB)["shard-log"]
    writer = Writer(entries, 1, Identity(JOB, topic_id))
    producer, name = Producer(connection.producer(linger_ms=20)), topics.SHARD_LOG.name(JOB)
    for entry in writer.entries():
        while True:
            try:
                producer.produce(name, entry.payload, partition=0)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    for number in range(500):
        for n in range(4):
            producer.produce(topics.STEPS.name(JOB), step_batch(f"w{n}", STEPS_A_RECORD * number), f"w{n}", 0)
    producer.produce(topics.MEASUREMENTS.name(JOB), measurement(4, 1), partition=0)
    producer.flush(60)
    shelf = SnapshotWriter(connection, JOB, SERVICE, 0, None)
    shelf.write(topic_id, entries - writer.every, unpack(writer.snapshot), 60.0)
    shelf.close()


async def first_event_s(url: str) -> float:
    """By HTTP alone: the page, its scripts, and the first document."""
    async with aiohttp.ClientSession() as session:
        began = time.monotonic()
        for path in (f"/jobs/{JOB}", "/static/page.js", "/static/page.css", "/static/uPlot.iife.min.js"):
            async with session.get(url + path) as answer:
                await answer.read()
        async with session.get(f"{url}/api/jobs/{JOB}/events", read_bufsize=1 << 20) as answer:
            line = await answer.content.readline()
            took = time.monotonic() - began
            assert json.loads(line.removeprefix(b"data: "))["samples"]["committed"] > 0
    return took


async def first_paint_s(url: str) -> float:
    """In a browser that runs already: from the navigation until the numbers of the job are on the page, and painted."""
    async with chromium() as tab:
        await tab.size(1280, 800)
        await tab.go(f"{url}/jobs/{JOB}")
        seconds: float = await tab.until("(window.readyAt || 0) / 1000")
        assert await tab.value("Number(document.getElementById('step').textContent.replaceAll(',', ''))") > 0
        assert not tab.errors, tab.errors
    return seconds


def first_paints(connection: Connection, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    made = time.monotonic()
    make_big(connection, options.entries)
    took, browser = round(time.monotonic() - made, 1), program() is not None
    out: dict[str, Any] = {"entries": options.entries, "made_s": took, "browser": browser}
    for name, of in (("http_s", first_event_s), ("browser_s", first_paint_s)):
        if name == "http_s" or browser:
            seconds, cpu = [], []
            for _ in range(options.paints):
                with page_server(connection.bootstrap, folder) as (url, pid):
                    before = cpu_s(pid)
                    seconds.append(asyncio.run(of(url)))
                    cpu.append(cpu_s(pid) - before)
            out[name], out[name.replace("_s", "_server_cpu_s")] = spread(seconds, 3), spread(cpu, 2)
    return out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--sizes", default="256,4096")
    parser.add_argument("--runs", type=int, default=3, help="measurements of each size, the median counts")
    parser.add_argument("--paints", type=int, default=5)
    parser.add_argument("--warm-s", type=float, default=10.0)
    parser.add_argument("--measured-s", type=float, default=20.0)
    parser.add_argument("--only", choices=("report", "shares", "paint"), help=argparse.SUPPRESS)
    parser.add_argument("--bootstrap", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only == "report":
        report(options.bootstrap, options.job, options.workers, options.seconds)
        return
    out: dict[str, Any] = {"machine": machine(), "targets": TARGETS}
    with tempfile.TemporaryDirectory() as name, EmbeddedBroker(Path(name) / "broker") as broker:
        folder, connection = Path(name), broker.connection
        if options.only != "paint":
            for workers in map(int, options.sizes.split(",")):
                found = share_of(connection.bootstrap, folder, workers, options)
                out[f"cpu_share_{workers}"] = found["share"]["median"]
                out[f"workers_{workers}"] = found
                print(json.dumps(found), flush=True)
        if options.only != "shares":
            found = first_paints(connection, folder, options)
            out["first_paint_s"] = found["browser_s" if found["browser"] else "http_s"]["median"]
            out["first_paint"] = found
            print(json.dumps(found), flush=True)
    write(options.json, out)
    print(json.dumps({name: out.get(name) for name in TARGETS}))


if __name__ == "__main__":
    main()
