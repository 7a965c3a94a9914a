"""Small tensors straight from each member to each other one: sums, what is cut on its way, and who leaves."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import torch
from antdt.strategies.allreduce import Generation, GenerationClosed, Rendezvous, store_of
from antdt.strategies.allreduce import peers as peers_module
from antdt.strategies.allreduce.groups import Groups
from antdt.strategies.allreduce.mesh import SENT_BYTES_MAX, Exchange, Mesh
from antdt.strategies.allreduce.peers import HELLO, PEERS_MAX, Door
from antdt_schemas.errors import Mismatch
from torch.distributed import ReduceOp

from tests.helpers.allreduce import STRANDED_SOON, each

SOON = timedelta(milliseconds=1)


def meshes(world: int, wrap: Any = lambda connection: connection) -> list[Mesh]:
    peers: list[dict[int, Any]] = [{} for _ in range(world)]
    for low in range(world):
        for high in range(low + 1, world):
            one, other = socket.socketpair(socket.AF_UNIX)
            peers[low][high], peers[high][low] = wrap(one), wrap(other)
    return [Mesh(rank, peers[rank], 5.0) for rank in range(world)]


def close(found: Sequence[Mesh]) -> None:
    for mesh in found:
        for connection in mesh.connections:
            connection.close()


@pytest.fixture
def two() -> Iterator[list[Mesh]]:
    found = meshes(2)
    yield found
    close(found)


def all_of(found: list[Mesh], tensors: list[torch.Tensor], op: Any = ReduceOp.SUM) -> None:
    flight = [mesh.allreduce(one, op) for mesh, one in zip(found, tensors, strict=True)]
    for exchange in flight:
        exchange.wait()


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.int64])
def test_everybody_has_the_sum_in_rank_order_bit_by_bit(world: int, dtype: torch.dtype) -> None:
    torch.manual_seed(world)
    given = [(torch.randn(97) * 10.0**rank).to(dtype) for rank in range(world)]
    expected = given[0].clone()
    for one in given[1:]:
        expected = expected + one
    found = meshes(world)
    all_of(found, given)
    for one in given:
        assert torch.equal(one.view(torch.uint8), expected.view(torch.uint8))
    close(found)


def test_the_largest_and_rows(two: list[Mesh]) -> None:
    given = [torch.tensor([1, 5]), torch.tensor([4, 2])]
    all_of(two, given, ReduceOp.MAX)
    assert given[0].tolist() == given[1].tolist() == [4, 5]
    flags = [torch.tensor([True, False]), torch.tensor([False, False])]
    all_of(two, flags, ReduceOp.MAX)
    assert flags[0].tolist() == flags[1].tolist() == [True, False]
    rows = [torch.zeros(2, 3, dtype=torch.int64) for _ in range(2)]
    flight = [two[rank].gather(rows[rank], torch.arange(3) + 10 * rank) for rank in range(2)]
    for exchange in flight:
        exchange.wait()
    assert rows[0].tolist() == rows[1].tolist() == [[0, 1, 2], [10, 11, 12]]


class Narrow:
    """A connection that takes and gives a few bytes at a time, as the moment has it, and often nothing."""

    def __init__(self, connection: socket.socket, by: random.Random) -> None:
        self._socket, self._random = connection, by

    def _some(self, views: list[Any]) -> list[memoryview]:
        if self._random.random() < 0.3:
            raise BlockingIOError
        left, out = self._random.randint(1, 40), list[memoryview]()
        for view in views:
            out.append(memoryview(view)[:left])
            left -= len(out[-1])
        return out

    def sendmsg(self, views: list[Any]) -> int:
        return self._socket.sendmsg(self._some(views))

    def recvmsg_into(self, views: list[Any]) -> Any:
        return self._socket.recvmsg_into(self._some(views))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


@pytest.mark.parametrize("seed", range(20))
def test_wherever_messages_are_cut_nothing_is_lost_and_nothing_mixed_up(seed: int) -> None:
    """Several of different lengths are in flight, and waited for in any order."""
    by = random.Random(seed)
    found = meshes(3, lambda connection: Narrow(connection, by))
    sizes = [by.randint(0, 60) for _ in range(6)]
    given = [[torch.full((size,), float(10**rank + at)) for at, size in enumerate(sizes)] for rank in range(3)]
    orders = [by.sample(range(6), 6) for _ in range(3)]

    def member(rank: int) -> None:
        flight = [found[rank].allreduce(one) for one in given[rank]]
        for at in orders[rank]:
            flight[at].wait()
            assert (given[rank][at] == 111 + 3 * at).all()

    each(3, member)
    close(found)


def test_what_the_kernel_has_no_room_for_goes_while_both_wait() -> None:
    """Neither reads while it computes, and neither hangs once it waits."""
    found, size = meshes(2), SENT_BYTES_MAX // 4
    for mesh in found:
        for connection in mesh.connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    given = [torch.ones(size), torch.ones(size)]
    flight = [mesh.allreduce(one) for mesh, one in zip(found, given, strict=True)]
    assert [exchange.missing for exchange in flight] == [2, 2]
    each(2, lambda rank: flight[rank].wait())
    assert (given[0] == 2).all() and (given[1] == 2).all()
    close(found)


def test_nothing_is_written_while_nobody_waits(two: list[Mesh]) -> None:
    """Who gives up has its gradients to itself: there is nothing to be set aside."""
    mine = torch.ones(4)
    exchange = two[0].allreduce(mine)
    two[1].allreduce(torch.ones(4)).wait()
    assert mine.tolist() == [1, 1, 1, 1] and not exchange.is_completed()
    two[0].drop()
    assert exchange.is_completed()
    with pytest.raises(RuntimeError, match="it was left"):
        two[0].allreduce(mine).wait()


def test_a_wait_ends_in_time_and_may_be_repeated(two: list[Mesh]) -> None:
    mine = torch.ones(4)
    exchange = two[0].allreduce(mine)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not done within"):
            exchange.wait(SOON)
        assert not exchange.is_completed()
    two[1].allreduce(torch.ones(4))
    exchange.wait(SOON)
    exchange.wait(SOON)
    assert mine.tolist() == [2, 2, 2, 2] and exchange.is_completed()


def test_an_exchange_that_nobody_answers_fails_in_the_end(two: list[Mesh], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two[0], "timeout_s", 0.01)
    exchange = two[0].allreduce(torch.ones(1))
    said = ""
    while not exchange.is_completed():
        with pytest.raises(RuntimeError) as error:
            exchange.wait(SOON)
        said = str(error.value)
    assert said == "nothing came of an exchange within 0.01 s"


def test_a_peer_that_has_left_is_named_and_what_it_gave_before_counts() -> None:
    found = meshes(3)
    tensors = [torch.ones(2) for _ in range(3)]
    flight = [mesh.allreduce(one) for mesh, one in zip(found, tensors, strict=True)]
    flight[2].wait()
    close(found[2:])
    flight[0].wait()
    assert tensors[0].tolist() == [3, 3]
    second = found[0].allreduce(torch.ones(2))
    with pytest.raises(RuntimeError, match=r"rank 2: (its connection has ended|.*Broken pipe|.*reset)"):
        second.wait()
    assert second.is_completed()
    with pytest.raises(RuntimeError, match="rank 2"):
        second.wait()
    flight[1].wait()
    assert tensors[1].tolist() == [3, 3]
    close(found[:2])


def test_connections_that_another_thread_shuts_wake_who_waits(two: list[Mesh]) -> None:
    exchange = two[0].allreduce(torch.ones(1))
    threading.Timer(0.01, lambda: two[0].connections[0].shutdown(socket.SHUT_RD)).start()
    started_s = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1: its connection has ended"):
        exchange.wait(timedelta(seconds=30))
    assert time.monotonic() - started_s < 15.0


def test_what_differs_in_length_or_number_is_never_added_up(two: list[Mesh]) -> None:
    mine, theirs = torch.ones(3), torch.ones(2)
    two[1].allreduce(theirs)
    exchange = two[0].allreduce(mine)
    with pytest.raises(Mismatch, match=r"rank 1 \(number, bytes\) differs: expected \(0, 12\), found \(0, 8\)"):
        exchange.wait()
    assert mine.tolist() == [1, 1, 1]


def test_one_that_was_left_out_is_noticed(two: list[Mesh]) -> None:
    each(2, lambda rank: two[rank].allreduce(torch.ones(2)).wait())
    two[1]._number += 1
    two[1].allreduce(torch.ones(2))
    exchange = two[0].allreduce(torch.ones(2))
    with pytest.raises(Mismatch, match=r"expected \(1, 8\), found \(2, 8\)"):
        exchange.wait()


def test_one_tensor_may_come_again_with_other_numbers(two: list[Mesh]) -> None:
    mine, theirs = torch.zeros(3), torch.zeros(3)
    for step in range(1, 4):
        mine.fill_(step)
        theirs.fill_(10 * step)
        flight = [two[0].allreduce(mine, again=True), two[1].allreduce(theirs)]
        for exchange in flight:
            exchange.wait()
        assert mine.tolist() == theirs.tolist() == [11.0 * step] * 3
    other = torch.ones(3)
    flight = [two[0].allreduce(other, again=True), two[1].allreduce(torch.ones(3), again=True)]
    for exchange in flight:
        exchange.wait()
    assert other.tolist() == [2, 2, 2] and mine.tolist() == [33, 33, 33]


def test_little_is_little_for_all_together() -> None:
    found = meshes(3)
    assert found[0].takes(SENT_BYTES_MAX // 2) and not found[0].takes(SENT_BYTES_MAX // 2 + 1)
    close(found)


# -- in a generation


@pytest.mark.parametrize("nccl", [True, False])
def test_groups_wait_for_what_nobody_else_moves(two: list[Mesh], nccl: bool) -> None:
    """With NCCL others are asked whether they are done: this would never be."""
    groups = Groups(None, None, nccl, [], two[:1])
    mine = torch.ones(2)
    work = two[0].allreduce(mine)
    asked = iter([False, False, True])
    assert not groups.wait(work, lambda: next(asked))
    two[1].allreduce(torch.ones(2))
    assert groups.wait(work, lambda: False) and mine.tolist() == [2, 2]


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    own = Rendezvous()
    yield store_of(own.host, own.port)
    own.close()


def formed(store: Any, number: int, world: int) -> list[Generation]:
    return each(world, lambda rank: Generation(number, world, rank, store, lambda: False, STRANDED_SOON))


def test_a_generation_takes_the_mesh_for_what_is_small_and_gloo_for_the_rest(store: Any) -> None:
    members = formed(store, 1, 2)
    small, large = [torch.ones(8) for _ in range(2)], [torch.ones(SENT_BYTES_MAX // 4 + 1) for _ in range(2)]
    rows = [torch.zeros(2, 4, dtype=torch.int64) for _ in range(2)]

    def member(rank: int) -> list[bool]:
        row = torch.full((4,), rank + 1)
        flight = [members[rank].allreduce(one[rank]) for one in (small, large)]
        flight.append(members[rank].gather(rows[rank], row))
        for work in flight:
            members[rank].wait(work)
        members[rank].settled()
        return [isinstance(work, Exchange) for work in flight]

    assert each(2, member) == [[True, False, True]] * 2
    for rank in range(2):
        assert small[rank].tolist() == [2.0] * 8 and (large[rank] == 2).all()
        assert rows[rank].tolist() == [[1] * 4, [2] * 4]
    assert each(2, lambda rank: members[rank].leave()) == [True, True]


def test_among_many_members_there_is_no_mesh(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from antdt.strategies.allreduce import rendezvous

    monkeypatch.setattr(rendezvous, "PEERS_MAX", 1)
    members = formed(store, 2, 3)
    tensors = [torch.ones(2) for _ in range(3)]
    each(3, lambda rank: members[rank].wait(members[rank].allreduce(tensors[rank])))
    assert [one.tolist() for one in tensors] == [[3, 3]] * 3
    each(3, lambda rank: members[rank].leave())


def test_who_has_left_is_named(store: Any) -> None:
    names = "w0", "w7"
    options = replace(STRANDED_SOON, leave_timeout_s=0.01)
    members = each(2, lambda rank: Generation(3, 2, rank, store, lambda: False, options, names))
    members[1].leave()
    work = members[0].allreduce(torch.ones(2))
    with pytest.raises(GenerationClosed, match=r"A collective of generation 3 failed: w7: "):
        members[0].wait(work)
    members[0].leave()


# -- how they connect


def test_a_stranger_and_whoever_has_the_wrong_word_are_sent_away() -> None:
    doors = [Door("127.0.0.1"), Door("127.0.0.1")]
    host, port, _ = doors[0].said.split(" ")
    strangers = [socket.create_connection((host, int(port))) for _ in range(3)]
    strangers[0].sendall(HELLO.pack(bytes(16), 1, 0))
    strangers[1].sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(20))
    strangers[2].close()
    until_s = time.monotonic() + 10.0
    found = each(2, lambda rank: doors[rank].meet(rank, {1 - rank: doors[1 - rank].said}, until_s, each=2))
    for number in range(2):
        found[0][1, number].sendall(b"%d" % number)
        assert found[1][0, number].recv(1) == b"%d" % number
    for one in strangers[:2]:
        with suppress(ConnectionResetError):
            assert one.recv(1) == b""
    for one in (*strangers, *found[0].values(), *found[1].values()):
        one.close()


def test_who_does_not_come_and_who_is_not_there_is_named_in_time() -> None:
    door, gone = Door("127.0.0.1"), Door("127.0.0.1")
    gone.close()
    with pytest.raises(OSError, match="rank 1 has not connected in time"):
        door.meet(0, {1: gone.said}, time.monotonic() + 0.01)
    with pytest.raises(OSError, match="refused"):
        Door("127.0.0.1").meet(1, {0: gone.said}, time.monotonic() + 10.0)


def test_meeting_is_abandoned_from_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "SLICE_S", 0.001)
    door = Door("127.0.0.1")
    threading.Timer(0.01, door.abandon).start()
    with pytest.raises(OSError, match="abandoned"):
        door.meet(0, {1: door.said}, time.monotonic() + 60.0)


def test_more_members_than_the_mesh_takes_would_send_too_much() -> None:
    """The rows of compositions alone: 54 numbers of 8 bytes, as 216 floats, of each member."""
    assert (PEERS_MAX + 1) * 216 * 4 * PEERS_MAX < SENT_BYTES_MAX
