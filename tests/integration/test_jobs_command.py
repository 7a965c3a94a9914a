"""antdt jobs, archive and delete on a real broker: a job that runs stays, one that does not leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode, UsageError
from antdt_schemas.topics import TOPICS
from antdt_streams.cli.main import main
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.reader import read_genesis
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.proof.source import open_topic
from antdt_streams.views import places
from antdt_streams.views.glance import View
from antdt_streams.views.job import status_of
from antdt_streams.web.live import Live
from click.testing import CliRunner

from tests.helpers.job_processes import job_processes

pytestmark = pytest.mark.kafka


def row_file(connection: Connection, job: str) -> str | None:
    """The final model, as the log names it."""
    found: str | None = status_of(connection, job)["file"]
    return found


def looked_at(connection: Connection, job: str, seen: dict[str, Any]) -> None:
    """The page says what `antdt top` does, and at each moment of the past what a replay comes to."""
    live = Live(connection, job)
    live.start()
    try:
        assert live.begun.wait(30) and live.top is not None and live.top.follow.current.wait(30)
        found = live.document(View(rows=10, lanes=True))
        assert {name: found[name] for name in seen if name != "last_entry_s"} | {"last_entry_s": 0} == seen | {
            "last_entry_s": 0,
            "workers": found["workers"],
        }
        assert [{**row, "lane": 0} for row in found["workers"]] == [{**row, "lane": 0} for row in seen["workers"]]
        assert all(len(row["lane"]) > 0 for row in found["workers"]) and found["pace"]["at_s"]
        with open_topic(connection, job) as log:
            entries = list(log)
        fold = Fold(cached=False)
        for offset, payload in entries:
            fold.read(offset, payload)
            if offset not in (2, seen["offset"] // 2, seen["offset"]):
                continue
            then = live.at(offset, View(rows=10, lanes=True))
            assert (then["live"], then["offset"], then["end"]) == (False, offset, seen["offset"])
            assert then["samples"] == places.samples(fold.state)
        assert then["workers"] == found["workers"] and then["decisions"] == found["decisions"]
        with pytest.raises(UsageError, match="has no entry at offset"):
            live.at(seen["offset"] + 1, View())
    finally:
        live.stop()


def test_a_job_is_listed_archived_and_deleted(connection: Connection, job: str, tmp_path: Path) -> None:
    def antdt(*words: str) -> tuple[int, str]:
        place = ["--bootstrap-servers", connection.bootstrap, "--data-dir", str(tmp_path)]
        done = CliRunner().invoke(main, [*words, *place])
        return done.exit_code, done.output

    with job_processes(connection, job, tmp_path, services=("ledger",)) as run:
        run.ended(run.launch(1))
        code, said = antdt("jobs", "--json")
        (row,) = [row for row in json.loads(said)["jobs"] if row["job"] == job]
        assert (code, row["state"], row["running"]) == (0, "done", ["ledger"])
        assert row["committed"] == row["samples_total"] > 0
        code, said = antdt("top", job, "--json")
        seen = json.loads(said)
        assert (code, seen["done"], seen["members"]) == (0, row_file(connection, job), 1)
        total, *parts = seen["samples"].values()
        assert (total, sum(parts)) == (row["samples_total"],) * 2
        assert [(one["worker"], one["own_ms"] > 0) for one in seen["workers"]] == [("w0", True)]
        code, said = antdt("top", job)
        assert code == 0 and said.startswith(f"{job}   step {row['step']}   done\n") and "in office: " in said, said
        looked_at(connection, job, seen)
        code, said = antdt("why", job, "w0")
        assert code == 0 and said.startswith("w0 is not known well enough yet.\n") and " compute " in said, said
        code, said = antdt("why", job, "w7")
        assert code == ExitCode.USAGE and said.endswith(f"in job {job}. What is known is of w0.\n"), said
        code, said = antdt("delete", job, "--yes")
        assert code == ExitCode.NEVER_RETRY
        assert said == f"antdt: Job {job} runs (ledger): end `antdt launch` and `antdt up` first.\n"
    genesis = read_genesis(connection, job)
    code, said = antdt("archive", job, str(tmp_path / "job.zip"))
    assert code == 0, said
    with zipfile.ZipFile(tmp_path / "job.zip") as archive:
        archive.extractall(tmp_path / "out")
    lines = (tmp_path / "out" / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    assert all("record" in json.loads(line) for line in lines) and lines
    checked = subprocess.run(
        [sys.executable, "-I", "verify_standalone.py", "shard-log.avro"],
        cwd=tmp_path / "out", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert genesis is not None
    assert json.loads(checked.stdout)["exactly_once"] and json.loads(checked.stdout)["run_id"] == genesis.run_id

    code, said = antdt("delete", job, "--yes")
    assert code == 0, said
    assert all(f"topic {topic.name(job)}, " in said for topic in TOPICS)
    assert job not in topics_admin.list_jobs(connection)
    assert topics_admin.groups(connection, job) == []
    assert not (tmp_path / "state" / job).exists()
    assert antdt("delete", job, "--yes")[0] == ExitCode.USAGE


def test_nobody_who_cannot_be_asked_deletes_a_job(connection: Connection, job: str, tmp_path: Path) -> None:
    """One that never ran: where a ledger was, it is looked twice whether it is there."""
    topics_admin.create(connection, job)
    place = ["--bootstrap-servers", connection.bootstrap, "--data-dir", str(tmp_path)]
    done = CliRunner().invoke(main, ["delete", job, *place])
    assert done.exit_code == ExitCode.USAGE
    first, *_, last = done.output.splitlines()
    assert (first, last) == (f"Of job {job} these go:", "antdt: Nobody can be asked here: say --yes.")
    assert job in topics_admin.list_jobs(connection)
