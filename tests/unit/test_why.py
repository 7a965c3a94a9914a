"""antdt why: the words for what was measured and decided, from records as they lie in the topics."""

from __future__ import annotations

from dataclasses import replace

import pytest
from antdt_schemas import records
from antdt_schemas.records import Action, Assignment, Cause, Decision, Effect, NodeClass, NodeMeasurement, Verdict
from antdt_schemas.topics import STEPS as STEPS_TOPIC
from antdt_streams.views.control import Control
from antdt_streams.views.why import steps_of, why

CAUSE = Cause(0, 9, 0)


def node(worker: str, ms: float, kind: NodeClass = NodeClass.HEALTHY) -> NodeMeasurement:
    return NodeMeasurement(worker, f"{worker}.0.x", "worker", kind, 0.0, ms / 1e3, 0.05, 0.0, 12, 6, 0)


def batch(worker: str, compute_ms: float, steps: int = 3) -> records.StepBatch:
    columns = {
        "data_s": (0.001,) * steps, "compute_s": (compute_ms / 1e3,) * steps,
        "communication_s": (0.002,) * steps, "wait_s": (0.01,) * steps,
    }  # fmt: skip
    numbers = tuple(range(1, steps + 1))
    return records.StepBatch(worker, "x", 1, "n", "", 0, 0, numbers, (12,) * steps, (0,) * steps, **columns)


def decision(plan: int, size: int) -> Decision:
    shares = (Assignment("w0", 40, 1), Assignment("w1", size, 1))
    return Decision(CAUSE, plan, Action.ADJUST_BS, shares, 1.0, 0, "", "nd", 1, f"reason {plan}", 0.3, 0, 0)


NODES = {one.worker: one for one in (node("w0", 4), node("w1", 12, NodeClass.PERSISTENT), node("w2", 4.2))}
CONTROL = Control()
for at, said in enumerate([("w0", 40.0), ("w1", 144.0), ("w0", 44.0)]):
    CONTROL.on_record(STEPS_TOPIC, batch(*said), at)
STEPS = steps_of(CONTROL)


def test_steps_are_medians_of_each_worker_and_know_where_they_lie() -> None:
    assert (STEPS["w0"].count, STEPS["w0"].first_offset, STEPS["w0"].last_offset) == (6, 0, 2)
    assert STEPS["w0"].parts["compute"] == pytest.approx(0.042)
    assert (STEPS["w1"].batch_size, STEPS["w1"].parts["wait"]) == (12, 0.01)


def test_a_slow_worker_is_told_with_evidence_and_what_was_done() -> None:
    effect = Effect(CAUSE, Action.ADJUST_BS, 2, "", 0.3, 0.27, 0.02, 3, 40, 1.5, Verdict.HELPED)
    standing = {"phase": "training", "phase_s": 0.2, "allowed_s": 0.0, "detail": "step 9", "age_s": 1.0}
    found = why("w1", NODES, 24, STEPS, [decision(1, 20), decision(2, 12)], [effect], standing)
    assert (
        found.verdict == "w1 is slow, and stays it: a sample takes it 2.93 times what it takes the others of its group."
    )
    measured, parts, at = found.evidence
    assert measured.endswith("class persistent for 6 windows (measurements@24)")
    assert "compute 144 (others 42)" in parts and parts.endswith("(median of 3 steps, steps@1 to 1)")
    assert at == "training for 0.2 s (step 9), 1 s ago"
    first, second = found.done
    assert first == "plan 1 gives it 20 samples a step, as reason 1"
    assert second == (
        "plan 2 gives it 12 samples a step, as reason 2; "
        "plan 2 (ADJUST_BS) was to save 30 % of the step time and saved 27 ± 2 %: helped"
    )


def test_a_restart_is_what_was_done_to_the_one_that_was_started_again() -> None:
    restart = replace(
        decision(0, 0), action=Action.KILL_RESTART, target="w1.0.x", assignments=(), reason="slow for 6 windows"
    )
    assert why("w1", NODES, 0, {}, [restart], [], None).done == ("it is started again, as slow for 6 windows",)
    assert why("w0", NODES, 0, {}, [restart], [], None).done == ()


def test_one_alone_is_compared_with_nobody_and_one_without_a_measurement_is_not_known_yet() -> None:
    assert why("w0", {"w0": node("w0", 4)}, 0, {}, [], [], None).verdict == "w0 is as fast as its kind."
    assert why("w1", {}, -1, STEPS, [], [], None).verdict == "w1 is not known well enough yet."
