"""The Controller as a service of the runtime: measurements in, decisions out, by a policy of the operator's choice."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from antdt_schemas.errors import UsageError
from antdt_schemas.records import Decision
from antdt_schemas.topics import DECISIONS, MEASUREMENTS, Topic

from antdt_streams.controller.core.state import ControllerState
from antdt_streams.controller.figures import ControllerFigures
from antdt_streams.policies.find import DEFAULT, find
from antdt_streams.policies.policy import Policy
from antdt_streams.runtime.service import Service

# 2: it measures what comes of its decisions, and hears operators. 3: a loss that was predicted is no harm; people order
# restarts and promote policies.
VERSION = 3


def service(policy_name: str | None = None) -> Service:
    """One Controller of one job. Raises UsageError if there is no such policy."""
    policy = find(policy_name or DEFAULT)
    new = partial(ControllerState, policy, find=promotable)
    load = partial(ControllerState.load, policy=policy, find=promotable)
    fold, follow = ControllerState.process, ControllerState.follow
    outputs: dict[type, Topic] = {Decision: DECISIONS}
    return Service("controller", VERSION, MEASUREMENTS, new, load, fold, outputs, follow, ControllerFigures)


def promotable(name: str) -> Policy:
    """A policy that is named while the Controller runs: by whoever may write its input, who is to have it run no other
    files than those of the folder that it was started in.

    Raises:
        UsageError: there is none, or it is elsewhere.
    """
    file, colon, _ = name.rpartition(":")
    folder = Path.cwd()
    if colon and (folder.parent == folder or not Path(file).resolve().is_relative_to(folder)):
        raise UsageError(f"{file} is not in {folder}, where the Controller was started: no other files are loaded.")
    return find(name)
