"""Members on several hosts: network namespaces of this machine, each with an address and a loopback of its own."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_streams.local.services import environment_of

from tests.helpers.hosts import NEEDS_HOSTS, Hosts, broker_of
from tests.helpers.job_processes import RECORDED, JobProcesses, job_processes
from tests.helpers.server_hosts import PLACES, ServerHosts
from tests.helpers.warm import Warm
from tests.integration.test_documents import commands

pytestmark = [pytest.mark.kafka, NEEDS_HOSTS]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(tuple(PLACES)) as made:
        yield made


@pytest.fixture(scope="module")
def far_broker(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A broker that all hosts reach, and none of them on its own loopback."""
    with broker_of(hosts, tmp_path_factory.mktemp("far")) as connection:
        yield connection


def started(hosts: Hosts, job: JobProcesses, **environ: str) -> list[Warm]:
    """One launcher on each host."""
    found = []
    for rank, name in enumerate(("a", "b")):
        command = [*RECORDED, "--record", str(job.record), "--batch-size", "24", "--epochs", "1", "--samples", "480"]
        limits = ["-n", "1", "--first-rank", str(rank), "--world-size", "2"]
        own = dict(os.environ) | environment_of(job.connection, job.place)
        own |= {"ANTDT_NODE": name, **({key: value for key, value in environ.items() if name == "a"})}
        arguments = ["--job", job.job, *limits, "--", *command]
        found.append(hosts.launch(name, arguments, own, job.folder / f"{name}.log"))
    job.launchers += found
    return found


def test_members_on_other_hosts_meet_without_being_told_where(
    hosts: Hosts, far_broker: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(far_broker, job, tmp_path) as processes:
        for launcher in started(hosts, processes):
            processes.ended(launcher)
        joined = {e.worker: e.host for e in processes.events() if isinstance(e, records.Joined)}
        assert joined == {"w0": hosts.addresses["a"], "w1": hosts.addresses["b"]}
        assert processes.judged()["exactly_once"]


def test_workers_and_servers_are_on_hosts_of_their_own_by_the_commands_of_the_readme(
    hosts: Hosts, far_broker: Connection, job: str, tmp_path: Path
) -> None:
    (block,) = [b for b in commands("README.md") if b[0].startswith("antdt launch --job my-job --world-size")]
    with job_processes(far_broker, job, tmp_path) as processes:
        run = ServerHosts(hosts, processes)
        for host, line in zip(hosts.addresses, block, strict=True):
            *words, script = shlex.split(line)[4:]
            assert script == "train.py"
            run.launches[host] = run.launch(host, words, "--mode", "asp")
        run.ended()
        assert run.judged()["committed"] == 480
        hosts_of = {"w0": "a", "w1": "a", "w2": "b", "s0": "b", "s1": "d"}
        assert run.joined() == {name: {hosts.addresses[host]} for name, host in hosts_of.items()}


def test_an_address_that_nobody_reaches_is_named(
    hosts: Hosts, far_broker: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(far_broker, job, tmp_path) as processes:
        started(hosts, processes, ANTDT_ADVERTISE="127.0.0.1")
        said = {name: tmp_path / f"{name}.log" for name in ("a", "b")}
        processes.until(
            lambda: (
                "the store of w0 at 127.0.0.1:" in said["b"].read_text()
                and "w1 asks for a new one" in said["a"].read_text()
            ),
            "nobody says who could not be reached",
        )
        text = said["b"].read_text()
        assert "could not be reached (" in text
        assert "A member on another machine advertises a loopback address" in text
        state = processes.now()
        assert state.members.generation < 12, (
            f"{state.members.generation} generations: it asks again and again, without a pause"
        )
