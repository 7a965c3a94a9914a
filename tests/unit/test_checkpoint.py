"""Files of a model: whole or refused, and no more of them than can still be named."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
import torch
from antdt.files import checkpoint
from antdt.files.model_files import ModelFiles
from antdt.worker.session import Session, Where
from antdt_schemas import records
from antdt_schemas.errors import ForeignState, Mismatch, Unavailable

from tests.helpers.allreduce import generation_of, mean_loss, replica, take
from tests.unit.test_session import GRANT, SPEC

STATE = {"model": {"weight": torch.full((50,), 3.0)}}


def save(out: Any) -> None:
    torch.save(STATE, out)


def test_torch_reads_a_file_as_it_is_and_the_log_has_its_digest(tmp_path: Path) -> None:
    digest = checkpoint.write(tmp_path / "run", "a.pt", save)
    path = tmp_path / "run" / "a.pt"
    assert torch.equal(torch.load(path, weights_only=True)["model"]["weight"], STATE["model"]["weight"])
    assert digest == blake2b(path.read_bytes(), digest_size=16).digest()
    with checkpoint.read(tmp_path / "run", "a.pt", "job") as file:
        assert torch.equal(torch.load(file, weights_only=True)["model"]["weight"], STATE["model"]["weight"])
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]


def test_a_torn_or_damaged_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, "a.pt", save)
    whole = (tmp_path / "a.pt").read_bytes()
    bad = [
        whole[:size] for size in (0, 1, 23, 24, 25, len(whole) // 2, len(whole) - 25, len(whole) - 24, len(whole) - 1)
    ]
    places = 0, len(whole) // 2, len(whole) - 20, len(whole) - 1
    bad += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
    for data in [*bad, whole + b"x"]:
        (tmp_path / "a.pt").write_bytes(data)
        with pytest.raises(Mismatch, match=r"a\.pt.*antdt rollback job --step S"):
            checkpoint.read(tmp_path, "a.pt", "job")


def test_a_file_that_is_gone_is_not_answered_by_starting_afresh(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="ANTDT_CHECKPOINTS"):
        checkpoint.read(tmp_path, "a.pt", "job")


def test_a_disk_that_takes_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="cannot be written"):
        checkpoint.write(tmp_path / "file", "a.pt", save)


def test_files_that_no_event_can_name_any_more_are_removed(tmp_path: Path) -> None:
    names = [checkpoint.file_name(1, "w0.0.ab", step) for step in (3, 8, 12, 2_000_000_000)]
    for name in [*names, ".step-000000007-g1-w0.0.ab.pt.partial", "init.pt", "notes.txt"]:
        (tmp_path / name).write_text("x")
    assert checkpoint.prune(tmp_path, 12) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names[2:], "init.pt", "notes.txt"])


def test_a_file_of_another_step_run_job_or_name_is_not_loaded(tmp_path: Path) -> None:
    session, member = Session("w0", "w0.0", SPEC, Where("h", 1)), replica()
    session.on_reply(records.Reply("w0", "w0.0", -1, records.Status.OK, "", 1, 0, False, (), GRANT))
    files = ModelFiles(tmp_path, "job", member)
    files.run_id = "run"
    with generation_of([member]):
        take(member, 4)
        member.backward(mean_loss(member, torch.rand(4, 6, dtype=torch.float64), torch.rand(4, 3)), 4)
        member.step()
        event = files.write(session, [])
    assert event is not None
    kept = {name: value.clone() for name, value in member.model.state_dict().items()}
    put_there = checkpoint.file_name(2, "w0.0", 1)
    (files.folder / put_there).write_bytes((files.folder / event.file).read_bytes())
    grant = replace(GRANT, committed=1, restore_file=event.file)
    for what, job, wrong in (
        ("step", "job", replace(grant, committed=2)),
        ("file", "job", replace(grant, restore_file=put_there)),
        ("job", "another", grant),
    ):
        files.job = job
        with pytest.raises(ForeignState, match=f"The {what} of checkpoint .*Go back to another one"):
            files.restore(wrong, 0)
        assert all(torch.equal(value, kept[name]) for name, value in member.model.state_dict().items())
    files.job = "job"
    files.restore(grant, 0)
    assert (member.step_number, member.void) == (1, False)
    (tmp_path / "run").rename(tmp_path / "other")
    files.run_id = "other"
    with pytest.raises(ForeignState, match="The run of checkpoint"):
        files.restore(grant, 0)
