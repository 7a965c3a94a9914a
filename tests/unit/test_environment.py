"""What a worker finds in its environment: its place by our names, and by torchrun's only where they were asked for."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from antdt.connect.settings import Settings
from antdt.launch.environment import TORCH, Meeting, Where, hint_of, meeting, of_worker, torch_of_launch
from antdt_schemas.errors import UsageError

from tests.helpers.warm import python

WHERE = Where(rank=5, world=6, local_rank=2, here=3, node=1)
OWN = {"ANTDT_WORKER": "w5", "ANTDT_JOB": "j"}
CLUSTER = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "head", "MASTER_PORT": "23456", "HOME": "/h"}
GROUP = {
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR",
    "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS",
}  # fmt: skip


def test_without_being_asked_for_them_no_worker_has_torchs_names() -> None:
    found = of_worker(CLUSTER, OWN, WHERE, 1, None)
    assert not set(TORCH) & set(found)
    assert found["HOME"] == "/h" and found["ANTDT_WORKER"] == "w5"
    assert {key: found[key] for key in ("ANTDT_RANK", "ANTDT_LOCAL_RANK", "ANTDT_WORLD_SIZE", "ANTDT_RESTARTS")} == {
        "ANTDT_RANK": "5", "ANTDT_LOCAL_RANK": "2", "ANTDT_WORLD_SIZE": "6", "ANTDT_RESTARTS": "1",
    }  # fmt: skip
    settings = Settings.of(found)
    assert (settings.rank, settings.world_size, settings.restarts, settings.worker) == (5, 6, 1, "w5")


def test_asked_for_all_of_them_are_there() -> None:
    torch = torch_of_launch(Meeting("head", "7"), "run", 3)
    found = of_worker(CLUSTER, OWN, WHERE, 1, torch)
    assert set(TORCH) >= GROUP and set(TORCH) <= set(found)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("5", "6", "2", "3")
    assert (found["GROUP_RANK"], found["GROUP_WORLD_SIZE"]) == ("1", "2")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("head", "7")
    assert Settings.of(found).rank == 5


def test_torchruns_own_names_are_enough() -> None:
    found = Settings.of({"ANTDT_JOB": "j", "RANK": "2", "WORLD_SIZE": "4", "TORCHELASTIC_RESTART_COUNT": "1"})
    assert (found.worker, found.rank, found.world_size, found.restarts) == ("w2", 2, 4, 1)
    with pytest.raises(UsageError, match="ANTDT_RANK='x' is not a number"):
        Settings.of({"ANTDT_JOB": "j", "ANTDT_RANK": "x", "RANK": "2"})


def test_where_groups_meet() -> None:
    here = meeting({}, 4, 4)
    assert here.host == "127.0.0.1" and 0 < int(here.port) < 65536
    assert meeting(CLUSTER, 2, 4) == Meeting("head", "23456")
    assert meeting(CLUSTER | {"PET_MASTER_ADDR": "other", "PET_MASTER_PORT": "9"}, 2, 4) == Meeting("other", "9")
    with pytest.raises(UsageError, match=r"--torch-env: 2 of 4 workers are on other machines: set MASTER_ADDR"):
        meeting({"MASTER_ADDR": "head"}, 2, 4)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (KeyError("RANK"), "RANK"),
        (KeyError("LOCAL_RANK"), "LOCAL_RANK"),
        (ValueError("rendezvous: environment variable WORLD_SIZE expected, but not set"), "WORLD_SIZE"),
        (KeyError("HOME"), ""),
        (KeyError(), ""),
        (ValueError("RANK is wrong"), ""),
        (RuntimeError("RANK"), ""),
    ],
)
def test_a_script_that_misses_them_is_told_how_to_get_them(error: Exception, name: str) -> None:
    said = hint_of(error, {})
    assert said.startswith(f"{name} is set by `antdt launch --torch-env` only") if name else not said
    assert not hint_of(error, {name: "0"})


@pytest.mark.kafka
def test_a_group_of_the_scripts_own_forms(tmp_path: Path) -> None:
    torch = torch_of_launch(meeting({}, 2, 2), "run", 3)
    script = (
        "import torch, torch.distributed as d; d.init_process_group('gloo'); t = torch.ones(1) * (1 + d.get_rank()); "
        "d.all_reduce(t); print(int(t), d.get_world_size(), flush=True); d.destroy_process_group()"
    )

    def member(rank: int) -> subprocess.CompletedProcess[str]:
        (folder := tmp_path / str(rank)).mkdir()
        environ = of_worker({"PATH": "/usr/bin:/bin"}, {}, Where(rank, 2, rank, 2, 0), 0, torch)
        return python(script, folder=folder, environ=environ)

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(member, range(2)))
    assert [one.stdout.split() for one in done] == [["3", "2"]] * 2, [one.stderr for one in done]
