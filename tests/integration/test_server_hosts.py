"""Workers and parameter servers on several hosts, which vanish, are cut off from each other, and disagree.

Hosts are network namespaces: what is cut drops packets without a word, as a network does and `kill -9` does not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from antdt_schemas import records
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_streams.chaos.judge import judge_log
from antdt_streams.cli.main import main
from antdt_streams.local.services import environment_of
from click.testing import CliRunner

from tests.helpers.hosts import NEEDS_HOSTS, Hosts, broker_of
from tests.helpers.job_processes import WITHIN_S, job_processes
from tests.helpers.server_hosts import PLACES, ServerHosts

pytestmark = [pytest.mark.kafka, pytest.mark.dear, NEEDS_HOSTS]
LONG = ("--samples", "600", "--epochs", "3", "--delay-ms", "12", "--checkpoint-every", "12", "--unreachable", "8")
CLICKS = "antdt.examples.clicks"


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(tuple(PLACES)) as made:
        yield made


@pytest.fixture(scope="module")
def far_broker(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    with broker_of(hosts, tmp_path_factory.mktemp("far")) as connection:
        yield connection


@pytest.fixture
def run(hosts: Hosts, far_broker: Connection, job: str, tmp_path: Path) -> Iterator[ServerHosts]:
    with job_processes(far_broker, job, tmp_path) as processes:
        yield ServerHosts(hosts, processes)


@pytest.mark.parametrize(("mode", "hostname"), [("bsp", ""), ("ssp", "the-same")])
def test_dense_parameters_and_rows_are_trained_over_a_network(run: ServerHosts, mode: str, hostname: str) -> None:
    """Also where all hosts have one name, as images of one machine do."""
    run.hostname = hostname
    run.launch_all("--mode", mode)
    run.ended()
    assert run.judged()["committed"] == 480


@pytest.mark.parametrize("mode", ["bsp", "asp"])
def test_the_records_of_a_topic_are_trained_over_a_network(run: ServerHosts, mode: str, tmp_path: Path) -> None:
    topic, result = f"{run.job.job}.clicks", tmp_path / "result.json"
    environ = environment_of(run.job.connection, run.job.place)
    written = [sys.executable, "-m", CLICKS, "--topic", topic, "--write", "3000"]
    subprocess.run(written, env={"PYTHONPATH": ":".join(sys.path), **environ}, timeout=60, check=True)
    run.script = "-m", CLICKS, "--topic", topic, "--mode", mode, "--epochs", "2", "--result", str(result)
    run.launch_all()
    run.ended()
    report, wrong = judge_log(run.job.entries())
    assert report["exactly_once"] and report["records"] == 6_000 and not wrong
    assert json.loads(result.read_text())["loss"] < 0.69, "guessing has 0.693"


@pytest.mark.parametrize("mode", ["bsp", "asp"])
def test_a_server_whose_host_has_vanished_is_started_elsewhere_and_comes_back_to_nothing(
    run: ServerHosts, mode: str
) -> None:
    options = (*LONG, "--mode", mode)
    run.launch_all(*options)
    run.job.until_committed(15)
    zombie = run.launches.pop("b")
    run.hosts.vanish("b")
    try:
        run.job.until(lambda: "s1 is not there" in run.said("d"), "nobody says which server is missing")
        stood = run.committed()
        run.launches["elsewhere"] = run.launch("d", PLACES["b"], *options)
        run.job.until_committed(stood + 10)
    finally:
        run.hosts.come_back("b")
    run.job.ended(zombie, ExitCode.NEVER_RETRY)
    run.ended()
    assert "s1 is run by" in run.said("b") and "which is alive" in run.said("b")
    assert run.judged()["committed"] == 1800
    assert run.joined()["s1"] == {run.hosts.addresses["b"], run.hosts.addresses["d"]}


@pytest.mark.parametrize(("host", "away_s"), [("d", 4.0), ("d", 15.0), ("d", 40.0), ("b", 4.0), ("a", 15.0)])
def test_hosts_that_vanish_for_a_while_come_back_and_nothing_is_lost_or_repeated(
    run: ServerHosts, host: str, away_s: float
) -> None:
    """With workers alone, a server alone, or the first server and a worker that reach each other meanwhile."""
    run.launch_all(*LONG, "--mode", "bsp")
    run.job.until_committed(15)
    begun = run.committed()
    run.hosts.vanish(host)
    try:
        run.pass_s(away_s)
        went_on = run.committed() > begun + 3
    finally:
        run.hosts.come_back(host)
    assert went_on == (host == "d" and away_s > 10), "without workers that are given up the others go on"
    run.ended()
    assert run.judged()["committed"] == 1800
    lost = {e.incarnation.partition(".")[0] for e in run.job.events() if isinstance(e, records.Lost)}
    assert lost >= ({"d": {"w1", "w2"}, "a": {"w0", "s0"}}[host] if away_s > 10 else set())


@pytest.mark.parametrize("mode", ["bsp", "asp"])
def test_a_worker_that_does_not_reach_one_server_for_a_while_says_so_and_comes_back(
    run: ServerHosts, mode: str
) -> None:
    run.launch_all(*LONG, "--mode", mode)
    run.job.until_committed(15)
    run.hosts.cut("d", "b")
    try:
        run.job.until(lambda: "w1 ended with status 75" in run.said("d"), "w1 waits for ever")
    finally:
        run.hosts.mend("d", "b")
    run.ended()
    assert run.judged()["committed"] == 1800
    where = f"server s1 at {run.hosts.addresses['b']}:"
    assert f"the connection to {where}" in run.said("d") and "ANTDT_ADVERTISE" in run.said("d")
    closed = [e.reason for e in run.job.events() if isinstance(e, records.Closed)]
    assert closed == ["s1 left"], "those who reach all servers were held up"


def test_a_worker_that_never_reaches_one_server_ends_its_launch_and_the_others_go_on(run: ServerHosts) -> None:
    run.launch_all(*LONG, "--mode", "bsp", launcher=("--max-restarts", "1"))
    run.job.until_committed(15)
    run.hosts.cut("d", "b")
    try:
        launch = run.launches.pop("d")
        run.job.ended(launch, ExitCode.RESTART_HERE)
        said = run.said("d")
        assert f"no connection to server s1 at {run.hosts.addresses['b']}:" in said
        run.ended()
    finally:
        run.hosts.mend("d", "b")
    assert run.judged()["committed"] == 1800


def test_servers_that_never_reach_each_other_end_the_job_and_name_the_one(run: ServerHosts) -> None:
    run.launch_all(*LONG, "--mode", "asp", "--join-timeout", "10", launcher=("--max-restarts", "1"))
    run.job.until_committed(15)
    run.hosts.cut("a", "b")
    try:
        run.ended(ExitCode.RESTART_HERE)
    finally:
        run.hosts.mend("a", "b")
    where = dict.fromkeys("b", f"server s0 at {run.hosts.addresses['a']}:")
    assert f"no connection to {where['b']}" in run.said("b"), "of one that was not made"
    assert "nothing has come of s1 at" in run.said("a")
    assert "start what is missing, there or on another machine" in run.said("d")


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("localhost", "advertises a loopback address: name one of its own in ANTDT_ADVERTISE"),
        ("no-such-host.invalid", "where this machine is reached is named by ANTDT_ADVERTISE"),
    ],
)
def test_a_server_that_advertises_what_nobody_else_reaches_is_named(run: ServerHosts, address: str, hint: str) -> None:
    run.launches["a"] = run.launch("a", PLACES["a"], *LONG, "--mode", "asp", ANTDT_ADVERTISE=address)
    run.launches["b"] = run.launch("b", PLACES["b"], *LONG, "--mode", "asp")
    run.launches["d"] = run.launch("d", PLACES["d"], *LONG, "--mode", "asp")
    run.job.until(lambda: "s1 ended with status 75" in run.said("b"), "s1 waits for ever")
    assert f"no connection to server s0 at {address}:" in run.said("b")
    assert hint in run.said("b")


@pytest.mark.parametrize(
    ("other", "what"),
    [(("--lr", "0.2"), "lr=0.05, found SGD, parameter group 1: lr=0.2"), (("--batch-size", "36"), "batch_size")],
)
def test_launches_that_disagree_are_refused(run: ServerHosts, other: tuple[str, ...], what: str) -> None:
    short = ("--samples", "480", "--join-timeout", "4")
    run.launches["a"] = run.launch("a", (*PLACES["a"], "--max-restarts", "0"), *short)
    run.launches["b"] = run.launch("b", (*PLACES["b"], "--max-restarts", "0"), *short, *other)
    run.launches["d"] = run.launch("d", (*PLACES["d"], "--max-restarts", "0"), *short)
    for launch in run.launches.values():
        run.job.until(lambda launch=launch: launch.poll() is not None, "it waits for ever")  # type: ignore[misc]
    codes = [launch.returncode for launch in run.launches.values()]
    assert ExitCode.NEVER_RETRY in codes and set(codes) <= {ExitCode.NEVER_RETRY, ExitCode.RESTART_HERE}
    assert any(what in run.said(host) for host in "ab")
    assert run.committed() == 0


def test_a_server_that_the_job_does_not_have_and_another_number_of_them_are_refused(run: ServerHosts) -> None:
    run.launches["a"] = run.launch("a", PLACES["a"], "--join-timeout", "4")
    run.job.until(lambda: run.job.state() is not None, "nobody has joined")
    more = run.launch("b", (*PLACES["b"], "--servers", "3"))
    run.job.ended(more, ExitCode.NEVER_RETRY)
    assert "strategy (the job has 'ps-bsp/servers=2', this worker 'ps-bsp/servers=3')" in run.said("b")
    run.job.ended(run.launch("b", (*PLACES["b"][:-1], "2")), ExitCode.USAGE)
    assert "--servers 2 are s0 to s1" in run.said("b")


def test_a_folder_of_checkpoints_that_hosts_do_not_share_is_found_before_anything_is_trained(run: ServerHosts) -> None:
    for host, place in PLACES.items():
        own = {"ANTDT_CHECKPOINTS": str(run.job.folder / host / "checkpoints")}
        run.launches[host] = run.launch(host, place, "--join-timeout", "4", **own)
    launches = [run.launches[host] for host in "ab"]
    run.job.until(lambda: all(one.poll() is not None for one in launches), "servers wait for ever")
    assert [one.returncode for one in launches] == [ExitCode.USAGE, ExitCode.NEVER_RETRY]
    for host in "ab":
        assert "The folder of checkpoints is not the same on all machines" in run.said(host)
    assert run.committed() == 0


def test_a_worker_that_does_not_see_the_files_of_the_servers_is_told_when_it_begins(run: ServerHosts) -> None:
    run.launches["a"] = run.launch("a", PLACES["a"], *LONG)
    run.launches["b"] = run.launch("b", PLACES["b"], *LONG)
    run.launch("d", PLACES["d"], *LONG, ANTDT_CHECKPOINTS=str(run.job.folder / "elsewhere"))
    run.job.until_committed(1)
    run.job.until(lambda: "this worker cannot load the final model" in run.said("d"), "nobody says so")
    run.ended()
    run.judged()


def test_a_server_of_another_host_is_started_again_as_ordered(
    hosts: Hosts, far_broker: Connection, job: str, tmp_path: Path
) -> None:
    services = ("ledger", "monitor", "controller")
    with job_processes(far_broker, job, tmp_path, services=services, policy="none") as processes:
        assert all(one.await_ready(WITHIN_S, threading.Event()) for one in processes.supervisors)
        run = ServerHosts(hosts, processes)
        run.launch_all(*LONG, "--mode", "bsp")
        processes.until_committed(15)
        place = ["--bootstrap-servers", far_broker.bootstrap, "--data-dir", str(tmp_path)]
        done = CliRunner().invoke(main, ["restart", job, "s1", "--reason", "its disk is new", *place])
        assert done.exit_code == 0, done.output
        run.ended()
        assert run.judged()["committed"] == 1800
    assert "s1 ended with status 143: it has left; started again as ordered (1)" in run.said("b")
    assert "s1 is back as" in done.output
