"""Steps of a fixed size that are reported together have one lineage in the log: the last one's, which is of all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas import codec, lineage, records
from antdt_schemas.errors import LogTampered
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.proof.audit import audit

from tests.helpers import memory_ledger
from tests.helpers.ledger import Bench
from tests.helpers.logs import export
from tests.unit.test_ledger_steps import Steps
from tools import verify_standalone

PLACES = (0, 0, 8), (0, 8, 7), (0, 15, 7)


def reported(bench: Steps) -> list[records.Committed]:
    """The first epoch, in one request."""
    flat = tuple((bench.generation, 0, *place) for place in PLACES)
    after = lineage.ROOT
    for step, (generation, _, *place) in enumerate(flat, 1):
        after = lineage.next_lineage(after, step, (generation, *place))
    body = records.Commit(bench.generation, 1, flat, (0,) * len(flat), after, -1)
    assert bench.say("w0.0", body).status is records.Status.OK
    return [event for event in bench.events() if isinstance(event, records.Committed)]


def rewritten(bench: Bench, change: Any) -> list[bytes]:
    """The log, chained anew, with other events in its entries."""
    fold, log = Fold(), list[bytes]()
    for offset, payload in enumerate(bench.broker.log):
        body: Any = codec.decode(payload, records.Entry).body
        if isinstance(body, records.Cycle):
            assert fold.office is not None
            body = replace(body, epoch_hash=fold.office.hash, previous_hash=fold.position.hash)
            body = replace(body, events=tuple(change(event) for event in body.events))
        log.append(codec.encode(records.Entry(body)))
        try:
            fold.read(offset, log[-1])
        except LogTampered:
            break
    return log


def opinions(log: list[bytes], tmp_path: Path) -> tuple[Any, Any]:
    """Of the audit, and of the script that shares no code with it."""
    path = tmp_path / "log.avro"
    header = export(path, tuple(log))
    return audit(enumerate(log), {header.entries - 1: header.head_hash}), verify_standalone.verify(str(path))


def test_the_last_of_them_has_the_lineage_of_all(tmp_path: Path) -> None:
    bench = Steps()
    events = reported(bench)
    assert [bool(event.lineage) for event in events] == [False, False, True]
    assert events[-1].lineage == bench.state.line.lineage
    # A checkpoint may be of any of them: the ledger knows them all.
    after = lineage.next_lineage(lineage.ROOT, 1, (bench.generation, *PLACES[0]))
    assert bench.state.line.lineage_at(1) == after
    body = records.Checkpoint(bench.generation, 1, after, "step-1.pt", b"")
    assert bench.say("w0.0", body).status is records.Status.OK
    for opinion in opinions(bench.broker.log, tmp_path):
        assert (opinion["steps"], opinion["lineage"]) == (3, events[-1].lineage.hex())


@pytest.mark.parametrize("kept", [False, True])
def test_a_log_of_older_rules_has_that_of_each(kept: bool, tmp_path: Path) -> None:
    """Who leads a job of before writes as then; what a reader of then would refuse is refused of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_ledger, "FOLD_VERSION", 4)
        bench = Steps()
    events = reported(bench)
    assert all(event.lineage for event in events)

    def without(event: Any) -> Any:
        bare = isinstance(event, records.Committed) and event.step < 3 and not kept
        return replace(event, lineage=b"") if bare else event

    for opinion in opinions(rewritten(bench, without), tmp_path):
        assert (opinion["broken"] is None) is kept, opinion["broken"]


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("found", [b"", bytes(16)])
def test_what_it_has_must_be_right_and_the_last_has_one(step: int, found: bytes, tmp_path: Path) -> None:
    bench = Steps()
    reported(bench)

    def changed(event: Any) -> Any:
        hit = isinstance(event, records.Committed) and event.step == step
        return replace(event, lineage=found) if hit else event

    right = step == 1 and not found
    for opinion in opinions(rewritten(bench, changed), tmp_path):
        assert (opinion["broken"] is None) is right, opinion["broken"]
