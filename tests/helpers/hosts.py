"""Several hosts: network namespaces of this machine on a bridge, each with an address, a loopback, routes of its own.

What is cut between them vanishes, as on a network: nobody is told that a packet did not arrive.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from antdt.launch.command import main
from antdt_schemas.connection import Connection
from antdt_schemas.data_folder import HOST, PORTS
from antdt_streams.broker import BrokerOptions, EmbeddedBroker

from tests.helpers.warm import Warm

_numbers = itertools.count()
CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000
NEEDS_HOSTS = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and `ip`"
)


class Hosts:
    """A network 10.M.N.0/24 on a bridge of this machine, which has .1; hosts have the addresses that follow."""

    def __init__(self, names: tuple[str, ...]) -> None:
        number = next(_numbers)  # the kernel takes away what a former network had when it comes to it
        self.tag = f"{os.getpid() % 100_000:x}{number:x}"
        self.net = f"10.{77 + number % 100}.{os.getpid() % 250}"
        self.addresses = {name: f"{self.net}.{number}" for number, name in enumerate(names, 2)}
        self.own = f"{self.net}.1"

    def __enter__(self) -> Hosts:
        bridge = f"br{self.tag}"
        try:
            ip(f"link add {bridge} type bridge")
        except subprocess.CalledProcessError:
            pytest.skip("this machine makes no bridges")
        try:
            self._make(bridge)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self, bridge: str) -> None:
        ip(f"addr add {self.own}/24 dev {bridge}")
        ip(f"link set {bridge} up")
        for name, address in self.addresses.items():
            space, outer, inner = self.space(name), self._outer(name), f"u{name}{self.tag}"
            ip(f"netns add {space}")
            ip(f"link add {outer} type veth peer name {inner}")
            ip(f"link set {outer} master {bridge} up")
            ip(f"link set {inner} netns {space}")
            ip(f"-n {space} addr add {address}/24 dev {inner}")
            ip(f"-n {space} link set lo up")
            ip(f"-n {space} link set {inner} up")

    def space(self, name: str) -> str:
        """The name of its namespace."""
        return f"antdt-{name}-{self.tag}"

    def _outer(self, name: str) -> str:
        return f"v{name}{self.tag}"

    def vanish(self, name: str) -> None:
        """Nothing that this host sends arrives, and nothing arrives there, until `come_back`."""
        ip(f"link set {self._outer(name)} down")

    def come_back(self, name: str) -> None:
        """As before."""
        ip(f"link set {self._outer(name)} up")

    def cut(self, one: str, other: str) -> None:
        """Between these two nothing arrives any more, while both reach everybody else."""
        for here, there in ((one, other), (other, one)):
            ip(f"-n {self.space(here)} route add blackhole {self.addresses[there]}/32")

    def mend(self, one: str, other: str) -> None:
        """As before."""
        for here, there in ((one, other), (other, one)):
            ip(f"-n {self.space(here)} route del blackhole {self.addresses[there]}/32")

    def launch(
        self, name: str, arguments: Sequence[str], environ: Mapping[str, str], output: Path, hostname: str = ""
    ) -> Warm:
        """`antdt launch` on that host. hostname: of its own, where not this machine's."""
        return Warm(launch_on, (self.space(name), list(arguments), hostname), environ, output)

    def __exit__(self, *_: object) -> None:
        for name in self.addresses:
            with suppress(subprocess.CalledProcessError):  # of a network that could not be made
                ip(f"netns del {self.space(name)}")
        ip(f"link del br{self.tag}")


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)


def launch_on(space: str, arguments: list[str], hostname: str = "") -> None:
    """`antdt launch` as on another machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{space}", "rb") as found:
        assert libc.setns(found.fileno(), CLONE_NEWNET) == 0, ctypes.get_errno()
    if hostname:
        assert libc.unshare(CLONE_NEWUTS) == 0, ctypes.get_errno()
        socket.sethostname(hostname)
    main(arguments, prog_name="antdt launch")


@contextmanager
def broker_of(hosts: Hosts, folder: Path) -> Iterator[Connection]:
    """A broker that all hosts reach, and none of them on its own loopback."""
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
