"""Orders that are held against a job's log before anything is sent: who can be started again, and what can decide."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from antdt.launch.feed import order_of
from antdt_schemas import codec
from antdt_schemas.connection import Connection
from antdt_schemas.errors import Refused, Unavailable, UsageError
from antdt_schemas.records import Steering
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.kafka import operating
from antdt_streams.policies.find import find
from antdt_streams.storage.rows import Position
from antdt_streams.views import orders

from tests.unit.test_stacks import incarnation

NOWHERE = Connection("localhost:9")


def launched(worker: str, life: int = 0, status: str = "member", launch: str = "run") -> tuple[str, Any]:
    return f"{worker}.{life}.run", incarnation(worker, launch, "ann@host:12", status)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Steering]:
    """What would be written: `operating.tell` is answered by a Controller in memory."""
    said, state = list[Steering](), ControllerState(find("even"), find=find)

    def steer(_: Connection, __: str, word: Steering) -> Any:
        said.append(word)
        return state.process(word, Position(0, len(said)), 0)[0]

    monkeypatch.setattr(operating, "steer", steer)
    return said


def log_says(
    monkeypatch: pytest.MonkeyPatch, *lives: tuple[str, Any], done: str | None = None, strategy: str = "allreduce"
) -> None:
    """Looks at the log one after the other; the last one stays."""
    state = SimpleNamespace(
        members=SimpleNamespace(incarnations=dict(lives)), done=done, spec=SimpleNamespace(strategy=strategy)
    )
    monkeypatch.setattr(orders, "newest_state", lambda *_: (SimpleNamespace(state=state), 0))


def test_the_newest_life_of_a_worker_is_what_is_ordered_to_go(
    monkeypatch: pytest.MonkeyPatch, sent: list[Steering]
) -> None:
    log_says(monkeypatch, launched("w0"), launched("w1", 0, "lost"), launched("w1", 1))
    to_go, said = orders.restart(NOWHERE, "j", "w1", "its disk is new", "Ada")
    assert (to_go, sent[0].restart, sent[0].reason) == ("w1.1.run", "w1.1.run", "its disk is new")
    assert sent[0].author.startswith("Ada by ")
    assert said == (
        f"w1.1.run is to leave, and its launcher starts w1 again. {sent[0].author} orders it: its disk is new"
    )
    with pytest.raises(Refused, match=r"^The Controller refuses: w1 is being started again already$"):
        orders.restart(NOWHERE, "j", "w1", "its disk is new")


@pytest.mark.parametrize(
    ("lives", "more", "error", "said"),
    [
        ((launched("w0"),), {}, UsageError, "No worker or server 'w1' has joined job j. Who has: w0."),
        ((), {}, UsageError, "No worker or server 'w1' has joined job j. Who has: nobody yet."),
        ((launched("w1", 0, "left"),), {}, Unavailable, "its last life, w1.0.run, has left"),
        ((launched("w1"),), {"done": "f"}, Refused, "Job j is done: nobody of it is started again."),
        ((launched("w1"),), {"strategy": "watched"}, Refused, "Job j is only watched: whoever started w1"),
        ((launched("w1", launch="othr"),), {}, Refused, "was not started by `antdt launch`, but by torchrun"),
    ],
)
def test_who_cannot_be_started_again_is_said_and_nothing_is_sent(
    monkeypatch: pytest.MonkeyPatch,
    sent: list[Steering],
    lives: tuple[tuple[str, Any], ...],
    more: dict[str, Any],
    error: type[Exception],
    said: str,
) -> None:
    log_says(monkeypatch, *lives, **more)
    with pytest.raises(error) as raised:
        orders.restart(NOWHERE, "j", "w1", "why")
    assert said in str(raised.value) and not sent


def test_the_wait_for_the_next_life_is_bounded_and_says_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "LOOK_EVERY_S", 0.0)
    log_says(monkeypatch, launched("w1"))
    with pytest.raises(Unavailable, match=r"w1 is not back within 0 s: w1\.0\.run is still there\."):
        orders.await_next(NOWHERE, "j", "w1.0.run", 0.0, print)
    log_says(monkeypatch, launched("w1", 0, "left"))
    with pytest.raises(Unavailable, match=r"w1\.0\.run has left, and nobody has joined in its place"):
        orders.await_next(NOWHERE, "j", "w1.0.run", 0.01, print)
    log_says(monkeypatch, launched("w1", 0, "left"), launched("w1", 1))
    assert orders.await_next(NOWHERE, "j", "w1.0.run", 0.0, print).startswith("w1 is back as w1.1.run, after 0.0 s.")
    log_says(monkeypatch, launched("w1", 0, "left"), done="f")
    assert orders.await_next(NOWHERE, "j", "w1.0.run", 0.0, print) == "Job j was done before w1 was back."


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("best", {}, "No policy 'best': take one of "),
        ("nd", {"gain_mni": "1"}, "Policy nd has no parameter 'gain_mni'"),
        ("nd", {"gain_min": "9"}, "Take 0 < gain_min"),
        ("asp-dds", {}, "The policy asp-dds works under ps-asp/servers only, and the strategy of job j is allreduce."),
        ("gone.py:Mine", {}, "/gone.py: there is no such file."),
    ],
)
def test_a_policy_that_cannot_decide_there_is_said_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, sent: list[Steering], name: str, changes: dict[str, str], said: str
) -> None:
    log_says(monkeypatch)
    with pytest.raises(UsageError) as raised:
        orders.promote(NOWHERE, "j", name, changes, "why")
    assert said in str(raised.value) and not sent


def test_a_policy_is_promoted_with_its_parameters_and_a_file_by_where_it_lies(
    monkeypatch: pytest.MonkeyPatch, sent: list[Steering], tmp_path: Path
) -> None:
    log_says(monkeypatch)
    said = orders.promote(NOWHERE, "j", "nd", {"gain_min": "0.08"}, "calm", "Ada")
    assert said == (f"policy nd with gain_min=0.08 decides from here on, in place of even, says {sent[0].author}: calm")
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    name, version = 'mine', 1\n    def decide(self, view, memory):\n        return (), memory\n"
    )
    monkeypatch.chdir(tmp_path)
    assert orders.promote(NOWHERE, "j", "./mine.py:Mine", {}, "calm").startswith("policy mine decides from here on")
    assert sent[-1].promote == f"{tmp_path}/mine.py:Mine"


def test_a_launcher_hears_who_ordered_it_and_not_a_policy() -> None:
    word = Steering("Ada by root@host:7", restart="w1.0.run", reason="its disk\nis new.")
    (decision,) = ControllerState(find("nd")).process(word, Position(0, 3), 0)
    heard = order_of(codec.encode(decision), 12)
    assert heard == ("w1.0.run", "Ada by root@host:7 (decision 12)", "its disk is new")
