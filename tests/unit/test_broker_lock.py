"""Who has the folder of a broker, told to whoever comes too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from antdt_schemas.data_folder import LOCK, PORTS, running, try_lock
from antdt_schemas.errors import UsageError
from antdt_streams.broker import EmbeddedBroker
from antdt_streams.host import locks


def test_a_broker_that_is_only_being_started_is_told_by_who_starts_it(tmp_path: Path) -> None:
    handle = try_lock(tmp_path / LOCK)
    assert handle is not None
    os.write(handle, b"4711\n")
    (tmp_path / PORTS).write_text('{"broker": 9, "controller": 8}')  # of one that ran before
    with pytest.raises(UsageError, match=rf"is being started on {tmp_path} by another process \(4711\): wait until"):
        EmbeddedBroker(tmp_path).start()
    (tmp_path / "broker.pid").write_text("42\n")
    with pytest.raises(UsageError, match=r"already runs on .* \(process 42\): use it at 127.0.0.1:9,"):
        EmbeddedBroker(tmp_path).start()
    os.close(handle)


def test_whoever_looks_is_no_broker_to_others_who_look(tmp_path: Path) -> None:
    (tmp_path / PORTS).write_text('{"broker": 9, "controller": 8}')
    looks = try_lock(tmp_path / LOCK, shared=True)
    assert looks is not None
    assert running(tmp_path) is None
    assert try_lock(tmp_path / LOCK) is None
    os.close(looks)
    starts = try_lock(tmp_path / LOCK)
    assert starts is not None
    assert running(tmp_path) == "127.0.0.1:9"
    os.close(starts)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/x cannot be written: .* Name another data folder"):
        locks.acquire(tmp_path / "file" / "x" / "users")


def test_locks_are_shared_or_alone_and_name_who_is_alone(tmp_path: Path) -> None:
    file = tmp_path / "a" / "users"
    one, two = locks.acquire(file, shared=True), locks.acquire(file, shared=True)
    assert one is not None
    assert two is not None
    assert locks.acquire(file) is None
    assert locks.holder(file) is None
    os.close(one)
    assert locks.convert(two, shared=False)
    assert locks.holder(file) == os.getpid()
    assert locks.acquire(file, shared=True) is None
    os.close(two)
