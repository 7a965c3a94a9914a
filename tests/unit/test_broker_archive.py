"""The archive of the broker's classes: made once, never half, never in the way. A shell script stands in for Java."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from antdt_schemas.errors import Unavailable
from antdt_streams.broker.archive import KEPT, PREFIX, sharing_flags

FLAGS = ["-cp", "jars/*"]
JAVA = """#!/bin/sh
echo "$@" >> {log}
for option; do case "$option" in -XX:SharedArchiveFile=*) file="${{option#*=}}";; -Xshare:dump) dump=1;; esac; done
[ -z "$dump" ] || printf classes > "$file"
exit {code}
"""


class Place:
    """A cache folder with jars, and a Java that notes what it is asked."""

    def __init__(self, folder: Path, code: int = 0) -> None:
        self.jars, self.log, self.java = folder / "kafka-4.4.0", folder / "log", folder / "jre" / "bin" / "java"
        self.recorded: list[str] = []
        self.jars.mkdir(parents=True)
        (self.jars / "kafka.jar").write_text("jar")
        self.java.parent.mkdir(parents=True)
        self.java.write_text(JAVA.format(log=self.log, code=code))
        self.java.chmod(0o755)

    def record(self, flag: str, folder: Path) -> None:
        self.recorded.append(flag)
        folder.mkdir()

    def flags(self) -> tuple[str, ...]:
        return sharing_flags(self.java, self.jars, FLAGS, self.record)

    def archives(self) -> list[Path]:
        return sorted(self.jars.parent.glob(f"{PREFIX}*"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_it_is_made_once_and_lies_beside_the_jars(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    flags = place.flags()
    (archive,) = place.archives()
    assert flags == (f"-XX:SharedArchiveFile={archive}", "-Xshare:auto", "-XX:+VerifySharedSpaces")
    assert archive.read_text() == "classes"
    assert "Preparing Apache Kafka" in capsys.readouterr().err
    asked = place.log.read_text().splitlines()
    assert ["-Xshare:dump" in asked[0], "-Xshare:on -version" in asked[1]] == [True, True]
    assert place.flags() == flags
    assert len(place.recorded) == 1
    assert len(place.log.read_text().splitlines()) == 2
    assert sorted(p.name for p in place.jars.parent.iterdir() if p.is_dir()) == ["jre", "kafka-4.4.0"], (
        "a scratch stays"
    )


def test_other_jars_or_another_java_have_one_of_their_own(place: Place) -> None:
    first = place.flags()
    (place.jars / "kafka.jar").write_text("another jar")
    second = place.flags()
    place.java.write_text(place.java.read_text() + "\n")
    assert len({first, second, place.flags()}) == 3


def test_what_was_cut_is_made_again(place: Place) -> None:
    flags = place.flags()
    place.archives()[0].write_text("clas")
    assert place.flags() == flags
    assert place.archives()[0].read_text() == "classes"


def test_a_java_that_makes_none_is_asked_once(tmp_path: Path) -> None:
    place = Place(tmp_path, code=1)
    assert place.flags() == ()
    assert [file.stat().st_size for file in place.archives()] == [0]
    assert place.flags() == ()
    assert len(place.recorded) == 1


def test_a_broker_that_does_not_start_prevents_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(flag: str, folder: Path) -> None:
        raise Unavailable("no")

    monkeypatch.setattr(place, "record", fails)
    assert place.flags() == ()


def test_ctrl_c_while_it_is_made_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(flag: str, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, "record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            place.flags()
    assert place.archives() == list(place.jars.parent.glob("archive.*")) == []
    assert place.flags()


def test_a_folder_that_cannot_be_written_prevents_nothing(place: Place) -> None:
    (place.jars.parent / ".archive.lock").mkdir()  # root may write everywhere: a folder where the file should be
    assert place.flags() == ()
    assert place.recorded == []


def test_nobody_waits_for_somebody_else_who_makes_it(place: Place) -> None:
    with (place.jars.parent / ".archive.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert place.flags() == ()
    assert place.flags()


def test_what_the_killed_and_the_outdated_left_goes(place: Place) -> None:
    leftover = place.jars.parent / "archive.killed"
    leftover.mkdir()
    old = [place.jars.parent / f"{PREFIX}{number}-1.jsa" for number in range(KEPT + 2)]
    for age, file in enumerate(old):
        file.write_text("x")
        os.utime(file, (1_000_000 - age, 1_000_000 - age))
    place.flags()
    assert not leftover.exists()
    assert [file.exists() for file in old] == [True] * KEPT + [False] * 2
