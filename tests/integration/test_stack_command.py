"""antdt stack on real processes: a worker that hangs in its data set, others that wait for it, servers, and silence."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_schemas.topics import STEPS
from antdt_streams.cli.main import main
from antdt_streams.kafka.reader import TopicReader, told
from antdt_streams.views.standings import standings
from click.testing import CliRunner

from tests.helpers.job_processes import JobProcesses, job_processes

pytestmark = [pytest.mark.kafka, pytest.mark.dear]
SERVICES = ("ledger", "controller")
POISONED = ("-m", "tests.helpers.poisoned")


def asked(run: JobProcesses, worker: str, *words: str) -> tuple[int, str]:
    """`antdt stack` of this worker: its exit status, and all that it says."""
    place = ["--bootstrap-servers", run.connection.bootstrap, "--data-dir", str(run.folder)]
    done = CliRunner().invoke(main, ["stack", run.job, worker, *words, *place])
    return done.exit_code, done.output


def found(run: JobProcesses, worker: str) -> dict[str, Any]:
    code, said = asked(run, worker, "--json")
    assert code == 0, said
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    return answer


def phases(run: JobProcesses) -> dict[str, tuple[str, float]]:
    """What each worker says it is at, and for how long."""
    said = standings(run.connection, run.job, None)
    return {name.partition(".")[0]: (one["phase"], one["phase_s"]) for name, one in said.items()}


def test_a_worker_that_hangs_in_user_code_and_one_in_a_collective_tell_their_stacks(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    poison = tmp_path / "poison.json"
    poison.write_text(json.dumps({"7": "gil"}))
    with job_processes(connection, job, tmp_path, services=SERVICES) as run:
        launcher = run.launch(2, "--poison", str(poison), script=POISONED)

        def hang() -> bool:
            time.sleep(0.2)  # each look is a client of its own
            said = phases(run)
            return sorted(phase for phase, s in said.values() if s > 1.0) == ["loading", "reducing"]

        run.until(hang, "nobody hangs")
        pids = dict(zip(("w0", "w1"), run.workers_of(launcher), strict=False))  # and who speaks for them
        at = {phase: worker for worker, (phase, _) in phases(run).items()}
        user, collective = found(run, at["loading"]), found(run, at["reducing"])
        for one, worker in ((user, at["loading"]), (collective, at["reducing"])):
            assert (one["worker"], one["pid"], one["problem"], one["cut_bytes"]) == (worker, pids[worker], "", 0)
            assert one["text"].startswith("MainThread\n  File ")
            assert "\n\nantdt-client\n  File " in one["text"]
        main_thread = user["text"].partition("\n\n")[0]
        assert "tests/helpers/poisoned.py" in main_thread.splitlines()[1] and "in __getitem__" in main_thread
        assert "antdt.launch" not in main_thread and "launcher.py" not in main_thread
        assert "strategies/allreduce/" in collective["text"].partition("\n\n")[0].splitlines()[1]
        assert collective["at"][0].startswith("reducing for ")
        assert collective["at"][1].startswith(f"waits for {at['loading']}, which is loading for ")
        assert run.workers_of(launcher)[:2] == list(pids.values()), "nobody was ended by it"
    with TopicReader(connection, job, STEPS) as reader:
        kinds = [told(STEPS, raw)["record"] for raw in reader.to_end()]
    assert len([one for one in kinds if "text" in one]) == 2, (
        "each answer is a record of the topic, and readable as one"
    )


def test_who_trains_is_not_disturbed_and_a_launcher_that_is_stopped_is_named(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    with job_processes(connection, job, tmp_path, services=("ledger", "monitor", "controller")) as run:
        launcher = run.launch(2, "--samples", "700", "--epochs", "4", "--delay-ms", "20")
        run.until_committed(5)
        before = run.workers_of(launcher)
        for _ in range(2):
            for worker in ("w0", "w1"):
                assert "antdt/examples/recorded.py" in found(run, worker)["text"]
        code, said = asked(run, "w1")
        assert code == 0 and said.startswith("w1.0.") and "\n\nMainThread\n  File " in said
        code, said = asked(run, "w9", "--timeout-s", "4")
        assert code == ExitCode.USAGE
        assert said.splitlines()[-1] == f"antdt: No worker or server 'w9' has joined job {job}. Who has: w0, w1."
        os.kill(launcher.pid, signal.SIGSTOP)
        code, said = asked(run, "w0", "--timeout-s", "4")
        os.kill(launcher.pid, signal.SIGCONT)
        assert code == ExitCode.RESTART_HERE
        assert "has not answered for 4 s: its process is stopped. w0 itself " in said.splitlines()[-1]
        assert f"Continue it by `kill -CONT {launcher.pid}`." in said
        assert run.workers_of(launcher)[:2] == before
        run.ended(launcher)
        assert run.judged()["exactly_once"]
        assert run.judged()["committed"] == 2800
        code, said = asked(run, "w0")
        assert code == ExitCode.RESTART_HERE
        assert "w0 is not there: its last life, w0.0." in said and ", has left, and no launcher answers for it." in said


def test_a_server_and_a_worker_that_is_stopped(connection: Connection, job: str, tmp_path: Path) -> None:
    with job_processes(connection, job, tmp_path, services=SERVICES) as run:
        options = ("--samples", "700", "--epochs", "40", "--delay-ms", "10", "--mode", "asp")
        launcher = run.launch(1, *options, launcher=("--servers", "1"))
        run.until_committed(5)
        server = found(run, "s0")
        assert (server["worker"], server["phase"]) == ("s0", "serving")
        assert "strategies/ps/" in server["text"].partition("\n\n")[0]
        worker = found(run, "w0")
        os.kill(worker["pid"], signal.SIGSTOP)
        code, said = asked(run, "w0")
        os.kill(worker["pid"], signal.SIGCONT)
        assert code == 1
        assert "There are no stacks of w0: its process is stopped (SIGSTOP, or a debugger)" in said
        launcher.kill()
