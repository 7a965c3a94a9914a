"""antdt policy against a real Controller: what is said is answered, in force, and shown."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from antdt_schemas.connection import Connection
from antdt_streams.cli.main import main
from click.testing import CliRunner

from tests.helpers.job_processes import WITHIN_S, job_processes

pytestmark = pytest.mark.kafka


def test_parameters_and_the_state_of_the_cluster_are_told_by_command(
    connection: Connection, job: str, tmp_path: Path
) -> None:
    def antdt(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["policy", *words, "--bootstrap-servers", connection.bootstrap])
        return done.exit_code, done.output

    with job_processes(connection, job, tmp_path, services=("controller",)) as run:
        assert all(one.await_ready(WITHIN_S, threading.Event()) for one in run.supervisors)
        code, said = antdt("set", job, "gain_min=0.08", "restart=off", "--reason", "too many plans")
        assert code == 0, said
        assert said.startswith("gain_min=0.08, restart=off, says ")
        assert said.endswith(": too many plans\n")
        code, said = antdt("set", job, "gain_mni=1")
        assert code != 0
        assert "antdt: The Controller refuses: Policy nd has no parameter 'gain_mni': take one of " in said
        code, said = antdt("busy", job, "--for-s", "60")
        assert code == 0, said
        assert said.startswith("the cluster is busy for 60 s, says ")
        code, said = antdt("show", job, "--json")
        assert code == 0, said
    found = json.loads(said)
    assert (found["policy"], found["parameters"]["gain_min"], found["parameters"]["restart"]) == ("nd", 0.08, False)
    assert found["effects"] == []
