"""Taking over a model is announced: who loads a large one is no straggler, however many wait for it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from antdt.driving.membership import SLOW_BYTES_A_S, Membership
from antdt.files.model_files import ModelFiles
from antdt.files.no_files import NoFiles
from antdt.host import whereabouts
from antdt.host.whereabouts import At, Standing
from antdt.worker import instructions as ask
from antdt_schemas import records


def grant(file: str | None) -> records.Grant:
    return records.Grant("run", 1, (records.Member("s0.0", "s0", "h", 1),), None, None, 0, file)


class Strategy:
    """In place of one: knows what it was said to be at while it aligned."""

    size_bytes = 3 * 10**8
    standing = Standing()

    def align(self, grant: records.Grant, rank: int, files: Any) -> None:
        self.standing = whereabouts.mine().standing()


def aligned(files: ModelFiles | NoFiles, file: str | None) -> Standing:
    member = Membership.__new__(Membership)
    strategy: Any = Strategy()
    member.strategy, member.files, member.options = strategy, files, SimpleNamespace(shard_size=0)  # type: ignore[assignment]
    member.client = SimpleNamespace(session=SimpleNamespace(rank=0))  # type: ignore[assignment]
    files.run_id = "run"
    whereabouts.mine().enter(At.FORMING)
    member.perform(ask.Align(grant(file)))
    found: Standing = strategy.standing
    return found


def written(folder: Path, **sizes: int) -> ModelFiles:
    (folder / "run").mkdir()
    for name, size in sizes.items():
        with (folder / "run" / name.replace("_", ".").replace(" ", "-")).open("wb") as file:
            file.truncate(size)
    return ModelFiles(folder, "job", Strategy())  # type: ignore[arg-type]


@pytest.mark.parametrize(("file", "size_bytes"), [("a.pt", 5 * 10**9), ("init", 4 * 10**8), ("b.pt", 7 * 10**8)])
def test_a_model_that_is_loaded_takes_as_long_as_its_largest_file(tmp_path: Path, file: str, size_bytes: int) -> None:
    parts = {"b_pt": 100, "b part0of2_part": 7 * 10**8, "b part1of2_part": 6 * 10**8}
    files = written(tmp_path, a_pt=5 * 10**9, init_pt=4 * 10**8, **parts)
    found = aligned(files, file)
    assert (found.phase, found.detail) == ("forming", "takes over the model")
    assert found.allowed_s == size_bytes / SLOW_BYTES_A_S


@pytest.mark.parametrize("file", [None, "c.pt", "init"])
def test_one_that_others_hand_over_takes_as_long_as_it_is_large(tmp_path: Path, file: str | None) -> None:
    assert aligned(written(tmp_path), file).allowed_s == Strategy.size_bytes / SLOW_BYTES_A_S
    assert aligned(NoFiles(Strategy()), file).allowed_s == Strategy.size_bytes / SLOW_BYTES_A_S  # type: ignore[arg-type]


def test_a_folder_that_is_away_is_said_by_whoever_reads_it(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path / "nowhere", "job", Strategy())  # type: ignore[arg-type]
    assert files.size_bytes(grant("a.pt")) == 0
