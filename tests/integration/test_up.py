"""`antdt up` beside others: who shares a broker, what ends when, and what is told of services that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.data_folder import running
from antdt_schemas.errors import ExitCode
from antdt_schemas.topics import REQUESTS
from antdt_streams.broker.keeper import KEEPER
from antdt_streams.host import locks
from antdt_streams.host.child import spawn
from antdt_streams.kafka import topics_admin
from antdt_streams.views.costs import read_costs
from antdt_streams.views.job import status_of
from confluent_kafka import Producer

from tests.helpers.running import until
from tests.integration.test_demo import with_mark

pytestmark = pytest.mark.kafka

USER = """
import select, sys
from pathlib import Path
from antdt_streams.broker.use import BrokerUse
said = lambda line: print("said", line, flush=True)
with BrokerUse(Path(sys.argv[1]), said) as use:
    print("has", use.connection.bootstrap, flush=True)
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        use.look()
"""


class User:
    """A process that uses the broker of a folder until its input ends, as `antdt up` of one job does."""

    def __init__(self, folder: Path, mark: str) -> None:
        environ = {**os.environ, "ANTDT_TEST_MARK": mark}
        self.popen: Any = spawn(
            [sys.executable, "-c", USER, str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ,
        )  # fmt: skip
        self.said: list[str] = []

    def address(self) -> str:
        """Once it has a broker."""
        for line in self.popen.stdout:
            kind, _, text = line.strip().partition(" ")
            if kind == "has":
                return str(text)
            self.said.append(text)
        raise AssertionError(self.said)


@pytest.mark.dear
def test_the_last_one_turns_off_the_light(tmp_path: Path) -> None:
    mark, folder = uuid.uuid4().hex, tmp_path / "kafka"
    one, two = User(folder, mark), User(folder, mark)
    try:
        addresses = {one.address(), two.address()}
        assert len(addresses) == 1
        (address,) = addresses
        waited = [line for line in (*one.said, *two.said) if "is just being started by process" in line]
        assert len(waited) == 1, "one starts it, the other one says for whom it waits"
        assert str(one.popen.pid if waited[0] in two.said else two.popen.pid) in waited[0]

        one.popen.stdin.close()
        assert one.popen.wait(20) == 0
        Connection(address).check_reachable(5)

        keeper = locks.holder(folder / KEEPER)
        assert keeper is not None
        os.kill(keeper, signal.SIGKILL)  # its broker goes with it; whoever uses it starts another one there
        until(lambda: locks.holder(folder / KEEPER) not in (keeper, two.popen.pid), "another keeper")
        until(lambda: running(folder) == address, "the same address")
        Connection(address).check_reachable(20)

        two.popen.kill()
        two.popen.wait(5)
        until(lambda: with_mark(mark) == [], f"still running: {with_mark(mark)}")
        assert running(folder) is None
    finally:
        for user in (one, two):
            user.popen.kill()
            user.popen.wait(5)
            user.popen.stdout.close()


class Up:
    """`antdt up` in a terminal of its own."""

    def __init__(self, connection: Connection, folder: Path, *arguments: str) -> None:
        where = ["--bootstrap-servers", connection.bootstrap, "--data-dir", str(folder)]
        self.popen: Any = spawn(
            [sys.executable, "-m", "antdt_streams", "up", *arguments, *where], stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []

    def until_said(self, text: str) -> str:
        """The line that has this text."""
        for line in self.popen.stderr:
            self.said.append(line)
            if text in line:
                return str(line)
        raise AssertionError(f"{text!r} was not said: {self.said}")

    def end(self) -> int:
        """Its exit code, once the rest was read."""
        self.said += self.popen.stderr.readlines()
        return int(self.popen.wait(20))


def pids_of(parent: int, service: bytes) -> list[str]:
    """Children of a process that run this service."""
    threads = Path(f"/proc/{parent}/task").iterdir()
    pids = [pid for thread in threads for pid in (thread / "children").read_text().split()]
    return [pid for pid in pids if b"\0%s\0" % service in Path(f"/proc/{pid}/cmdline").read_bytes()]


def ask(connection: Connection, job: str, times: int) -> None:
    """Requests that somebody should answer."""
    producer = Producer(connection.producer(linger_ms=0))
    for _ in range(times):
        producer.produce(REQUESTS.name(job), b"a question", partition=0)
    assert producer.flush(20) == 0


@pytest.mark.dear
def test_up_says_what_becomes_of_its_services(connection: Connection, job: str, tmp_path: Path) -> None:
    misspelt = Up(connection, tmp_path, job, "--policy", "no-such-policy")
    assert misspelt.end() == ExitCode.USAGE, "not 75: nobody shall start this again"
    assert "The controller ended with status 2" in misspelt.said[-1]
    assert "no-such-policy" in misspelt.said[-1]
    assert not any("is up" in line for line in misspelt.said)
    assert topics_admin.list_jobs(connection)

    one = Up(connection, tmp_path, job, "--resume", "--web")
    try:
        one.until_said("is up")
        page = one.until_said("The page is at ").split()[-1]
        with urlopen(page.replace("/jobs/", "/api/jobs/"), timeout=30) as answer:
            assert json.load(answer)["state"] == "not begun"
        logs = tmp_path / "logs" / job
        assert "partition 0" in (logs / "monitor.ready").read_text()
        assert "waiting for the first worker" in (logs / "ledger.ready").read_text()

        other = Up(connection, tmp_path, job, "--resume")
        assert other.end() == ExitCode.NEVER_RETRY
        assert f"is up already: process {one.popen.pid} runs its services" in other.said[-1]

        found = status_of(connection, job)["services"]
        assert [(s["answers"], s["behind"]) for s in found.values()] == [(True, 0)] * 3, found
        assert found["ledger"]["owner"].rpartition(":")[2] in pids_of(one.popen.pid, b"ledger")
        assert (found["monitor"]["state"], found["monitor"]["instances"]) == ("STABLE", 1)

        (monitor,) = pids_of(one.popen.pid, b"monitor")
        os.kill(int(monitor), signal.SIGKILL)
        told = one.until_said("The monitor was ended by SIGKILL after")
        assert str(logs / "monitor.log") in told
        one.until_said("The monitor answers again.")
        one.popen.terminate()
        assert one.end() == 0
        assert not list(logs.glob("*.ready"))
        ask(connection, job, 3)
        gone = status_of(connection, job)["services"]
        assert [s["answers"] for s in gone.values()] == [False] * 3, gone
        assert gone["ledger"]["behind"] == 3
        assert "IS NOT THERE: it has written nothing yet, and 3 requests wait" in gone["ledger"]["said"]
        assert "IS NOT THERE, nothing to do" in gone["controller"]["said"]
        costs = {suffix: asdict(cost) for suffix, cost in read_costs(connection, job).items()}
        assert {suffix: cost["records"] for suffix, cost in costs.items() if cost["records"]} == {"requests": 3}
    finally:
        one.popen.kill()
        one.popen.wait(5)
