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
from antdt.driving import blame
from antdt.host.child import die_with_parent
from antdt_schemas.connection import Connection
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests.helpers.running import Running
from tests.helpers.shared import BROKER, ENV_LEADER, Leader, SharedBroker, ask

settings.register_profile("antdt", deadline=None)
settings.load_profile("antdt")
_numbers = itertools.count(1)
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "t")  # of those that share the tests
LEADER = pytest.StashKey[Leader]()
# Whoever shares the tests takes them in order. Those of real processes wait most of the time, all others compute: side
# by side they keep the cores busy. And one of half a minute must not begin when all others have ended.
WAITS = "integration"
# How long one test takes, in seconds of a machine that has nothing else to do, by its name or by its file's: those that
# wait longer than WAITS_S, and those that compute longer than COMPUTES_S. It need not be exact.
WAITS_S, COMPUTES_S = 3.0, 0.03
SECONDS = {
    "test_a_seed_ends_by_itself_and_is_exact": 25.0,
    "test_a_short_demo_says_what_it_found_and_leaves_nothing_behind": 20.0,
    "test_the_commands_of_the_readme_with_its_loop": 20.0,
    "test_everybody_is_killed_another_number_of_workers_goes_on_and_is_rolled_back": 14.0,
    "test_who_is_told_to_go_finishes_its_step_and_when_all_are_nothing_has_to_be_done_again": 12.0,
    "test_workers_and_servers_are_killed_and_nothing_is_lost_or_repeated": 12.0,
    "test_who_leaves_the_loop_leaves_a_checkpoint_and_hangs_nobody": 12.0,
    "test_a_job_is_listed_archived_and_deleted": 12.0,  # early: it looks at all jobs that there are by then
    "test_a_second_launch_ends_at_once_and_one_that_takes_over_does_it_once": 12.0,
    "test_the_example_trains": 8.0,
    "test_every_step_under_a_plan_has_its_learning_rate_on_all_members_whoever_is_killed": 8.0,
    "test_a_run_goes_on_when_its_ledger_is_killed": 8.0,
    "test_only_what_no_worker_survives_is_missing_and_when_it_is_mended_nothing_is": 8.0,
    "test_a_flood_of_requests_leaves_the_process_as_large_as_it_was": 7.0,
    "test_monitor_and_controller_decide_the_same_whoever_is_killed": 7.0,
    "test_state_of_another_version_is_rebuilt_and_writes_nothing_again": 7.0,
    "test_nothing_is_lost_or_repeated_by_kills": 6.0,
    "test_whoever_runs_out_of_memory_goes_on_with_less_and_no_sample_is_blamed": 6.0,
    "test_a_stop_of_one_script_ends_all_at_one_step_with_a_checkpoint": 6.0,
    "test_scheduler_scaler_and_average_are_where_the_model_is": 6.0,
    "test_hosts": 6.0,
    "test_server_hosts": 20.0,
    "test_deaf": 5.0,
    "test_broker": 1.5,
    "test_allreduce_processes": 1.5,
    "test_every_sample_is_in_the_model_exactly_once": 14.0,
    "test_every_part_of_the_model_has_every_sample_exactly_once": 11.0,
    "test_every_step_is_what_it_must_be": 9.0,
    "test_verify_standalone": 1.0,
    "test_foreign": 0.7,
    "test_monitor_restart": 0.7,
    "test_large": 0.7,
    "test_parts": 0.4,
    "test_histories": 0.3,
    "test_environment": 0.2,
    "test_launch": 0.1,
    "test_habits": 0.1,
    "test_mutations": 0.1,
    "test_rows": 1.0,
    "test_tidy": 0.5,
}
# Of those that compute: others read the logs of its worlds, and would make them anew.
FIRST = "test_worlds"
# Files whose tests one worker takes: what they share is dear, a broker with other listeners, a wheel, parsed modules.
TOGETHER = ("test_credentials", "test_hosts", "test_server_hosts", "test_wheel", "test_tidy")
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


class Scheduling(LoadScopeScheduling):
    """In order, each test to whoever is free, but for files that stay together. The plugin's own way to say so, a mark,
    is lost on pytest 9.2: it changes names of tests that it does not have any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", maxsplit=1)[0]
        return path if Path(path).stem in TOGETHER else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling | None:
    """Where tests are shared at all, as `--dist load` does."""
    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False  # the order is that of `pytest_collection_modifyitems`
    return Scheduling(config, log)


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
    """Those that wait between those that compute, of each kind the longest first, but for the worlds. Tests of one file
    that compute follow each other, but for those of several seconds.
    """
    waiting = [[item] for item in items if WAITS in item.path.parts]
    others = [item for item in items if WAITS not in item.path.parts]
    computing = [list(some) for _, some in itertools.groupby(others, part_of)]
    places = [*spread(waiting), *spread(computing)]
    items[:] = [item for _, some in sorted(places, key=lambda place: place[0]) for item in some]


def takes_s(item: pytest.Item) -> float:
    """About how long."""
    usual = WAITS_S if WAITS in item.path.parts else COMPUTES_S
    return SECONDS.get(item.name.split("[")[0], SECONDS.get(item.path.stem, usual))


def part_of(item: pytest.Item) -> object:
    """What those that compute are taken in: files, which may share what is dear, and single ones that take long."""
    return item.path if takes_s(item) <= WAITS_S else item


def spread(parts: list[list[pytest.Item]]) -> list[Place]:
    """Each with its place between 0 and 1: the share of the time that has passed when it begins."""
    weighed = [(sum(map(takes_s, part)), part) for part in parts]
    weighed.sort(key=lambda one: (one[1][0].path.stem != FIRST, -one[0]))
    before = [0.0, *itertools.accumulate(seconds for seconds, _ in weighed)]
    return [(start / before[-1], part) for start, (_, part) in zip(before, weighed, strict=False)]


@pytest.fixture(autouse=True)
def _says_nothing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an Agent of this process says a second behind its loop is nothing that the next test has logged."""
    monkeypatch.setattr(blame, "UNHEARD_S", 1e6)


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
