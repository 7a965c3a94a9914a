"""Exported logs as files: whole or not at all, equal to the log, and every damage named."""

from __future__ import annotations

import json
from pathlib import Path

import avro.datafile
import avro.io
import pytest
from antdt_schemas import codec, container, lineage
from antdt_schemas.errors import LogTampered, UsageError

from tests.helpers.logs import entries, export, simulated


def test_a_file_holds_the_log_exactly(tmp_path: Path) -> None:
    log = simulated(7)
    header = export(tmp_path / "log.avro", log)
    rolling = lineage.ROOT
    for offset, payload in enumerate(log):
        rolling = lineage.chain(rolling, offset, payload)
    with container.LogFile(tmp_path / "log.avro") as file:
        assert list(file) == entries(log)
        assert file.header == header == container.Header("memory", "topic-1", len(log), rolling)


def test_the_reference_implementation_reads_it(tmp_path: Path) -> None:
    """Any Avro tool opens an exported log, and finds in it all that is needed to read the entries."""
    log = simulated(7)
    export(tmp_path / "log.avro", log)
    with (tmp_path / "log.avro").open("rb") as file, avro.datafile.DataFileReader(file, avro.io.DatumReader()) as found:
        assert [(r["offset"], r["payload"]) for r in found] == list(enumerate(log))
        schemas = json.loads(found.get_meta("antdt.schemas"))
    assert {payload[2:10].hex() for payload in log} <= set(schemas)
    for mark, schema in schemas.items():
        assert codec.schema_fingerprint(schema).hex() == mark


def test_blocks_are_bounded(tmp_path: Path) -> None:
    """A log of any length is written and read in portions."""
    once = list(simulated(7))
    log = once * (4 * container.BLOCK_BYTES // sum(map(len, once)) + 1)
    export(tmp_path / "log.avro", log)
    with container.LogFile(tmp_path / "log.avro") as file:
        sizes = [sum(len(entry.payload) for entry in block) for block in file.blocks()]
    assert len(sizes) > 3
    assert max(sizes) < 2 * container.BLOCK_BYTES


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.avro"
    export(path, simulated(7))
    before = path.read_bytes()
    twice = [entry for entry in entries(simulated(3)) for _ in range(2 if entry.offset == 5 else 1)]
    with pytest.raises(LogTampered, match="expected at least 6, found 5"):
        container.write(path, "memory", "topic-1", twice)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_holes_in_the_offsets_are_kept_and_any_portion_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "BLOCK_BYTES", 500)
    some = [entry._replace(offset=entry.offset + 3 * (entry.offset // 4)) for entry in entries(simulated(7))]
    path = tmp_path / "log.avro"
    header = container.write(path, "memory", "topic-1", some)
    assert (header.entries, header.next_offset) == (len(some), some[-1].offset + 1)
    with container.LogFile(path) as file:
        assert (file.header, list(file)) == (header, some)
        for start in range(some[-1].offset + 3):
            assert list(file.entries(start)) == [entry for entry in some if entry.offset >= start]
    data = path.read_bytes()
    path.write_bytes(data.replace(f"{header.holes:020d}".encode(), b"0" * 20))
    with container.LogFile(path) as file, pytest.raises(LogTampered, match="expected 4, found 7"):
        list(file)


def test_a_file_that_does_not_say_has_no_holes(tmp_path: Path) -> None:
    path = tmp_path / "log.avro"
    header = export(path, simulated(7))
    data = path.read_bytes()
    assert data.count(b"antdt.holes") == 1
    path.write_bytes(data.replace(b"antdt.holes", b"other.holes"))
    with container.LogFile(path) as file:
        assert file.header == header and len(list(file)) == header.entries


def test_every_cut_and_every_altered_byte_is_named(tmp_path: Path) -> None:
    """What the container itself lets pass, the rolling hash of its head does not."""
    path, damaged = tmp_path / "log.avro", tmp_path / "damaged.avro"
    log = simulated(7)
    header = export(path, log)
    data = path.read_bytes()
    start = len(data) - len(data.split(data[-container.SYNC_SIZE :], 1)[1])
    found = harmless = 0
    for at in range(start, len(data), 31):
        damaged.write_bytes(data[:at])
        with pytest.raises(LogTampered, match="from offset 0 on"):
            read(damaged)
        damaged.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            harmless += read(damaged) == header.head_hash
        except LogTampered as error:
            found += "offset" in str(error)
    assert found > 50 and found + harmless == len(range(start, len(data), 31))


def read(path: Path) -> bytes:
    """The rolling hash of what a file really holds."""
    rolling = lineage.ROOT
    with container.LogFile(path) as file:
        for offset, _, payload in file:
            rolling = lineage.chain(rolling, offset, payload)
        if rolling != file.header.head_hash:
            raise LogTampered("The rolling hash after the last offset", file.header.head_hash.hex(), rolling.hex())
    return rolling


@pytest.mark.parametrize(
    "data", [b"", b"Obj\x01", b"not a log" * 9, b"Obj\x01\x02\xff\xff\xff\xff\xff\xff\xff\xff\x7f"]
)
def test_what_is_no_log_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "log.avro"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="not a log of `antdt export`"):
        container.LogFile(path)
    with pytest.raises(UsageError, match="No such file"):
        container.LogFile(tmp_path / "missing.avro")


def test_a_block_cannot_make_the_reader_take_memory(tmp_path: Path) -> None:
    """Sizes are compared with their bound before anything is read."""
    path = tmp_path / "log.avro"
    export(path, simulated(7))
    data = path.read_bytes()
    start = data.index(data[-container.SYNC_SIZE :]) + container.SYNC_SIZE
    path.write_bytes(data[:start] + b"\x02" + b"\xfe\xff\xff\xff\xff\x7f" + data[start:])
    with container.LogFile(path) as file, pytest.raises(LogTampered, match="a block of 1 entries in"):
        list(file)
