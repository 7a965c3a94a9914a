"""Metrics of real processes: what they serve while they train is what dashboards and alerts ask for."""

from __future__ import annotations

import re
import threading
import urllib.request
from pathlib import Path

import pytest
from antdt_schemas.connection import Connection
from antdt_streams.local.services import SERVICES, start_services
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.figures import served
from tests.helpers.job_processes import WITHIN_S, job_processes
from tests.helpers.warm import started

pytestmark = [pytest.mark.kafka, pytest.mark.dear]
AT = re.compile(r"event=metrics at=(\S+)")
FREE = ("--metrics-port", "0")
# Of whatever has not happened in this job: nobody has died.
LATER = {"antdt_worker_exits_total"}


def scraped(log: Path) -> list[tuple[str, dict[str, str], float]]:
    """What the process of this log serves now."""
    address = AT.findall(log.read_text())[-1]
    with urllib.request.urlopen(address, timeout=5) as answer:
        text = answer.read().decode()
    return [(s.name, s.labels, s.value) for family in text_string_to_metric_families(text) for s in family.samples]


def test_real_processes_serve_what_dashboards_ask_for(connection: Connection, job: str, tmp_path: Path) -> None:
    with job_processes(connection, job, tmp_path, services=()) as run:
        extra = dict.fromkeys(SERVICES, FREE)
        supervisor = start_services(job, run.place, connection, SERVICES, None, extra, started)
        run.supervisors.append(supervisor)
        assert supervisor.await_ready(WITHIN_S, threading.Event())
        launcher = run.launch(2, "--samples", "600", "--epochs", "3", "--delay-ms", "20", launcher=FREE)
        logs = [*(tmp_path / "logs" / job / f"{name}.log" for name in SERVICES), run.output]
        run.until_committed(20)

        def values(name: str) -> list[float]:
            return [value for log in logs for found, _, value in scraped(log) if found == name]

        run.until(lambda: values("antdt_window") > [0], "the Monitor has measured nothing")
        run.until(lambda: values("antdt_launch_step") > [0], "the launch tells nothing")
        found = {name: labels for log in logs for name, labels, _ in scraped(log)}
        wanted = {name for name in served() if name.startswith("antdt_") and not name.endswith("_created")}
        assert wanted - found.keys() <= LATER
        assert {labels["antdt_job"] for name, labels in found.items() if name.startswith("antdt_")} == {job}
        assert values("antdt_leader") == [1, 1, 1]
        assert sum(values("antdt_samples")) == 1800
        run.ended(launcher)
        run.until(lambda: values_of(logs[0], "antdt_job_done") == [1], "the ledger does not say that the job is done")
        assert run.judged()["committed"] == 1800


def values_of(log: Path, name: str) -> list[float]:
    return [value for found, _, value in scraped(log) if found == name]
