"""Plans as the workers read them, and what they change in a worker."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from antdt.job import batch_factor
from antdt.strategies.allreduce.rates import LearningRates
from antdt.worker.effects import Effects
from antdt.worker.plans import PLANS_KEPT_MAX, Plan, Plans, Share, Split
from antdt.worker.session.asking import Outbox, SessionOptions
from antdt.worker.session.changes import Changes
from antdt_schemas import records
from antdt_schemas.errors import Unavailable, Undecodable
from antdt_schemas.records import Action

SHARES = (records.Assignment("w0", 5, 1), records.Assignment("w1", 3, 2))


def decision(plan: int, action: Action, offset: int = -1, **changed: Any) -> records.Decision:
    """A decision with everything in force, whose cause is its own."""
    at = records.Cause(0, plan if offset < 0 else offset, 0)
    whole = records.Decision(at, plan, action, SHARES, 1.0, 0, "", "p", 1, "", 0.0, 0, 0)
    return replace(whole, **changed)


@pytest.mark.parametrize("action", [Action.ADJUST_BS, Action.ADJUST_LR, Action.BACKUP_WORKERS])
def test_a_plan_is_taken_whole_whatever_has_changed(action: Action) -> None:
    plans = Plans(8)
    assert plans.add(decision(1, action, learning_rate_factor=0.5, backup_workers=2))
    shares = {"w0": Share(5), "w1": Share(3, 2)}
    assert plans.newest == 1
    assert plans.of(1) == Plan(1, shares, 0.5, 2)
    assert plans.of(0) == Plan(), "what the workers begin with"
    assert plans.of(2) is None


def test_a_plan_of_a_learning_rate_leaves_the_shares() -> None:
    plans = Plans(8)
    plans.add(decision(1, Action.ADJUST_BS))
    plans.add(decision(2, Action.ADJUST_LR, learning_rate_factor=0.5))
    assert plans.split(2, ["w0", "w1"]) == plans.split(1, ["w0", "w1"]) == Split([Share(5), Share(3, 2)], 8)
    assert plans.split(0, ["w0", "w1"]) == Split([Share(4), Share(4)], 8)
    assert plans.split(2, ["w0", "w2"]) == Split([Share(4), Share(4)], 8), "it was made for others"


def test_a_batch_that_does_not_divide_is_split_as_evenly_as_it_goes_and_nobody_takes_nothing() -> None:
    plans = Plans(8)
    assert plans.split(0, ["a", "b", "c"]) == Split([Share(3), Share(3), Share(2)], 8)
    assert plans.split(0, list("abcdefghij")) == Split([Share(1)] * 10, 10)


def test_a_split_is_that_of_its_plan_and_members_also_where_it_was_asked_for_before() -> None:
    plans, members = Plans(8), ["w0", "w1"]
    plans.add(decision(1, Action.ADJUST_BS))
    assert plans.split(1, members) is plans.split(1, members)
    assert plans.split(0, members) != plans.split(1, members)
    members.append("w2")
    assert len(plans.split(1, members).shares) == 3
    assert plans.split(7, members) == plans.split(0, members), "a plan that was not read"


@pytest.mark.parametrize("action", [Action.NONE, Action.KILL_RESTART])
def test_a_decision_that_changes_no_plan_leaves_it(action: Action) -> None:
    plans = Plans(8)
    assert not plans.add(decision(0, action, offset=1, assignments=()))
    plans.add(decision(1, Action.ADJUST_LR, offset=2, learning_rate_factor=0.5))
    assert not plans.add(decision(1, action, offset=3, learning_rate_factor=0.5, target="w0"))
    assert plans.newest == 1


def test_what_is_older_or_repeated_changes_nothing() -> None:
    plans = Plans(8)
    plans.add(decision(2, Action.ADJUST_LR, offset=5, learning_rate_factor=0.5))
    assert not plans.add(decision(3, Action.ADJUST_LR, offset=5)), "the same cause"
    assert not plans.add(decision(2, Action.ADJUST_LR, offset=6)), "the same number"
    assert plans.of(2) == Plan(2, {"w0": Share(5), "w1": Share(3, 2)}, 0.5)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_that_no_controller_gives_is_refused_and_the_next_plan_is_taken(factor: float) -> None:
    plans = Plans(8)
    with pytest.raises(Undecodable, match="Plan 1 would multiply the learning rates by"):
        plans.add(decision(1, Action.ADJUST_LR, learning_rate_factor=factor))
    assert plans.newest == 0
    assert plans.add(decision(2, Action.ADJUST_LR, learning_rate_factor=2.0))


def test_plans_are_bounded() -> None:
    plans = Plans(8)
    for number in range(1, PLANS_KEPT_MAX + 10):
        plans.add(decision(number, Action.ADJUST_LR))
    assert plans.of(9) is None
    assert plans.of(10) is not None


class Model:
    """What effects change of a strategy."""

    def __init__(self) -> None:
        self.step_number, self.rates = 6, self
        self.factor = 1.0


def test_effects_are_those_of_the_plan_in_force_and_not_of_the_newest(caplog: pytest.LogCaptureFixture) -> None:
    plans, model = Plans(8), Model()
    effects = Effects(plans, model)
    for number, factor in ((1, 0.5), (2, 0.25)):
        plans.add(decision(number, Action.ADJUST_LR, learning_rate_factor=factor))
    with caplog.at_level(logging.INFO, "antdt"):
        effects.on_plan(1)
    assert model.factor == 0.5
    assert caplog.messages == ["plan 1: learning rates times 0.5 from step 7 on"]


def test_backup_workers_are_not_carried_out_which_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    plans, model = Plans(8), Model()
    effects = Effects(plans, model)
    for number, backup in enumerate((0, 1, 1, 2, 0), start=1):
        plans.add(decision(number, Action.BACKUP_WORKERS, backup_workers=backup, learning_rate_factor=0.5))
        effects.on_plan(number)
    said = [message.partition(", which")[0] for message in caplog.messages]
    assert said == ["plan 2 asks for 1 backup workers", "plan 4 asks for 2 backup workers"]
    assert model.factor == 0.5, "the rest of the plan is carried out"


def test_under_all_reduce_it_is_said_who_takes_no_samples_once(caplog: pytest.LogCaptureFixture) -> None:
    plans, spared = Plans(8), (records.Assignment("w0", 8, 1), records.Assignment("w1", 0, 1))
    effects = Effects(plans, Model(), "allreduce")
    plans.add(decision(1, Action.BACKUP_WORKERS, assignments=spared, backup_workers=1))
    plans.add(decision(2, Action.ADJUST_LR, assignments=spared, backup_workers=1))
    plans.add(decision(3, Action.BACKUP_WORKERS, backup_workers=0))
    plans.add(decision(4, Action.BACKUP_WORKERS, backup_workers=1))
    with caplog.at_level(logging.INFO, "antdt"):
        for number in (1, 2, 3, 4):
            effects.on_plan(number)
    assert caplog.messages[0] == "plan 1: w1 takes no samples from step 7 on, the others take all"
    assert [message.partition(": step")[0] for message in caplog.messages[1:]] == [
        "plan 4 asks for 1 backup workers and does not say which"
    ]


def test_who_has_not_read_a_plan_does_not_guess_it() -> None:
    with pytest.raises(Unavailable, match="Plan 3 comes into force, and this worker could not read it"):
        Effects(Plans(8), Model()).on_plan(3)


def test_a_global_batch_is_wished_for_by_the_plan_that_has_changed_it() -> None:
    plans = Plans(8)
    for number, size in ((1, 0), (2, 16), (3, 16), (4, 8), (5, 8)):
        plans.add(decision(number, Action.ADJUST_BS, batch_size=size))
        assert plans.batch_size == 8, "the ledger says when it counts"
    assert plans.wish == (4, 8)
    plans.resize(12)
    assert plans.split(0, ["w0", "w1"]).batch_size == 12


def test_a_wish_and_a_stop_are_said_until_they_are_answered() -> None:
    changes, outbox = Changes(SessionOptions()), Outbox("w0", "w0.0")
    changes.wish = (3, 64)
    changes.tick(1.0, 1, 1, "", outbox)
    assert not outbox, "the first member says it"
    changes.tick(1.0, 1, 0, "", outbox)
    changes.tick(9.0, 1, 0, "", outbox)
    first, second = outbox.emptied()
    assert first.body == second.body == records.Resize(64, "plan 3", "plan 3 changes the global batch", 3)
    changes.answered(records.Reply("w0", "w0.0", second.number, records.Status.OK, "", 1, 0, False, ()))
    changes.tick(20.0, 1, 0, "", outbox)
    changes.stop = (7, "")
    changes.tick(20.0, 1, 0, "", outbox)
    assert not outbox, "whose script has stopped knows why"
    changes.tick(21.5, 1, 0, "", outbox)
    assert [r.body for r in outbox.emptied()] == [records.Stop(1, 7, "")]
    changes.tick(60.0, 1, 0, "is finished early", outbox)
    assert not outbox


def test_learning_rates_go_with_the_global_batch() -> None:
    assert [batch_factor(how, 64, 16) for how in ("", "linear", "sqrt")] == [1.0, 4.0, 2.0]
    assert batch_factor("linear", 0, 0) == 1.0
    param = torch.nn.Parameter(torch.zeros(1))
    rates = LearningRates(torch.optim.SGD([param], 0.1))
    rates.factor, rates.batch_factor, param.grad = 0.5, 4.0, torch.ones(1)
    rates.step()
    assert float(param.detach()) == pytest.approx(-0.2) and rates.optimizer.param_groups[0]["lr"] == 0.1
