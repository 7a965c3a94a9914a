"""Members on several hosts: network namespaces of this machine, each with an address and a loopback of its own."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from antdt.launch.command import main
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.data_folder import HOST, PORTS
from antdt_streams.broker import BrokerOptions, EmbeddedBroker
from antdt_streams.local.services import environment_of

from tests.helpers.job_processes import RECORDED, JobProcesses, job_processes
from tests.helpers.warm import Warm

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and `ip`"),
]
CLONE_NEWNET = 0x40000000


class Hosts:
    """A network 10.77.N.0/24 on a bridge of this machine, which has .1; hosts have the addresses that follow."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.tag = f"{os.getpid() % 100_000:x}"
        self.net = f"10.77.{os.getpid() % 250}"
        self.addresses = {name: f"{self.net}.{number}" for number, name in enumerate(names, 2)}
        self.own = f"{self.net}.1"

    def __enter__(self) -> Hosts:
        bridge = f"br{self.tag}"
        try:
            ip(f"link add {bridge} type bridge")
        except subprocess.CalledProcessError:
            pytest.skip("this machine makes no bridges")
        ip(f"addr add {self.own}/24 dev {bridge}")
        ip(f"link set {bridge} up")
        for name, address in self.addresses.items():
            space, outer, inner = self.space(name), f"v{name}{self.tag}", f"u{name}{self.tag}"
            ip(f"netns add {space}")
            ip(f"link add {outer} type veth peer name {inner}")
            ip(f"link set {outer} master {bridge} up")
            ip(f"link set {inner} netns {space}")
            ip(f"-n {space} addr add {address}/24 dev {inner}")
            ip(f"-n {space} link set lo up")
            ip(f"-n {space} link set {inner} up")
        return self

    def space(self, name: str) -> str:
        """The name of its namespace."""
        return f"antdt-{name}-{self.tag}"

    def __exit__(self, *_: object) -> None:
        for name in self.addresses:
            ip(f"netns del {self.space(name)}")
        ip(f"link del br{self.tag}")


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)


def launch_on(space: str, arguments: list[str]) -> None:
    """`antdt launch` as on another machine."""
    with open(f"/run/netns/{space}", "rb") as found:
        assert ctypes.CDLL(None, use_errno=True).setns(found.fileno(), CLONE_NEWNET) == 0, ctypes.get_errno()
    main(arguments, prog_name="antdt launch")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(("a", "b")) as made:
        yield made


@pytest.fixture(scope="module")
def far_broker(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A broker that all hosts reach, and none of them on its own loopback."""
    folder = tmp_path_factory.mktemp("far")
    near, controller, far = (taken.getsockname()[1] for taken in [socket.create_server((HOST, 0)) for _ in range(3)])
    (folder / PORTS).write_text(json.dumps({"broker": near, "controller": controller}))
    addresses = f"PLAINTEXT://{HOST}:{near},FAR://{hosts.own}:{far}"
    listeners = {
        "listeners": f"{addresses},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": addresses,
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,FAR:PLAINTEXT",
    }
    with EmbeddedBroker(folder, BrokerOptions(properties=listeners)) as broker:
        assert broker.bootstrap == f"{HOST}:{near}", "its port was taken meanwhile"
        yield Connection(f"{hosts.own}:{far}")


def started(hosts: Hosts, job: JobProcesses, **environ: str) -> list[Warm]:
    """One launcher on each host."""
    found = []
    for rank, name in enumerate(hosts.addresses):
        command = [*RECORDED, "--record", str(job.record), "--batch-size", "24", "--epochs", "1", "--samples", "480"]
        limits = ["-n", "1", "--first-rank", str(rank), "--world-size", "2"]
        own = dict(os.environ) | environment_of(job.connection, job.place)
        own |= {"ANTDT_NODE": name, **({key: value for key, value in environ.items() if name == "a"})}
        arguments = ["--job", job.job, *limits, "--", *command]
        found.append(Warm(launch_on, (hosts.space(name), arguments), own, job.folder / f"{name}.log"))
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


def test_an_address_that_nobody_reaches_is_named(
    hosts: Hosts, far_broker: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(far_broker, job, tmp_path) as processes:
        started(hosts, processes, ANTDT_ADVERTISE="127.0.0.1")
        said = {name: tmp_path / f"{name}.log" for name in hosts.addresses}
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
