"""The store: every wait ends, and nothing piles up."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from antdt.strategies.allreduce import Rendezvous
from antdt.strategies.allreduce.store import GENERATIONS_MAX, GroupStore, StoreClient


@pytest.fixture
def rendezvous() -> Iterator[Rendezvous]:
    own = Rendezvous()
    yield own
    own.close()


def client_of(rendezvous: Rendezvous, generation: int = 1, timeout_s: float = 10.0) -> StoreClient:
    return StoreClient(rendezvous.host, rendezvous.port, generation, time.monotonic() + timeout_s)


def test_what_one_sets_another_gets_however_early_it_asks(rendezvous: Rendezvous) -> None:
    early, late = client_of(rendezvous), client_of(rendezvous)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(early.get("here/1")))
    thread.start()
    late.set("here/1", bytes(range(256)))
    thread.join(10)
    assert got == [bytes(range(256))]
    early.close()
    late.close()


def test_generations_and_groups_have_keys_of_their_own(rendezvous: Rendezvous) -> None:
    first, second = client_of(rendezvous, 1), client_of(rendezvous, 2, timeout_s=0.05)
    GroupStore(first, "ctl").set("0/0", "a")
    GroupStore(first, "data").set("0/0", b"b")
    assert (first.get("ctl/0/0"), GroupStore(first, "data").get("0/0")) == (b"a", b"b")
    with pytest.raises(TimeoutError):
        second.get("ctl/0/0")


def test_values_of_old_generations_are_forgotten(rendezvous: Rendezvous) -> None:
    for number in range(1, GENERATIONS_MAX + 3):
        client = client_of(rendezvous, number)
        client.set("here/0", b"x")
        client.close()
    with pytest.raises(TimeoutError):
        client_of(rendezvous, 1, timeout_s=0.05).get("here/0")
    newest = client_of(rendezvous, GENERATIONS_MAX + 2)
    assert newest.get("here/0") == b"x"
    newest.close()


def test_whoever_waits_is_freed_by_abandon(rendezvous: Rendezvous) -> None:
    client = client_of(rendezvous, timeout_s=1000.0)
    raised: list[Exception] = []

    def wait() -> None:
        try:
            client.get("here/7")
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    client.abandon()
    thread.join(10)
    assert not thread.is_alive()
    assert len(raised) == 1


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\n", b"[]\n", b'{"generation": "x"}\n', b"\xff\n"])
def test_strangers_do_not_end_the_store(rendezvous: Rendezvous, line: bytes) -> None:
    with socket.create_connection((rendezvous.host, rendezvous.port), timeout=10) as stranger:
        stranger.sendall(line)
        assert stranger.recv(100) == b"", "answered nonsense"
    client = client_of(rendezvous)
    client.set("here/0", b"x")
    assert client.get("here/0") == b"x"
    client.close()
