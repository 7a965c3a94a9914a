"""Servers that are not reached, and servers that are not of one job: named, bounded, and told to both sides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import torch
from antdt.files.part_files import PartFiles
from antdt.strategies.base import GenerationClosed
from antdt.strategies.once import Once
from antdt.strategies.ps import links, state
from antdt.strategies.ps.agreeing import unlike
from antdt.strategies.ps.client import Exchange
from antdt.strategies.ps.core.facts import Mode
from antdt.strategies.ps.layout import layout_of
from antdt.strategies.ps.reached import Peer, Reached
from antdt.strategies.ps.server import Server
from antdt.strategies.ps.state import ServerState
from antdt.strategies.ps.wire import Hello
from antdt_schemas.errors import AntdtError, Mismatch, Refused, Unavailable, UsageError
from torch.optim.lr_scheduler import StepLR

from tests.helpers.parameter_servers import HOST, JOB

SOON_S = 5.0


def model_of(lr: float = 0.1, seed: int = 0, gamma: float = 0.0, width: int = 1) -> ServerState:
    """A server's state by a script that says so."""
    return a_part(0, lr, seed, gamma, width)


def a_part(part: int, lr: float = 0.1, seed: int = 0, gamma: float = 0.0, width: int = 1) -> ServerState:
    torch.manual_seed(seed)
    model = torch.nn.Linear(4, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    once = Once(StepLR(optimizer, 2, gamma)) if gamma else Once()
    return ServerState(layout_of(model, optimizer), model, optimizer, part, 2, once)


def hello_of(one: ServerState) -> Hello:
    return Hello(1, one.version, one.lineage.hex(), one.layout.digest, one.stated(), one.first_digest())


# -- reached


def until(holds: Callable[[], bool]) -> bool:
    end_s = monotonic() + SOON_S
    while not holds() and monotonic() < end_s:
        sleep(0.001)
    return holds()


def test_a_connection_is_seen_made_also_if_that_takes_no_time_and_seen_to_break() -> None:
    """It is watched from before: of twenty on this machine some used to be made before anybody looked."""
    context = links.context()
    router, port = links.listen(context, HOST)
    watches = [links.connect(context, HOST, port, f"w{number}")[1] for number in range(20)]
    assert until(lambda: not any(watch.look() or not watch.was_made for watch in watches))
    router.close(0)
    assert until(lambda: all(watch.look() for watch in watches))
    for watch in watches:
        watch.close()
    links.close(context)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not made after a tenth of a second is late."""
    monkeypatch.setattr(links, "SILENT_MS", 100)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("host", [HOST, "no-such-host.invalid"])
def test_a_worker_that_does_not_reach_a_server_says_which_and_where_and_does_not_wait_for_ever(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = Exchange(model_of().layout, JOB, "w3.0.a", links.Patience(0.3), own_host="10.0.0.9")
    exchange.connect(1, [(host, 1)])
    with pytest.raises(Unavailable, match=f"w3.0.a: no connection to server s0 at {host}:1 could be made") as raised:
        exchange.pull()
    exchange.close()
    assert "ANTDT_ADVERTISE" in str(raised.value)
    assert ("loopback" in str(raised.value)) == (host == HOST), "of another machine that is this one's own address"
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"w3.0.a: no connection to server s0 at {host}:1 could be made; it is waited for, 0.3 s at most"


@pytest.mark.usefixtures("soon")
def test_patience_with_a_server_goes_on_over_generations_and_ends_where_all_are_reached() -> None:
    patience, context = links.Patience(0.3), links.context()

    def generation(port: int) -> Reached:
        watch = links.connect(context, HOST, port, "w")[1]
        watches.append(watch)
        return Reached("w", HOST, [Peer("s1", HOST, port, watch)], patience)

    watches: list[links.Watch] = []
    first = generation(1)
    sleep(0.15)
    first.look()
    assert patience.for_s < 0.1
    second = generation(1)
    second.look()
    sleep(0.35)
    with pytest.raises(Unavailable, match=r"server s1 at 127\.0\.0\.1:1"):
        second.look()
    router, port = links.listen(context, HOST)
    third = generation(port)
    assert until(lambda: watches[-1].look() or watches[-1].was_made)
    third.look()
    assert patience.for_s == 0.0 and third.blamed(["s1"]) == f"s1 at {HOST}:{port}"
    for watch in watches:
        watch.close()
    router.close(0)
    links.close(context)


def test_who_does_not_answer_is_told_from_who_is_not_reached() -> None:
    class Of:
        """As a Watch is looked at."""

        def __init__(self, *, broken: bool) -> None:
            self.was_made, self.is_late, self.broken = True, False, broken

        def look(self) -> bool:
            return self.broken

    peers: list[Any] = [Peer("s0", "a", 1, Of(broken=False)), Peer("s1", "b", 2, Of(broken=True))]
    assert Reached("w", "c", peers, links.Patience(1)).blamed(["s0", "s1"]) == "s1 at b:2"
    assert Reached("w", "c", peers[:1], links.Patience(1)).blamed(["s0"]) == "s0 at a:1"


# -- of one job


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> Iterator[list[Server]]:
    """Two of one generation; the other one's script is as the test says."""
    states = [a_part(0), a_part(1, **getattr(request, "param", {}))]
    made = [Server(state, Mode("asp"), JOB, lambda name, data: b"") for state in states]
    for one in made:
        one.sign = f"sign of s{one.state.part}"
    made[0].sees = lambda hello: UsageError("it writes elsewhere") if hello.sign != "sign of s1" else None
    yield made
    for one in made:
        one.close()


def begun(servers: list[Server]) -> dict[int, AntdtError]:
    """What each ends with, if it ends; they turn until one of them serves."""
    peers = [(HOST, one.bind(HOST)) for one in servers]
    for one in servers:
        one.begin(1, peers)
    found: dict[int, AntdtError] = {}
    end_s = monotonic() + SOON_S
    while len(found) < 2 and len(servers[0]._present) < 2 and monotonic() < end_s:
        for part, one in enumerate(servers):
            if part not in found:
                try:
                    one.turn(0.01)
                except AntdtError as error:
                    found[part] = error
    return found


def test_servers_of_one_script_begin(servers: list[Server]) -> None:
    assert begun(servers) == {} and servers[0]._present == {0, 1}


@pytest.mark.parametrize(
    ("servers", "what"),
    [
        ({"lr": 0.2}, "parameter group 0: lr=0.1, found SGD, parameter group 0: lr=0.2"),
        ({"gamma": 0.5}, "nothing of it, found "),
        ({"width": 2}, "other parameters or tables"),
    ],
    indirect=["servers"],
)
def test_a_server_whose_script_says_something_else_ends_the_run_on_both_sides(servers: list[Server], what: str) -> None:
    found = begun(servers)
    assert isinstance(found[0], Mismatch) and what in str(found[0]), found
    assert isinstance(found[1], Refused) and str(found[0]) in str(found[1])
    assert "same script with the same arguments" in str(found[1])


def test_a_server_that_writes_into_another_folder_ends_the_run_on_both_sides(servers: list[Server]) -> None:
    servers[1].sign = "sign of another one"
    found = begun(servers)
    assert isinstance(found[0], UsageError) and "it writes elsewhere" in str(found[1])


def test_first_weights_that_differ_are_said_and_those_of_a_file_are_not_compared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours = hello_of(model_of())
    assert unlike(ours, hello_of(model_of())) is None and not caplog.records
    with caplog.at_level(logging.WARNING):
        assert unlike(ours, hello_of(model_of(seed=1))) is None
    assert "torch.manual_seed" in caplog.records[0].getMessage()
    restored = model_of(seed=1)
    restored.version = 3
    assert restored.first_digest() == ""
    assert isinstance(unlike(ours, ours._replace(version=2)), Mismatch)


def test_what_many_groups_state_fits_into_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "STATED_MAX", 300)

    def stated(lr: float) -> tuple[str, ...]:
        layers = [torch.nn.Linear(1, 1) for _ in range(9)]
        optimizer = torch.optim.SGD([{"params": one.parameters(), "lr": lr} for one in layers], lr=0.1)
        model = torch.nn.Sequential(*layers)
        return ServerState(layout_of(model, optimizer), model, optimizer, 0, 1).stated()

    assert len(stated(0.1)) == 1
    assert stated(0.1) == stated(0.1) != stated(0.2)


# -- of one folder


def test_a_folder_is_known_by_what_another_one_has_just_written_into_it(tmp_path: Path) -> None:
    def files(root: Path) -> PartFiles:
        made = PartFiles(root, "job", None)  # type: ignore[arg-type]  nothing is saved here
        made.run_id = "run"
        return made

    here, elsewhere = files(tmp_path / "a"), files(tmp_path / "b")
    assert here.leave_sign("s1", "s1.0.x") == "s1.0.x"
    assert files(tmp_path / "a").sees("s1", "s1.0.x")
    assert not elsewhere.sees("s1", "s1.0.x", 0.05)
    assert not here.sees("s1", "s1.1.x"), "what was there before says nothing"
    (tmp_path / "c").write_text("a file")
    assert files(tmp_path / "c").leave_sign("s1", "s1.0.x") == "", "it is said when a checkpoint cannot be written"


def test_a_generation_that_ends_is_told_from_a_server_that_is_not_reached() -> None:
    exchange = Exchange(model_of().layout, JOB, "w", links.Patience(0.0))
    exchange.connect(1, [(HOST, 1)], lambda: True)
    with pytest.raises(GenerationClosed):
        exchange.pull()
    exchange.close()
