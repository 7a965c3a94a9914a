"""Generations form, or say that they did not; and they end when they are told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from antdt.strategies.allreduce import Generation, GenerationClosed, GenerationOptions, NotFormed, Rendezvous, store_of
from antdt.strategies.allreduce import rendezvous as module
from antdt.strategies.allreduce.sockets import tcp_sockets
from antdt.strategies.allreduce.store import StoreClient

from tests.helpers.allreduce import STRANDED_SOON, each

SOON = GenerationOptions(form_timeout_s=0.05)


@pytest.fixture(scope="module")
def store() -> Iterator[module.StoreAddress]:
    own = Rendezvous()
    yield store_of(own.host, own.port)
    own.close()


def never() -> bool:
    return False


def form(store: module.StoreAddress, number: int, world: int, closed: Callable[[], bool] = never) -> list[Generation]:
    return each(world, lambda rank: Generation(number, world, rank, store, closed, STRANDED_SOON))


def test_a_generation_of_one_has_no_socket_and_needs_no_store() -> None:
    before = tcp_sockets()
    generation = Generation(1, 1, 0, None, never)
    assert tcp_sockets() == before
    generation.leave()
    with pytest.raises(GenerationClosed):
        generation.check()


def test_a_member_that_does_not_come_is_not_waited_for_long(store: module.StoreAddress) -> None:
    with pytest.raises(GenerationClosed, match="Generation 1 "):
        Generation(1, 2, 0, store, never, SOON)


def test_a_generation_closed_meanwhile_does_not_form(store: module.StoreAddress) -> None:
    with pytest.raises(GenerationClosed):
        Generation(2, 2, 0, store, lambda: True)
    with pytest.raises(GenerationClosed):
        Generation(2, 1, 0, None, lambda: True)


def test_a_connection_that_is_gone_again_means_that_the_generation_did_not_form(
    store: module.StoreAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that dies at that moment: the others try again, nothing fails in a thread."""
    monkeypatch.setattr(module, "connections", lambda listeners, peers: [])
    unraised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", unraised.append)
    with pytest.raises(GenerationClosed, match="2 of 2 connections ended while it formed"):
        form(store, 4, 2)
    assert unraised == []


def test_a_store_that_is_gone_is_not_waited_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(GenerationClosed):
        Generation(3, 2, 0, store_of("127.0.0.1", port), never, SOON)


def test_a_store_that_never_answers_holds_nobody_up() -> None:
    """As one whose process is stopped: it takes the connection and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(GenerationClosed):
            Generation(4, 2, 0, store_of("127.0.0.1", silent.getsockname()[1]), never, SOON)
        for thread in threading.enumerate():
            if thread.name == "antdt-generation-4":
                silent.close()
                thread.join(10)
                assert not thread.is_alive(), "abandoned, yet still waiting"


def test_close_ends_a_collective_that_waits_for_a_peer(store: module.StoreAddress) -> None:
    generations = form(store, 5, 2)
    started = threading.Event()

    def act(rank: int) -> None:
        if rank == 0:
            work = generations[0].allreduce(torch.ones(1000))
            started.set()
            with pytest.raises(GenerationClosed):
                generations[0].wait(work)
        else:
            started.wait(10)
            generations[0].close()
        generations[rank].leave()

    each(2, act)


def test_close_and_leave_may_be_repeated(store: module.StoreAddress) -> None:
    generations = form(store, 6, 2)
    for generation in generations:
        generation.close()
        generation.close()
    each(2, lambda rank: generations[rank].leave())
    each(2, lambda rank: generations[rank].leave())
    with pytest.raises(GenerationClosed):
        generations[0].allreduce(torch.ones(1))


def test_other_connections_are_left_alone(store: module.StoreAddress) -> None:
    """One that opens while the generation forms, as a Kafka client's may."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pairs: list[tuple[socket.socket, socket.socket]] = []
        forming = threading.Event()

        def connect() -> bool:
            if not forming.is_set():
                forming.set()
                pairs.append((socket.create_connection(server.getsockname()), server.accept()[0]))
            return False

        generations = form(store, 7, 2, connect)
        assert pairs, "nothing was opened meanwhile: the test proves nothing"
        each(2, lambda rank: generations[rank].leave())
        (near, far), *_ = pairs
        with near, far:
            near.sendall(b"alive")
            assert far.recv(5) == b"alive"


def test_leaving_gives_back_every_descriptor(store: module.StoreAddress) -> None:
    each(2, lambda rank: None)
    before = set(tcp_sockets())  # also of other tests, whose clients may close them at any time
    for number in range(10, 15):
        generations = form(store, number, 2)
        assert set(tcp_sockets()) - before
        each(2, lambda rank: generations[rank].leave())  # noqa: B023 - joined before the next round
    assert not set(tcp_sockets()) - before


def test_who_could_not_be_reached_is_named(store: module.StoreAddress) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(NotFormed, match=rf"the store of w0 at 127\.0\.0\.1:{port} could not be reached \(.*refused\)"):
        Generation(90, 2, 1, store_of("127.0.0.1", port), never, SOON, ["w0", "w1"])
    with pytest.raises(NotFormed, match=r"w1, w2 did not come to the store of w0 at 127\.0\.0\.1:\d+ within 0\.05 s"):
        Generation(91, 3, 0, store, never, SOON, ["w0", "w1", "w2"])


def test_a_member_whose_connections_are_not_reached_is_named(store: module.StoreAddress) -> None:
    """It has come to the store, and its address leads nowhere: as behind a firewall, or of another machine."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    other = StoreClient(store.host, store.port, 92, time.monotonic() + 10)
    other.set("here/0", f"127.0.0.1 {port}".encode())
    options = GenerationOptions(form_timeout_s=0.5)
    with pytest.raises(NotFormed, match=rf"w0 at 127\.0\.0\.1:{port} could not be reached \(.*refused\)"):
        Generation(92, 2, 1, store, never, options, ["w0", "w1"])
    other.close()


def test_a_generation_that_somebody_closed_is_not_one_that_did_not_form(store: module.StoreAddress) -> None:
    with pytest.raises(GenerationClosed) as raised:
        Generation(93, 2, 0, store, lambda: True)
    assert not isinstance(raised.value, NotFormed)


def test_two_generations_at_one_store_do_not_meet() -> None:
    own = Rendezvous()
    older = StoreClient(own.host, own.port, 1, time.monotonic() + 30.0)
    older.set("here/0", b"of the older one")
    assert older.get("here/0") == b"of the older one"
    newer = StoreClient(own.host, own.port, 2, time.monotonic() + 0.2)
    with pytest.raises(TimeoutError):
        newer.get("here/0")
    older.close()
    newer.close()
    own.close()
