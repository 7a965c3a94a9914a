"""The page about topics: its script trains."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.topic_memory import full

PAGE = Path(__file__).parents[2] / "docs" / "TOPICS.md"


def test_the_script_of_the_page_trains_on_what_the_topic_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ANTDT_") or name in ("RANK", "WORLD_SIZE")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("antdt.begun._in_a_job", [])
    memory = full(2, 300)
    for records in memory.records.values():
        for at in records:
            records[at] = json.dumps({"features": [at / 300, 1.0, 0.5], "clicked": float(at % 2)}).encode()
    asked: list[str] = []

    def kafka(name: str, _: object) -> Any:
        asked.append(name)
        return memory

    monkeypatch.setattr("antdt.reading.KafkaTopic", kafka)
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(script, str(PAGE), "exec"), names)
    # A step has what was read until then: a reader that is held up makes more of them, all of the same records.
    agent = names["agent"]
    assert asked == ["clicks"] and agent.step_number >= -(-600 // 256)
    assert agent._client._ledger.done == 600 and agent._session.finished
