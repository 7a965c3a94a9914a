"""The Controller as a service of the runtime: measurements in, decisions out, by a policy of the operator's choice."""

from __future__ import annotations

from functools import partial

from antdt_schemas.records import Decision
from antdt_schemas.topics import DECISIONS, MEASUREMENTS, Topic

from antdt_streams.controller.core.state import ControllerState
from antdt_streams.controller.figures import ControllerFigures
from antdt_streams.policies.find import DEFAULT, find
from antdt_streams.runtime.service import Service

VERSION = 2  # 2: it measures what comes of its decisions, and hears operators


def service(policy_name: str | None = None) -> Service:
    """One Controller of one job. Raises UsageError if there is no such policy."""
    policy = find(policy_name or DEFAULT)
    new, load = partial(ControllerState, policy), partial(ControllerState.load, policy=policy)
    fold, follow = ControllerState.process, ControllerState.follow
    outputs: dict[type, Topic] = {Decision: DECISIONS}
    return Service("controller", VERSION, MEASUREMENTS, new, load, fold, outputs, follow, ControllerFigures)
