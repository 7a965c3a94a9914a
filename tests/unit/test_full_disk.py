"""A disk that takes nothing ends no training: it is said, tried again, and nothing half-written stays."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from antdt.files import checkpoint, model_files
from antdt.files.model_files import INIT_NAME, ModelFiles
from antdt.strategies.allreduce import AllReduceReplica
from antdt.worker.session import Session, Where
from antdt_schemas import records
from antdt_schemas.errors import Unavailable
from antdt_schemas.limits import INIT_FILE
from antdt_schemas.lineage import ROOT

from tests.helpers.allreduce import generation_of, mean_loss, replica, take
from tests.unit.test_session import GRANT, SPEC

LIMIT_BYTES = 2048


@contextmanager
def full_disk() -> Iterator[None]:
    """The system refuses to write more than a little into a file of this process, in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def session() -> Session:
    """The first member."""
    made = Session("w0", "w0.0", SPEC, Where("h", 1))
    made.on_reply(records.Reply("w0", "w0.0", -1, records.Status.OK, "", 1, 0, False, (), GRANT))
    return made


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFiles:
    monkeypatch.setattr(model_files, "RETRY_S", 0.001)
    found = ModelFiles(tmp_path, "job", replica())
    found.run_id = "run"
    return found


def step(member: AllReduceReplica) -> None:
    import torch

    x = torch.rand(4, 6, dtype=torch.float64)
    take(member, 4)
    member.backward(mean_loss(member, x, x[:, :3]), 4)
    member.step()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_write_that_fails_half_way_leaves_nothing_and_names_the_file(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(Unavailable, match=f"{tmp_path}/a.pt cannot be written: File too large"):
        checkpoint.write(tmp_path, "a.pt", lambda out: out.write(bytes(2 * LIMIT_BYTES)))
    assert names(tmp_path) == []


def test_what_a_dead_process_left_half_written_goes_away_with_the_next_write(tmp_path: Path) -> None:
    left = tmp_path / f".{checkpoint.file_name(3, 'w1.0.ab', 90)}.partial"
    left.write_bytes(b"half")
    (tmp_path / ".mine.partial").write_bytes(b"somebody else's")
    checkpoint.write(tmp_path, "a.pt", lambda out: out.write(b"x"))
    assert names(tmp_path) == [".mine.partial", "a.pt"]


def test_a_checkpoint_that_fails_is_owed_said_and_written_when_there_is_room(
    files: ModelFiles, session: Session, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session.files.kept_steps.append(20)
    with generation_of([files.strategy]):
        step(files.strategy)
        assert not files.owes
        with full_disk():
            assert files.write(session, []) is None
            assert files.owes
            assert files.written_step == -1
        assert names(tmp_path) == []
        (said,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
        assert f"The checkpoint {tmp_path}/run/step-000000001-g1-w0.0.pt cannot be written: File too large." in said
        assert "Training goes on; the last good checkpoint is that of step 20." in said
        event = files.write(session, [])
    assert event is not None
    assert (event.step, files.written_step, files.owes) == (1, 1, False)
    assert names(tmp_path) == [event.file]
    assert "checkpoints can be written again" in caplog.messages[-1]


def test_tries_come_ever_later_up_to_a_bound_and_each_is_said(
    files: ModelFiles, session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(model_files, "RETRY_S", 1.0)
    monkeypatch.setattr(model_files, "monotonic", lambda: now)
    pauses = []
    with generation_of([files.strategy]), full_disk():
        step(files.strategy)
        for _ in range(8):
            assert files.may_try
            assert files.write(session, []) is None
            before = now
            while not files.may_try:
                now += 0.5
            pauses.append(now - before)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert len(caplog.messages) == 8
    assert "Failing for 91 s, tried again in 30 s." in caplog.messages[-1]


def test_who_leaves_tries_for_a_while_and_then_leaves(
    files: ModelFiles, session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, slept = 100.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        slept.append(seconds)

    monkeypatch.setattr(model_files, "RETRY_S", 1.0)
    monkeypatch.setattr(model_files, "monotonic", lambda: now)
    monkeypatch.setattr(model_files, "sleep", sleep)
    with generation_of([files.strategy]), full_disk():
        step(files.strategy)
        assert files.write(session, [], patience_s=10.0) is None
    assert slept == [1, 2, 4], "the next one would be behind its patience"
    assert len(caplog.messages) == 4


def test_the_model_before_any_step_is_kept_until_it_is_a_file(files: ModelFiles, tmp_path: Path) -> None:
    grant = records.Grant("run", 1, GRANT.members, None, None, 0, INIT_FILE)
    with generation_of([files.strategy]):
        before = files.strategy.model.state_dict()["head.weight"].clone()
        with full_disk():
            files.restore(grant, 0)
            step(files.strategy)
            files.retry_init()
            assert names(tmp_path) == []
        assert files.strategy.step_number == 1
        # Everybody goes back to where it began, and there is no file yet.
        files.restore(grant, 0)
        assert (files.strategy.step_number, files.strategy.lineage) == (0, ROOT)
        assert files.strategy.model.state_dict()["head.weight"].equal(before)
        step(files.strategy)
        wait = files._init_trouble.next_s
        while model_files.monotonic() < wait:
            pass
        files.retry_init()
        assert names(tmp_path) == [INIT_NAME]
        files.restore(grant, 0)
        assert files.strategy.model.state_dict()["head.weight"].equal(before)


def test_a_folder_that_is_away_costs_no_pruning(files: ModelFiles) -> None:
    assert checkpoint.prune(files.folder / "gone", 3) == 0
