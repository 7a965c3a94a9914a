"""Who may reduce by NCCL. Without a device only what is refused; `make gpu` has the rest."""

from __future__ import annotations

import antdt
import pytest
import torch
from antdt.strategies.allreduce import nccl
from antdt.strategies.allreduce.options import GenerationOptions
from antdt.strategies.base import Here
from antdt_schemas.errors import UsageError
from torch import nn


def test_a_model_that_is_on_no_device_is_refused() -> None:
    model = nn.Linear(2, 1)
    strategy = antdt.AllReduce(generation=GenerationOptions(backend="nccl"))
    with pytest.raises(UsageError, match=r'backend="nccl" .* this model is on cpu: move it before the Agent is made'):
        strategy.member(model, torch.optim.SGD(model.parameters(), 0.1), Here("127.0.0.1", lambda: "127.0.0.1"))


def test_a_model_on_several_devices_is_refused() -> None:
    with pytest.raises(UsageError, match="this model is on cpu and meta"):
        nccl.device_of([torch.zeros(1), torch.zeros(1, device="meta")])


def test_members_of_one_device_are_named() -> None:
    nccl.refuse_shared({"w0": "GPU-1 ", "w1": "GPU-2 ", "w2": "GPU-1 other-host"})
    with pytest.raises(UsageError, match=r"^w0 and w2 use one device \(GPU-1\).*ANTDT_LOCAL_RANK"):
        nccl.refuse_shared({"w0": "GPU-1 ", "w1": "GPU-2 ", "w2": "GPU-1 "})
