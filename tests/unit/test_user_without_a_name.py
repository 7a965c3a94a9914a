"""Containers run under user ids that have neither a name nor a home."""

from __future__ import annotations

import getpass
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas.errors import UsageError
from antdt_schemas.launch_locks import process_name
from antdt_streams.broker import jars


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment says who this is, and the system has no entry."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("nameless")
def test_a_ledger_names_its_owner_by_number() -> None:
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    assert process_name().startswith(f"uid{os.getuid()}@")
    assert process_name().endswith(f":{os.getpid()}")


@pytest.mark.usefixtures("nameless")
def test_a_broker_keeps_its_jars_in_a_folder_of_this_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jars.tempfile, "gettempdir", lambda: str(tmp_path))
    own = tmp_path / f"antdt-{os.getuid()}"
    assert jars.cache_folder({}) == own
    assert own.stat().st_mode & 0o777 == 0o700
    assert jars.cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/antdt")
    home = tmp_path / "home"
    home.mkdir()
    assert jars.cache_folder({"HOME": str(home)}) == home / ".cache" / "antdt"
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(home)))
    assert jars.cache_folder({"HOME": str(home)}) == own, "what cannot be written is passed over"
    (home / ".cache" / "antdt" / f"kafka-{jars.KAFKA_VERSION}").mkdir(parents=True)
    assert jars.cache_folder({"HOME": str(home)}) == home / ".cache" / "antdt", "unless it has the jars"
    monkeypatch.setattr(os, "getuid", lambda: -1)
    (tmp_path / "antdt--1").mkdir()
    with pytest.raises(UsageError, match="belongs to somebody else"):
        jars.cache_folder({})
