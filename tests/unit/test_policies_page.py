"""docs/POLICIES.md: its example is a policy that works, and its table names every ready one."""

from __future__ import annotations

import re
from pathlib import Path

from antdt_schemas.records import Action
from antdt_streams.controller.core.state import ControllerState
from antdt_streams.policies import parameters
from antdt_streams.policies.find import READY, find

from tests.replay.control_loop import Loop

PAGE = (Path(__file__).parents[2] / "docs" / "POLICIES.md").read_text(encoding="utf-8")


def test_the_example_is_found_in_its_file_and_does_what_it_says(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "mine.py"
    file.write_text(code)
    policy = find(f"{file}:MyPolicy")
    loop = Loop.of(lambda worker, now_s: 3.0 if worker == 1 and now_s > 2.0 else 1.0)
    loop.controller = ControllerState(parameters.changed(policy, {"share": "0.25"}))
    loop.run(200)
    (found,) = [decision for _, decision in loop.decisions]
    assert (found.policy, found.action, found.parameters) == ("mine", Action.ADJUST_BS, '{"share":0.25}')
    assert sorted(a.batch_size for a in found.assignments) == [8, 32, 32, 56]
    assert [d.effect.predicted_gain for _, d in loop.said if d.effect is not None] == [0.0], "and it is measured"


def test_the_table_names_every_ready_policy() -> None:
    named = re.findall(r"^\| `([-a-z]+)`", PAGE, re.MULTILINE)
    assert sorted(named) == sorted(READY)
