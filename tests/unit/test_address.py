"""Where the other members are told to find this machine."""

from __future__ import annotations

import socket

import pytest
from antdt_schemas.address import can_bind, is_loopback, is_served_here_only, own_address
from antdt_schemas.errors import UsageError


def outside() -> str:
    """An address of this machine that others can reach, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has a loopback interface only")
        return str(probe.getsockname()[0])


@pytest.mark.parametrize(
    ("bootstrap", "expected"),
    [
        ("127.0.0.1:9092", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("SASL_SSL://127.0.0.1:9093", "127.0.0.1"),
        ("no-such-host.invalid:9092,127.0.0.1:1", "127.0.0.1"),
        ("no-such-host.invalid:9092", "127.0.0.1"),
    ],
)
def test_it_is_the_address_of_the_route_to_the_broker(bootstrap: str, expected: str) -> None:
    assert own_address({}, bootstrap) == expected


def test_a_broker_elsewhere_is_reached_from_an_address_that_others_reach() -> None:
    own = outside()
    assert own_address({}, "192.0.2.1:9092") == own
    assert not is_loopback(own)
    assert can_bind(own)


@pytest.mark.skipif(not socket.has_ipv6 or not can_bind("::1"), reason="this machine has no IPv6")
def test_ipv6() -> None:
    assert own_address({}, "[::1]:9092") == "::1"
    assert is_loopback("::1")


def test_a_listener_is_reached_from_elsewhere_unless_all_its_addresses_are_of_this_machine() -> None:
    assert is_served_here_only("127.0.0.1") and is_served_here_only("localhost")
    assert not is_served_here_only("0.0.0.0") and not is_served_here_only("203.0.113.7")
    with pytest.raises(UsageError, match=r"^no-such-host\.invalid: there is no such address\."):
        is_served_here_only("no-such-host.invalid")


def test_what_is_named_wins() -> None:
    environ = {"ANTDT_ADVERTISE": "node7.example", "GLOO_SOCKET_IFNAME": "lo"}
    assert own_address(environ, "127.0.0.1:9092") == "node7.example"
    assert own_address({"GLOO_SOCKET_IFNAME": "lo"}, "192.0.2.1:9092") == "127.0.0.1"
    with pytest.raises(UsageError, match="GLOO_SOCKET_IFNAME=eth77: there is no such interface"):
        own_address({"GLOO_SOCKET_IFNAME": "eth77"}, "127.0.0.1:9092")


def test_an_address_that_is_translated_cannot_be_bound() -> None:
    assert not can_bind("203.0.113.7")
    assert not can_bind("no-such-host.invalid")
