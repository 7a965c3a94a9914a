"""Members as real processes: killed, stopped and woken in the middle of a step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.allreduce_member import serve
from tests.helpers.warm import Warm

pytestmark = pytest.mark.kafka
TOLD_S = 2.0  # by when a member that woke up has read in the log what it missed


class Process:
    """A member; commands go down a pipe, answers come up."""

    def __init__(self) -> None:
        self.pipe, other = Pipe()
        self.process = Warm(serve, (), os.environ, Path(os.devnull), [other])
        other.close()

    def tell(self, do: str, **more: Any) -> None:
        self.pipe.send({"do": do} | more)

    def hear(self, did: str) -> dict[str, Any]:
        try:
            said: dict[str, Any] = self.pipe.recv()
        except EOFError:
            raise AssertionError(f"the member went away instead of: {did}") from None
        assert said["did"] == did, said
        return said

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.pipe.close()


@pytest.fixture
def members() -> Iterator[list[Process]]:
    processes = [Process() for _ in range(3)]
    try:
        yield processes
    finally:
        for process in processes:
            process.end()


def ready(members: list[Process]) -> list[dict[str, Any]]:
    """Everybody's address."""
    return [member.hear("ready") for member in members]


def grant(members: list[Process], number: int, address: dict[str, Any], source: int = 0) -> list[dict[str, Any]]:
    for rank, member in enumerate(members):
        where = {"host": address["host"], "port": address["port"]}
        member.tell("grant", number=number, rank=rank, world=len(members), source=source, **where)
    return [member.hear("grant") for member in members]


def train(members: list[Process], steps: int, **more: Any) -> None:
    options = {"hold_step": -1, "hold_at": "", "bulky": False, "tell_step": -1} | more
    for member in members:
        member.tell("train", steps=steps, **options)


def agreed(said: list[dict[str, Any]]) -> dict[str, Any]:
    """What all of them say alike."""
    assert len({(one["step"], one["lineage"], one["digest"]) for one in said}) == 1, said
    return said[0]


@pytest.mark.parametrize("hold_at", ["take", "backward", "transfer"])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_survivors_go_on_without_a_member_that_died_or_hangs(
    members: list[Process], hold_at: str, fault: signal.Signals
) -> None:
    survivors, victim = members[:2], members[2]
    address = ready(members)[0]
    agreed(grant(members, 1, address))
    train(members[:2], steps=9, bulky=hold_at == "transfer", tell_step=2)
    train([victim], steps=9, hold_step=2, hold_at=hold_at, bulky=hold_at == "transfer")
    victim.hear("hold")
    for member in survivors:
        member.hear("applied")
    victim.signal(fault)

    for member in survivors:  # as the ledger would, once it has missed a heartbeat
        member.tell("close", number=1)
    left = [member.hear("closed") for member in survivors]
    source = max((0, 1), key=lambda rank: left[rank]["step"])
    assert [one["step"] for one in left] == [2, 2], "not at the last applied step"
    adopted = agreed(grant(survivors, 2, address, source))
    assert (adopted["digest"], adopted["pending"]) == (left[source]["digest"], [1, 2])
    train(survivors, steps=3)
    assert agreed([member.hear("train") for member in survivors])["step"] == 5

    if fault is signal.SIGSTOP:
        victim.signal(signal.SIGCONT)
        victim.tell("go")
        # Its sockets have ended; but gloo tells an operation nothing whose data were on their way at that moment (the
        # module's text of `groups` has what was measured). What tells it then is what the survivors were told.
        if not victim.pipe.poll(TOLD_S):
            victim.tell("close", number=1)
        assert victim.hear("closed")["step"] == 2, "a member that was left out applied a step alone"


def test_a_store_whose_process_is_stopped_holds_nobody_up_for_long(members: list[Process]) -> None:
    addresses = ready(members)
    members[2].signal(signal.SIGSTOP)
    others = members[:2]
    stopped = {"host": addresses[2]["host"], "port": addresses[2]["port"]}
    for rank, member in enumerate(others):
        member.tell("grant", number=1, rank=rank, world=2, source=0, **stopped)
    for member in others:
        member.tell("close", number=1)
    for member in others:
        member.hear("closed")
    agreed(grant(others, 2, addresses[0]))
    train(others, steps=2)
    assert agreed([member.hear("train") for member in others])["step"] == 2


def test_a_newcomer_gets_the_model_and_the_steps_not_yet_committed(members: list[Process]) -> None:
    first, second, newcomer = members
    address = ready(members)[0]
    grant([first, second], 1, address)
    train([first, second], steps=3)
    trained = agreed([first.hear("train"), second.hear("train")])
    for member in (first, second):
        member.tell("close", number=1)
    said = grant([newcomer, first, second], 2, address, source=1)
    assert agreed(said)["digest"] == trained["digest"]
    assert [one["pending"] for one in said] == [[1, 2, 3]] * 3
    train(members, steps=2)
    assert agreed([member.hear("train") for member in members])["step"] == 5


def test_a_process_that_ends_with_a_step_open_does_not_block_at_its_exit(members: list[Process]) -> None:
    address = ready(members)[0]
    grant(members, 1, address)
    train(members, steps=3, hold_step=1, hold_at="transfer", bulky=True)
    for member in members:
        member.hear("hold")
        member.signal(signal.SIGINT)
    for member in members:
        member.process.wait(20)
