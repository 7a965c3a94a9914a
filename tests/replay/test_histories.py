"""Recorded histories reach the states they once led to, for ever. They are added, never edited."""

from __future__ import annotations

import json

import pytest

from tests.replay.make_histories import EXPECTED, FOLDER, STEPS, WANTED, expected_of
from tools import verify_standalone

KNOWN = json.loads(EXPECTED.read_text())


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_history_leads_to_the_state_it_once_led_to(name: str) -> None:
    path = FOLDER / f"{name}.avro"
    found = expected_of(path)
    assert found | {"fold_version": KNOWN[name]["fold_version"]} == KNOWN[name]
    report = verify_standalone.verify(str(path))
    assert report["broken"] is None and report["lineage"] == found["lineage"]


def test_every_history_has_its_digest_and_every_kind_its_history() -> None:
    assert {path.stem for path in FOLDER.glob("*.avro")} == set(KNOWN)
    assert {name.rsplit("-", 1)[0] for name in KNOWN} >= {*WANTED, *STEPS}
    assert any(k["rolled_back_steps"] for k in KNOWN.values())
    assert any(k["quarantined"] for k in KNOWN.values())
    assert any(k["void_entries"] for k in KNOWN.values())
