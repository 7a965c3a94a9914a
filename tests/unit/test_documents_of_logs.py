"""What a log is exported as: in-toto statements and OpenLineage events, held against the log itself and its audit."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import records
from antdt_schemas.errors import LogTampered, UsageError
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.intervals import IntervalSet
from antdt_streams.proof import intoto, openlineage
from antdt_streams.proof.audit import audit
from antdt_streams.proof.chronicle import Kept, Told, tell
from antdt_streams.proof.source import open_file
from antdt_streams.proof.walker import Read, Walker, chunks

HISTORIES = sorted((Path(__file__).parents[1] / "replay" / "histories").glob("*.avro"))
WHOLE = [file for file in HISTORIES if "steps" not in file.stem]
# The published schemas: a checkout of github.com/OpenLineage/OpenLineage, its folder `spec`.
SPEC = os.environ.get("OPENLINEAGE_SPEC", "")


@cache
def told(file: Path) -> tuple[Told, str]:
    with open_file(file) as log:
        return tell(log.entries, log.anchors), log.topic_id


@cache
def statements(file: Path) -> list[dict[str, Any]]:
    return intoto.statements(*told(file), None)


@cache
def events(file: Path) -> list[dict[str, Any]]:
    return openlineage.events(*told(file), "here")


class Counted:
    """Another way to the same: which positions the steps up to each checkpoint took, from the events alone."""

    def __init__(self, file: Path) -> None:
        self.steps: dict[int, tuple[int, ...]] = {}
        self.files: dict[str, tuple[records.Checkpointed, set[tuple[int, int]], int]] = {}
        with open_file(file) as log:
            walker = Walker(Fold(cached=False), observers=[self])
            for chunk in chunks(log.entries):
                walker.read(chunk)

    def on_entry(self, read: Read) -> None:
        for event in read.events:
            if isinstance(event, records.Committed):
                self.steps[event.step] = event.ranges
            elif isinstance(event, records.RolledBack):
                self.steps = {step: ranges for step, ranges in self.steps.items() if step <= event.step}
                self.files = {name: one for name, one in self.files.items() if one[0].step <= event.step}
            elif isinstance(event, records.Checkpointed):
                taken = {place for step in range(1, event.step + 1) for place in places(self.steps[step])}
                self.files[event.file] = event, taken, read.offset


def places(ranges: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    for i in range(0, len(ranges), 4):
        _, epoch, start, length = ranges[i : i + 4]
        yield from ((epoch, start + k) for k in range(length))


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem)
def test_a_statement_has_the_files_digests_and_ranges_of_the_log(file: Path) -> None:
    found, counted = statements(file), Counted(file)
    assert [one["subject"][0]["name"] for one in found] == list(counted.files)
    for one in found:
        event, taken, offset = counted.files[one["subject"][0]["name"]]
        predicate = one["predicate"]
        ranges = predicate["samples"]["ranges"]
        assert {(epoch, at) for epoch, start, end in ranges for at in range(start, end)} == taken
        assert predicate["samples"]["count"] == len(taken)
        assert (predicate["step"], predicate["lineage"]) == (event.step, event.lineage.hex())
        assert predicate["log"]["offset"] == offset
        assert one["subject"][0]["digest"] == (
            {"blake2b_128": event.digest.hex()} if event.digest else {"antdt_lineage": event.lineage.hex()}
        )
        plain = json.dumps(ranges, separators=(",", ":")).encode()
        assert predicate["samples"]["rangesDigest"] == {"sha256": hashlib.sha256(plain).hexdigest()}


@pytest.mark.parametrize("file", HISTORIES, ids=lambda file: file.stem)
def test_a_statement_says_what_the_audit_says(file: Path) -> None:
    with open_file(file) as log:
        report = audit(log, log.anchors)
    found = statements(file)
    for one in found:
        assert one["_type"] == "https://in-toto.io/Statement/v1"
        assert one["predicateType"] == "https://antdt.dev/provenance/v1"
        predicate = one["predicate"]
        assert (predicate["job"], predicate["runId"]) == (report["job"], report["run_id"])
        assert predicate["log"]["headHash"] == report["head_hash"]
        assert predicate["audit"]["verdict"] == report["verdict"]
        kinds = {exception["kind"] for exception in predicate["exceptions"]}
        assert ("quarantined" in kinds) == bool(report["quarantined"])
        assert ("rolledBack" in kinds) == bool(report["rolled_back_steps"])
        assert ("voidEntries" in kinds) == bool(report["void_entries"])
    final = [one for one in found if one["predicate"]["final"]]
    assert len(final) == (report["file"] is not None)
    if final:
        assert final[0]["subject"][0]["name"] == report["file"]
        assert final[0]["predicate"]["samples"]["count"] == report["committed"]


def test_a_file_that_is_not_the_logs_is_refused(tmp_path: Path) -> None:
    model = b"a model"
    kept = Kept(3, bytes(16), "step-3.pt", hashlib.blake2b(model, digest_size=16).digest(), 9, bytes(16), 0, ())
    with pytest.raises(UsageError, match=r"cannot be read.*leave --checkpoints out"):
        intoto.digests(kept, tmp_path)
    (tmp_path / "step-3.pt").write_bytes(b"another model")
    with pytest.raises(LogTampered, match="The digest of"):
        intoto.digests(kept, tmp_path)
    (tmp_path / "step-3.pt").write_bytes(model)
    found = intoto.digests(kept, tmp_path)
    assert found == {"sha256": hashlib.sha256(model).hexdigest(), "blake2b_128": kept.digest.hex()}
    assert intoto.digests(kept, None) == {"blake2b_128": kept.digest.hex()}


def test_policies_are_counted_by_version() -> None:
    def decision(plan: int, version: int, action: records.Action = records.Action.ADJUST_BS) -> records.Decision:
        cause = records.Cause(0, plan, 0)
        return records.Decision(cause, plan, action, (), 1.0, 0, "", "nd", version, "why", 0.1, 0, 0)

    found = intoto.policies_of([decision(1, 1), decision(1, 1, records.Action.NONE), decision(2, 1), decision(3, 2)])
    assert found == [
        {"policy": "nd", "version": 1, "decisions": 2, "firstPlan": 1, "lastPlan": 2},
        {"policy": "nd", "version": 2, "decisions": 1, "firstPlan": 3, "lastPlan": 3},
    ]


@pytest.mark.parametrize("file", HISTORIES, ids=lambda file: file.stem)
def test_events_tell_the_run_from_its_start_to_its_end(file: Path) -> None:
    found, state = events(file), told(file)[0].account.fold.state
    runs: dict[str, list[str]] = {}
    for event in found:
        runs.setdefault(str(uuid.UUID(event["run"]["runId"])), []).append(event["eventType"])
    assert [event["eventTime"] for event in found] == sorted(event["eventTime"] for event in found)
    (job,) = {event["run"]["runId"] for event in found if "parent" not in event["run"]["facets"]}
    assert runs.pop(job)[0] == "START"
    for kinds in runs.values():
        assert kinds in (["START"], ["START", "COMPLETE"])
    assert state is not None
    done = [event for event in found if event["run"]["runId"] == job and event["eventType"] == "COMPLETE"]
    assert len(done) == (state.done is not None)
    outputs = [event["outputs"][0]["name"] for event in found if event["outputs"]]
    assert outputs == [f"{one['predicate']['job']}/{one['subject'][0]['name']}" for one in statements(file)]
    for event in found:
        for facets in facets_of(event):
            for facet in facets.values():
                assert facet["_producer"].startswith("https://") and facet["_schemaURL"].startswith("https://")
        if event["outputs"]:
            subset = event["inputs"][0]["inputFacets"]["subset"]["inputCondition"]["partitions"]
            rows = event["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"]
            assert sum(p["dimensions"]["end"] - p["dimensions"]["start"] for p in subset) == rows


def facets_of(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield event["run"]["facets"]
    yield event["job"]["facets"]
    for dataset in event["inputs"] + event["outputs"]:
        yield dataset["facets"]
        yield dataset.get("inputFacets", {})
        yield dataset.get("outputFacets", {})


@pytest.mark.skipif(not SPEC, reason="OPENLINEAGE_SPEC names no folder of the published schemas")
def test_events_meet_the_published_schemas() -> None:
    pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    from jsonschema import Draft202012Validator, FormatChecker
    from referencing import Registry, Resource

    files = [json.loads(file.read_text()) for file in Path(SPEC).rglob("*.json")]
    registry = Registry().with_resources([(one["$id"], Resource.from_contents(one)) for one in files if "$id" in one])
    event = Draft202012Validator({"$ref": openlineage.EVENT}, registry=registry, format_checker=FormatChecker())
    checked = set[str]()
    for file in HISTORIES:
        for one in events(file):
            event.validate(one)
            for facets in facets_of(one):
                for name, facet in facets.items():
                    if name in openlineage.FACETS:
                        url = facet["_schemaURL"]
                        Draft202012Validator({"$ref": url}, registry=registry).validate({name: facet})
                        checked.add(name)
    assert checked == set(openlineage.FACETS)


def test_a_log_that_breaks_is_exported_as_nothing() -> None:
    with open_file(HISTORIES[0]) as log:
        entries = [list(entry) for entry in log.entries]
    entries[len(entries) // 2][2] = entries[len(entries) // 2][2][:-1] + b"\xff"
    broken = tell([tuple(entry) for entry in entries])  # type: ignore[misc]
    for make in (lambda: intoto.statements(broken, "id", None), lambda: openlineage.events(broken, "id", "here")):
        with pytest.raises(LogTampered):
            make()


def test_intervals_of_a_checkpoint_are_those_of_the_state() -> None:
    """The chronicle takes them when they are recorded; later ones must not have moved them."""
    for file in WHOLE:
        found = told(file)[0]
        state = found.account.fold.state
        assert state is not None
        kept = {one.file: one.inside for one in found.chronicle.kept}
        for checkpoint in state.line.checkpoints:
            if checkpoint.file in kept:
                assert kept[checkpoint.file] == checkpoint.committed
        if found.account.coverage is not None and found.account.fold.state and state.done in kept:
            sets = {epoch: IntervalSet(parts) for epoch, parts in kept[state.done]}
            assert {e: tuple(s) for e, s in sets.items()} == {
                e: tuple(s) for e, s in found.account.coverage.committed.items() if s
            }
