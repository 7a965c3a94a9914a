"""What is kept of a format by Kafka's tool, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from antdt_streams.broker.storage import FEATURES, META, copy_format, is_formatted, keep_format


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """With what the tool has written once."""
    written, cache = tmp_path / "written" / FEATURES, tmp_path / "cache"
    written.parent.mkdir(parents=True)
    written.write_bytes(b"features")
    cache.mkdir()
    keep_format(tmp_path / "written", cache)
    return cache


def ids(data: Path) -> dict[str, str]:
    return dict(line.split("=") for line in (data / META).read_text().splitlines())


def test_a_copy_has_the_features_and_ids_of_its_own(cache: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    assert [copy_format(data, cache) for data in folders] == [True, True]
    assert [(data / FEATURES).read_bytes() for data in folders] == [b"features"] * 2
    one, two = map(ids, folders)
    assert (one["version"], one["node.id"]) == (two["version"], two["node.id"]) == ("1", "1")
    assert len({one["cluster.id"], one["directory.id"], two["cluster.id"], two["directory.id"]}) == 4
    assert all(map(is_formatted, folders))


def test_what_is_damaged_is_not_copied(cache: Path, tmp_path: Path) -> None:
    (kept,) = cache.iterdir()
    kept.write_bytes(b"feature")
    assert not copy_format(tmp_path / "data", cache)
    assert not is_formatted(tmp_path / "data")


def test_a_cache_that_cannot_be_written_is_no_obstacle(cache: Path, tmp_path: Path) -> None:
    keep_format(tmp_path / "written", tmp_path / "nowhere")
    keep_format(tmp_path / "nothing", cache)
    assert not copy_format(tmp_path / "data", tmp_path / "nowhere")
    assert len(list(cache.iterdir())) == 1
