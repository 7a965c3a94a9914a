"""Gradients by NCCL: whose devices they are, and the start of it within a bound.

NCCL connects in the first collective, which blocks for as long as somebody is missing: it is made while a generation
forms, in the thread that may be left behind, and not by the first step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
from antdt_schemas.errors import UsageError
from torch import distributed

START_S = 60.0  # from when all members are there
POLL_S = 0.002
ERRORS = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
HOST = "NCCL_HOSTID"


def device_of(params: Iterable[torch.Tensor]) -> torch.device:
    """The one that all of them are on. Raises UsageError where NCCL cannot reduce their gradients."""
    devices = sorted({str(param.device) for param in params})
    if not distributed.is_nccl_available():
        raise UsageError('backend="nccl": this build of torch has no NCCL. Leave backend out, and gloo is used.')
    if len(devices) != 1 or not devices[0].startswith("cuda"):
        raise UsageError(
            f'backend="nccl" reduces gradients on one CUDA device for each worker, and this model is on '
            f"{' and '.join(devices)}: move it before the Agent is made, or leave backend out, and gloo is used."
        )
    if os.environ.setdefault(ERRORS, "0") != "0":
        raise UsageError(f"{ERRORS} must be 0: otherwise a lost member tears this process down. Unset it.")
    return torch.device(devices[0])


def card_of(device: torch.device) -> str:
    """What no two members may have in common: the device, on what NCCL takes for one host."""
    return f"{torch.cuda.get_device_properties(device).uuid} {os.environ.get(HOST, '')}"


def refuse_shared(cards: Mapping[str, str]) -> None:
    """cards: by worker. Raises UsageError, on all members alike."""
    first: dict[str, str] = {}
    for worker, card in cards.items():
        other = first.setdefault(card, worker)
        if other != worker:
            raise UsageError(
                f'{other} and {worker} use one device ({card.split()[0]}), and backend="nccl" needs one for each: call '
                'torch.cuda.set_device(int(os.environ["ANTDT_LOCAL_RANK"])) before the model is made, start fewer '
                "workers, or leave backend out, and gloo is used."
            )


def started(store: Any, rank: int, world: int, device: torch.device, op_timeout_s: float) -> Any:
    """The group, connected. Raises OSError where that took too long, and what NCCL raises."""
    torch.cuda.set_device(device)  # of this thread
    options = distributed.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=op_timeout_s)
    group = distributed.ProcessGroupNCCL(store, rank, world, options)
    work, until = group.allreduce([torch.zeros(1, device=device)]), time.monotonic() + START_S
    while not work.is_completed():
        if time.monotonic() > until:
            raise OSError("its first collective did not end")
        time.sleep(POLL_S)
    work.wait()
    return group
