"""States of another model or optimizer, and such as nobody could read again: one sentence each, nothing overwritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from antdt.strategies.allreduce import AllReduceReplica
from antdt_schemas.errors import UsageError
from torch import nn
from torch.optim import SGD, Adam, AdamW

from tests.helpers.allreduce import generation_of, mean_loss, replica, same, state_of, take


def of(build: Callable[[], nn.Module], optimizer: Callable[[Any], Any] = SGD) -> AllReduceReplica:
    return replica(build=build, optimizer=optimizer)


def linear() -> nn.Module:
    return nn.Linear(6, 3)


def two_groups(params: Any) -> Any:
    weight, bias = params
    return SGD([{"params": [weight]}, {"params": [bias]}])


OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any], str]] = {
    "optimizer": (linear, Adam, "The optimizer in it is SGD, this one is Adam."),
    "groups": (linear, two_groups, r"The optimizer in it has groups of \[2\] parameters, this one of \[1, 1\]."),
    "layers": (
        lambda: nn.Sequential(linear()),
        SGD,
        "it has weight, bias, which this one has not, and has no 0.weight, 0.bias.",
    ),
    "shape": (lambda: nn.Linear(6, 4), SGD, r"its weight is \(3, 6\) of float64, this one's \(4, 6\) of float64."),
}


@pytest.mark.parametrize("kind", sorted(OTHERS))
def test_what_does_not_fit_is_named_and_overwrites_nothing(kind: str) -> None:
    build, optimizer, said = OTHERS[kind]
    theirs, ours = of(linear), of(build, optimizer)
    before = state_of(ours)
    with pytest.raises(UsageError, match=f"^Checkpoint x cannot be loaded: .*{said}"):
        ours.restore(theirs.snapshot(), of="Checkpoint x")
    assert not ours.void
    assert same(before, state_of(ours))


def test_files_that_do_not_say_their_optimizer_are_known_by_its_settings() -> None:
    theirs = of(linear)
    data = theirs.snapshot().replace(b"optimizer_name", b"another_kind_x")
    with pytest.raises(UsageError, match="of another kind than Adam: its group 0 has no betas, eps"):
        of(linear, Adam).restore(data)


def test_another_precision_is_another_model() -> None:
    with pytest.raises(UsageError, match=r"its weight is .* of float64, this one's .* of float32"):
        replica(torch.float32, build=linear, optimizer=SGD).restore(of(linear).snapshot())


def test_other_values_of_the_same_settings_are_loaded() -> None:
    theirs, ours = (of(linear, lambda params, lr=lr: AdamW(params, lr=lr)) for lr in (0.1, 0.2))
    theirs.optimizer.param_groups[0]["initial_lr"] = 0.1  # as a scheduler does
    ours.restore(theirs.snapshot())
    assert ours.optimizer.param_groups[0]["lr"] == 0.1


def test_what_cannot_be_read_again_is_refused_by_its_name_when_it_is_written() -> None:
    member = of(linear)
    with generation_of([member]):
        x = torch.rand(4, 6, dtype=torch.float64)
        take(member, 4)
        member.backward(mean_loss(member, x, x[:, :3]), 4)
        member.step()
        member.load_back()
        member.optimizer.param_groups[0]["lr"] = 0.1 * numpy.cos(0.5)
        member.load_back()  # a number is a number: it is written as Python's own
        member.optimizer.param_groups[0]["lr"] = [0.1 * numpy.cos(0.5)]
        member.load_back()  # also where a scheduler keeps it
        member.optimizer.param_groups[0]["lr"] = [numpy.array([0.1])]
        for act in (member.load_back, member.snapshot):
            with pytest.raises(UsageError, match=r"\['lr'\]\[0\] is a numpy.ndarray.*float"):
                act()
        with torch.serialization.safe_globals(
            [numpy.ndarray, numpy.dtype, numpy.dtypes.Float64DType, numpy._core.multiarray._reconstruct]
        ):
            member.load_back()


def test_what_holds_no_groups_is_loaded_as_it_is() -> None:
    class Own:
        def __init__(self, params: Any) -> None:
            self.param_groups = [{"params": list(params)}]

        def step(self) -> None:
            pass

        def state_dict(self) -> dict[str, Any]:
            return {"t": 1}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.loaded = state

    ours = of(linear, Own)
    ours.restore(of(linear, Own).snapshot())
    assert ours.optimizer.loaded == {"t": 1}
