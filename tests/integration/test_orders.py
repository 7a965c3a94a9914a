"""What people order of a Controller, on real processes: who is started again, and which policy decides."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_schemas.records import Action, Decision, Joined, Lost
from antdt_schemas.topics import DECISIONS
from antdt_streams.cli.main import main
from antdt_streams.kafka.reader import TopicReader, decoded
from antdt_streams.web.actions import Order, carry_out
from click.testing import CliRunner

from tests.helpers.job_processes import WITHIN_S, JobProcesses, job_processes

pytestmark = [pytest.mark.kafka, pytest.mark.dear]
SERVICES = ("ledger", "monitor", "controller")
WHY = ("--reason", "its disk is new")


def antdt(run: JobProcesses, *words: str) -> tuple[int, str]:
    """A command: its exit status, and all that it says."""
    place = ["--bootstrap-servers", run.connection.bootstrap, "--data-dir", str(run.folder)]
    done = CliRunner().invoke(main, [*words, *place])
    return done.exit_code, done.output


def ready(run: JobProcesses) -> JobProcesses:
    assert all(one.await_ready(WITHIN_S, threading.Event()) for one in run.supervisors)
    return run


def decided(run: JobProcesses) -> list[Decision]:
    with TopicReader(run.connection, run.job, DECISIONS) as reader:
        return [decision for _, decision in decoded(reader.to_end(), Decision)]


def lives_of(run: JobProcesses, worker: str) -> list[str]:
    return [e.incarnation for e in run.events() if isinstance(e, Joined) and e.worker == worker]


def kill_controller(run: JobProcesses, *, forgets: bool) -> None:
    service = run.supervisors[SERVICES.index("controller")].children["controller"].process
    assert service is not None
    service.kill()
    service.wait(5)
    if forgets:
        shutil.rmtree(run.place.service_folder(run.job, "controller"))


def test_a_worker_is_started_again_by_order_and_what_it_trained_is_trained_once(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path, services=SERVICES, policy="none") as run:
        launcher = ready(run).launch(2, "--samples", "700", "--epochs", "9", "--delay-ms", "10")
        run.until_committed(20)
        code, said = antdt(run, "restart", job, "w1", *WHY)
        assert code == 0, said
        first, second = lives_of(run, "w1")
        assert (
            f"{first} is to leave, and its launcher starts w1 again. " in said and said.count(": its disk is new") == 1
        )
        assert f"w1 is back as {second}, after " in said
        code, said = antdt(run, "restart", job, "w7", *WHY)
        assert (code, said.count("No worker or server 'w7' has joined job")) == (ExitCode.USAGE, 1)
        kill_controller(run, forgets=True)  # so it hears the order once more, and commands it once more
        run.until(lambda: f"{first} is not started again" in run.output.read_text(), "the order is not heard again")
        run.ended(launcher)
        report = run.judged()
        assert (report["exactly_once"], report["committed"]) == (True, 6300), report["verdict"]
        assert lives_of(run, "w1") == [first, second] and not [e for e in run.events() if isinstance(e, Lost)]
        code, said = antdt(run, "restart", job, "w1", *WHY)
        assert code != 0 and f"Job {job} is done: nobody of it is started again." in said
    ordered = [d for d in decided(run) if d.action is Action.KILL_RESTART]
    assert {(d.target, d.policy, d.cause, d.reason) for d in ordered} == {
        (first, "none", ordered[0].cause, f"{ordered[0].author} orders it: its disk is new")
    }
    heard = (
        f"{first} is told to leave, to be started again, as {ordered[0].author} (decision 0) orders: its disk is new"
    )
    assert heard in run.output.read_text()


def test_a_server_is_started_again_by_an_order_of_the_page(connection: Connection, job: str, tmp_path: Path) -> None:
    with job_processes(connection, job, tmp_path, services=SERVICES, policy="none") as run:
        size = ("--samples", "700", "--epochs", "8", "--delay-ms", "10", "--mode", "bsp")
        launcher = ready(run).launch(2, *size, launcher=("--servers", "1"))
        run.until_committed(20)
        given = {"worker": "s0", "who": "Ada", "reason": "its disk is new"}
        said = carry_out("restart", Order(run.connection, job, None, given))
        run.until(lambda: len(lives_of(run, "s0")) == 2, "s0 is not back")
        run.ended(launcher)
        report = run.judged()
        first, _ = lives_of(run, "s0")
    assert said.startswith(f"{first} is to leave, and its launcher starts s0 again. Ada by ")
    (ordered,) = [d for d in decided(run) if d.action is Action.KILL_RESTART]
    assert (ordered.target, ordered.author.partition(" by ")[0]) == (first, "Ada")
    assert (report["exactly_once"], report["committed"]) == (True, 5600), report["verdict"]


def test_another_policy_decides_from_the_order_on_also_in_the_controllers_next_life(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path, services=SERVICES, policy="even") as run:
        size = ("--samples", "480", "--epochs", "16", "--delay-ms", "4", "--slow", "w1:3:100000")
        launcher = ready(run).launch(2, *size, script=("-m", "tests.helpers.slow_at_first"))
        run.until_committed(40)
        assert not decided(run), "everybody takes as much, whoever is slow"
        code, said = antdt(run, "policy", "promote", job, "backup-drop", *WHY)
        assert code == ExitCode.USAGE and "backup-drop works under ps-bsp/drop only" in said
        code, said = antdt(run, "policy", "promote", job, "nd", "restart=off", "--reason", "w1 is slow")
        assert code == 0, said
        assert said.startswith("policy nd with restart=off decides from here on, in place of even, says ")
        run.until(lambda: any(d.action is Action.ADJUST_BS for d in decided(run)), "nobody takes less")
        kill_controller(run, forgets=False)
        code, said = antdt(run, "policy", "show", job, "--json")
        assert code == 0, said
        found = json.loads(said.splitlines()[-1])
        assert (found["policy"], found["parameters"]["restart"]) == ("nd", False)
        run.ended(launcher)
        report = run.judged()
    assert (report["exactly_once"], report["committed"]) == (True, 7680), report["verdict"]
    told = decided(run)
    promoted = next(n for n, d in enumerate(told) if d.author)
    assert {d.policy for d in told[:promoted]} <= {"even"} and {d.policy for d in told[promoted:]} == {"nd"}
    shares = {a.worker: a.batch_size for a in next(d for d in told if d.action is Action.ADJUST_BS).assignments}
    assert shares["w1"] < shares["w0"]
