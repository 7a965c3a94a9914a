"""One real broker for the whole run, started when the first test asks for it; a fresh job name for each test.

Hypothesis counts no time: its deadline is one of the clock on the wall, and this suite shares its machine.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import os
import re
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from antdt.host.child import die_with_parent
from antdt_schemas.connection import Connection
from hypothesis import settings

from tests.helpers.running import Running
from tests.helpers.shared import BROKER, ENV_LEADER, Leader, SharedBroker, ask

settings.register_profile("antdt", deadline=None)
settings.load_profile("antdt")
_numbers = itertools.count(1)
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "t")  # of those that share the tests
LEADER = pytest.StashKey[Leader]()
# Whoever shares the tests takes them in order. Those of real processes wait most of the time, all others compute: side
# by side they keep the cores busy. And one of half a minute must not begin when all others have ended.
WAITS, COMPUTES = "integration", "simulation"
LONGEST_FIRST = (
    "test_chaos",
    "test_elastic",
    "test_demo",
    "test_documents",
    "test_guarded",
    "test_a_broker_that_goes_away_and_comes_back_costs_nothing",
    "test_whatever_happens_to_the_one_that_works_the_other_goes_on",
    "test_a_lost_tail_is_refused_until_an_operator_accepts_it",
    "test_what_was_written_survives_a_restart_and_a_kill_at_the_same_address",
    "test_a_broker_that_is_silent_makes_nobody_leader_and_nobody_is_answered",
)
# How long they take: those above against others that wait; a block of worlds against a file of others that compute.
LONG, BLOCK = 10, 25
SPEAK_S = 0.5
Place = tuple[float, list[pytest.Item]]


def pytest_configure(config: pytest.Config) -> None:
    """Whoever leads the run, alone or with others that run the tests, has what they share; and they die with it."""
    faulthandler.register(signal.SIGUSR1, file=2)  # for whoever is forked from here, too
    if not hasattr(config, "workerinput"):
        config.stash[LEADER] = Leader()
    else:
        die_with_parent(lambda: os.environ[ENV_LEADER] == str(os.getppid()))


def pytest_unconfigure(config: pytest.Config) -> None:
    """And ends it."""
    if LEADER in config.stash:
        config.stash[LEADER].close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, object, object]:
    """Of a test that hangs, its forked children say where they are, before they are ended: it may be they that hang."""
    if call.when == "call" and call.excinfo is not None and "Timeout" in str(call.excinfo.value):
        mine = Path("/proc/self/cmdline").read_bytes()
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes() == mine:
                    os.kill(int(pid), signal.SIGUSR1)
        time.sleep(SPEAK_S)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing that is imported is ever garbage: looking for it would take a fifth of the time, and later, too."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that wait, the longest first, and among them the files that compute, the worlds first."""

    def order(item: pytest.Item) -> int:
        names = item.path.stem, item.name
        return next((index for index, name in enumerate(LONGEST_FIRST) if name in names), len(LONGEST_FIRST))

    waiting = sorted((item for item in items if WAITS in item.path.parts), key=order)
    worlds = [item for item in items if COMPUTES in item.path.parts]
    others = [item for item in items if WAITS not in item.path.parts and COMPUTES not in item.path.parts]
    places = spread([(LONG if order(item) < len(LONGEST_FIRST) else 1, [item]) for item in waiting])
    places += spread(
        [(BLOCK, [item]) for item in worlds] + [(1, list(file)) for _, file in itertools.groupby(others, by_path)]
    )
    items[:] = [item for _, some in sorted(places, key=lambda place: place[0]) for item in some]


def by_path(item: pytest.Item) -> Path:
    """Tests of one file stay together: they may share what is dear."""
    return item.path


def spread(weighed: list[tuple[int, list[pytest.Item]]]) -> list[Place]:
    """Each with its place between 0 and 1: the share of what lies before it."""
    before = [0, *itertools.accumulate(weight for weight, _ in weighed)]
    return [(start / before[-1], some) for start, (_, some) in zip(before, weighed, strict=False)]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> SharedBroker:
    """A running Apache Kafka broker. All tests share it: they keep to a job of their own and do not stop it."""
    broker = ask(BROKER, tmp_path_factory.mktemp("broker"))
    assert isinstance(broker, SharedBroker)
    return broker


@pytest.fixture
def connection(broker: SharedBroker) -> Connection:
    """How to reach the run's broker."""
    return broker.connection


@pytest.fixture
def job(request: pytest.FixtureRequest) -> str:
    """A valid job name that no other test of this run has."""
    slug = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    return f"{WORKER}-{next(_numbers)}-{slug}"[:41].rstrip("-")


@pytest.fixture
def running(connection: Connection, job: str) -> Iterator[Running]:
    """A job with topics of its own, for the counting service."""
    with Running(connection, job) as running:
        yield running
