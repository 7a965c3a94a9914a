"""What torchrun says of a worker, and what is made of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from antdt.connect.settings import Settings
from antdt.host.torchrun import run_of
from antdt_schemas.connection import Connection

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "TORCHELASTIC_RESTART_COUNT": "2"}


def test_a_worker_is_named_by_its_rank_and_lives_as_often_as_torchrun_says() -> None:
    settings = Settings.of({**TORCHRUN, "ANTDT_JOB": "j", "TORCHELASTIC_RUN_ID": "abc"})
    assert (settings.worker, settings.rank, settings.world_size, settings.restarts) == ("w1", 1, 4, 2)
    assert settings.incarnation.startswith("w1.2.")
    assert settings.launch == "torchrun:abc"


def test_lives_of_one_run_are_of_one_launch_and_no_others_are() -> None:
    one = run_of({"TORCHELASTIC_RUN_ID": "none"})
    assert one == run_of({"TORCHELASTIC_RUN_ID": ""}), "the agent is the parent of both"
    assert f":{os.getppid()}:" in one
    assert one != run_of({"TORCHELASTIC_RUN_ID": "none"}, proc=Path("/nowhere"))
    assert run_of({"RANK": "0"}) == ""
    assert run_of({"TORCHELASTIC_RUN_ID": "a" * 500}) == "torchrun:" + "a" * 91


def test_what_our_launcher_says_goes_first() -> None:
    settings = Settings.of({**TORCHRUN, "ANTDT_JOB": "j", "ANTDT_LAUNCH": "mine", "TORCHELASTIC_RUN_ID": "abc"})
    assert settings.launch == "mine"


@pytest.mark.parametrize("under", ["HOME", "XDG_CONFIG_HOME"])
def test_a_broker_that_is_named_nowhere_else_is_that_of_the_user(tmp_path: Path, under: str) -> None:
    folder = tmp_path / ".config" if under == "HOME" else tmp_path
    (folder / "antdt").mkdir(parents=True)
    (folder / "antdt" / "client.properties").write_text("bootstrap.servers=kafka.example:9093\n")
    home = {under: str(tmp_path)}
    assert Connection.of(None, None, home).bootstrap == "kafka.example:9093"
    assert Connection.of("here:1", None, home).bootstrap == "here:1"
    named = {**home, "ANTDT_KAFKA_BOOTSTRAP_SERVERS": "there:2"}
    assert Connection.of(None, None, named).bootstrap == "there:2"
    assert Connection.of(None, None, {under: str(tmp_path / "nobody")}).bootstrap == "127.0.0.1:9092"
