"""The address under which the other members reach this machine.

Owns where it comes from: what is named, the interface that is named, or else the route to the broker, which every
member must reach anyway. Must not know what listens there.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from antdt_schemas.errors import UsageError
from antdt_schemas.listener import host_port

ENV_ADVERTISE, ENV_INTERFACE = "ANTDT_ADVERTISE", "GLOO_SOCKET_IFNAME"
LOOPBACK = "127.0.0.1"
SIOCGIFADDR = 0x8915
INTERFACES_IPV6 = Path("/proc/net/if_inet6")


def own_address(environ: Mapping[str, str], bootstrap: str) -> str:
    """A name or an address, IPv4 or IPv6. bootstrap: `host:port[,host:port]` of the broker.

    Raises:
        UsageError: the interface that GLOO_SOCKET_IFNAME names is not here, or has no address.
    """
    if environ.get(ENV_ADVERTISE):
        return environ[ENV_ADVERTISE]
    if environ.get(ENV_INTERFACE):
        return _of_interface(environ[ENV_INTERFACE].split(",")[0])
    return _of_route(bootstrap)


def is_loopback(host: str) -> bool:
    """Whether it means this machine only, whoever resolves it: nothing is looked up."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def unreached(hosts: Sequence[str]) -> str:
    """What to do where members do not reach each other at these."""
    loopback = [host for host in hosts if is_loopback(host)]
    if loopback and len(loopback) < len(hosts):
        return f"A member on another machine advertises a loopback address: name one of its own in {ENV_ADVERTISE}."
    return f"Members must reach each other; where this machine is reached is named by {ENV_ADVERTISE}."


def is_served_here_only(host: str) -> bool:
    """Whether no other machine can reach what listens there: an address, or a name, which is looked up.

    Raises:
        UsageError: there is no such address.
    """
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise UsageError(f"{host}: there is no such address.") from error
    return all(map(is_loopback, found))


def can_bind(host: str) -> bool:
    """Whether it is an address of this machine; one that is translated or stands for a service is not."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(where)
    except OSError:
        return False
    return True


def _of_route(bootstrap: str) -> str:
    """The address from which packets to the broker leave; nothing is sent."""
    for server in bootstrap.split(","):
        try:
            found = socket.getaddrinfo(*host_port(server), type=socket.SOCK_DGRAM)
        except (OSError, ValueError):
            continue  # whoever connects to it says what is wrong
        for family, kind, protocol, _, where in found:
            with socket.socket(family, kind, protocol) as probe:
                try:
                    probe.connect(where)
                except OSError:
                    continue
                return str(probe.getsockname()[0])
    return LOOPBACK


def _of_interface(name: str) -> str:
    name = name.removeprefix("=")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            return socket.inet_ntoa(answer[20:24])
        except OSError:
            pass
    for line in INTERFACES_IPV6.read_text(encoding="ascii").splitlines() if INTERFACES_IPV6.exists() else ():
        digits, _, _, scope, _, found = line.split()
        if found == name and scope in ("00", "10"):  # global, or of this host: a link's own needs more than an address
            return str(ip_address(bytes.fromhex(digits)))
    here = ", ".join(found for _, found in socket.if_nameindex())
    what = f"{ENV_INTERFACE}={name}: there is no such interface with an address here, there are {here}."
    raise UsageError(what, "Name one of them.")
