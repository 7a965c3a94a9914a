"""What a worker says of a ledger or a broker that does not answer."""

from __future__ import annotations

import subprocess
import sys

import pytest
from antdt.connect.reach import Reach
from antdt.worker.session import Composition, Phase, Session, Where
from antdt_schemas import records

SPEC = records.JobSpec("d", 1000, bytes(16), "sequential", 1, 0, 8, 8, 1, 3, "allreduce")


class Talk:
    """A worker that asks once a second, and a clock that is looked at ten times a second."""

    def __init__(self, phase: Phase = Phase.MEMBER) -> None:
        self.session = Session("w0", "w0.0", SPEC, Where("h", 1))
        self.session.phase = phase
        self.reach = Reach("j", "broker:9092", 4096)
        self.now_s = 1000.0

    def run(self, seconds: float, *, ledger: bool, broker: bool = True) -> list[tuple[float, str]]:
        """What is said, and when."""
        said = []
        for tick in range(int(seconds * 10)):
            if tick % 10 == 0:
                self.reach.asked()
                if broker:
                    self.reach.taken()
                if broker and ledger:
                    self.reach.heard()
            self.now_s += 0.1
            word = self.reach.word(self.session, self.now_s)
            if word is not None:
                said.append((round(self.now_s - 1000.0, 1), word))
        return said


def test_a_ledger_that_answers_is_not_spoken_of() -> None:
    assert Talk().run(120, ledger=True) == []


def test_a_ledger_that_does_not_answer_is_named_within_five_seconds_with_how_far_training_goes() -> None:
    talk = Talk()
    talk.run(10, ledger=True)
    talk.session.applied(Composition(1, (), b"", 0))
    talk.session.leases.untaken = 640
    said = talk.run(62, ledger=False)
    assert [round(at - 10) for at, _ in said] == [5, 10, 20, 40], "again, ever more seldom"
    assert said[0][1] == (
        "w0: the ledger of job j has not answered for 5 s (the broker does). Training goes on without it: 1 steps "
        "await their commit, at most 4,096 may; 640 samples are leased ahead here. See `antdt status j`."
    )
    back = talk.run(2, ledger=True)
    assert [word for _, word in back] == ["w0: the ledger of job j answers again, after 62 s."]
    assert talk.run(60, ledger=True) == []


def test_a_broker_that_does_not_answer_is_told_apart() -> None:
    talk = Talk(Phase.JOINING)
    ((_, word),) = talk.run(6, ledger=False, broker=False)
    assert word.startswith("w0: the Kafka broker at broker:9092 has not answered for 5 s. Nothing is trained on until")
    ((_, word),) = talk.run(6, ledger=False)
    assert word.startswith("w0: the ledger of job j has not answered for 10 s (the broker does)"), "it came back first"


@pytest.mark.parametrize("phase", [Phase.ENDED, Phase.FAILED])
def test_who_is_at_the_end_waits_for_nobody(phase: Phase) -> None:
    talk = Talk()
    talk.reach.asked()
    talk.session.phase = phase
    assert talk.run(30, ledger=False) == []


def test_who_slept_was_not_left_without_an_answer() -> None:
    talk = Talk()
    talk.run(10, ledger=True)
    talk.reach.asked()
    talk.now_s += 3600.0
    assert talk.reach.word(talk.session, talk.now_s) is None
    talk.reach.heard()
    assert talk.run(10, ledger=True) == []


@pytest.mark.parametrize("root", ["", "logging.basicConfig(level=logging.WARNING);"])
def test_what_is_said_reaches_who_has_not_set_up_any_logging(root: str) -> None:
    script = (
        f"import logging; {root}\nfrom antdt.connect import client\nclient.log.warning('the ledger has not answered')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "the ledger has not answered" in done.stderr
