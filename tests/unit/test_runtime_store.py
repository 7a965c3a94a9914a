"""Rows on the disk: atomic, bounded, and never mistaken for an empty folder when they cannot be read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from antdt_schemas.errors import Unavailable
from antdt_streams.storage.rocks import CorruptState, RowStore, open_or_rebuild
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROWS = {b"row/%05d" % i: bytes([i % 256]) * 200 for i in range(2000)}

Changes = dict[bytes, bytes | None]
keys = st.binary(min_size=1, max_size=3)
changes = st.dictionaries(keys, st.none() | st.binary(max_size=5), max_size=6)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A closed folder with ROWS in a table on the disk."""
    store = RowStore(tmp_path / "state")
    store.write(ROWS)
    store._db.flush()
    store.close()
    return tmp_path / "state"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(changes, max_size=6), prefix=st.binary(max_size=2))
def test_rows_are_what_was_written_last(
    tmp_path: Path, history: list[dict[bytes, bytes | None]], prefix: bytes
) -> None:
    folder = tmp_path / "state"
    shutil.rmtree(folder, ignore_errors=True)
    expected: dict[bytes, bytes] = {}
    for step in history:
        store = RowStore(folder)
        store.write(step)
        store.close()
        for key, row in step.items():
            expected.pop(key, None)
            if row is not None:
                expected[key] = row
    store = RowStore(folder)
    assert list(store.rows(prefix)) == sorted((k, v) for k, v in expected.items() if k.startswith(prefix))
    assert all(store.get(key) == row for key, row in expected.items())
    store.close()
    store.close()


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    store = RowStore(tmp_path)
    store.write({b"a": b"1"})
    program = "import sys; from pathlib import Path; from antdt_streams.storage.rocks import open_or_rebuild as o;"
    program += f" o(Path({str(tmp_path)!r}))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"{tmp_path} is in use by another process: a second service on the same folder." in other.stderr
    with pytest.raises(Unavailable, match="in use by another process"):
        RowStore(tmp_path)
    assert store.get(b"a") == b"1"
    store.close()
    RowStore(tmp_path).close()


def halved(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)


def gone(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


DAMAGE = [(damage, pattern) for damage in (halved, flipped, gone) for pattern in ("*.sst", "MANIFEST*", "CURRENT")]
# A MANIFEST that was cut reads as an older one, before these rows: an end of the history that is lost, as above.
DAMAGE.remove((halved, "MANIFEST*"))


@pytest.mark.parametrize(("damage", "pattern"), DAMAGE)
def test_damage_is_noticed_set_aside_and_rebuilt(
    full: Path, damage: Callable[[Path, str], None], pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(full, pattern)
    with pytest.raises(CorruptState, match=f"The state in {full} is damaged"):
        read_all(full)
    store = open_or_rebuild(full)
    assert list(store.rows()) == []
    store.write({b"a": b"1"})
    store.close()
    assert f"set aside as {full}.broken-1" in caplog.text
    damage(full, pattern)
    open_or_rebuild(full).close()
    assert full.with_name("state.broken-1").is_dir()


def read_all(folder: Path) -> dict[bytes, bytes]:
    store = RowStore(folder)
    try:
        return dict(store.rows())
    finally:
        store.close()


def test_a_good_folder_is_left_alone(full: Path) -> None:
    store = open_or_rebuild(full)
    assert dict(store.rows()) == ROWS
    store.close()
    assert [path.name for path in full.parent.iterdir()] == ["state"]


def test_an_empty_folder_is_a_new_one(tmp_path: Path) -> None:
    store = open_or_rebuild(tmp_path / "a" / "b")
    assert list(store.rows()) == []
    store.close()


def test_a_batch_cut_short_on_the_disk_is_not_there_at_all(tmp_path: Path) -> None:
    """A power cut may take the end of the write-ahead log: what stays is a history that was, whole batches only."""
    folder = tmp_path / "state"
    store = RowStore(folder)
    for number in range(20):
        store.write({b"row/%d" % (number % 3): b"%d" % number * 50, b"position": b"%d" % number})
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)  # as a killed process leaves it
    store.close()
    (wal,) = [path for path in copy.glob("*.log") if path.stat().st_size]
    size = wal.stat().st_size
    seen = set()
    for cut in range(0, size, 97):
        torn = tmp_path / f"torn-{cut}"
        shutil.copytree(copy, torn)
        (torn / wal.name).write_bytes(wal.read_bytes()[:cut])
        rows = read_all(torn)
        last = int(rows.get(b"position", b"-1"))
        seen.add(last)
        expected = {b"row/%d" % (n % 3): b"%d" % n * 50 for n in range(last + 1)}
        assert {k: v for k, v in rows.items() if k != b"position"} == expected
        shutil.rmtree(torn)
    assert len(seen) > 10
