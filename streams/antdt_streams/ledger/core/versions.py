"""Which rules a log is folded by: those of the version that its Genesis names.

Who changes what an event does to a state, or which rows it becomes, adds a class of states here and leaves the others
as they are: logs of before lead, for ever, to the digests that are in them. What is decided may change at any time, as
decisions are in the log.
"""

from __future__ import annotations

from collections.abc import Mapping

from antdt_schemas import records
from antdt_schemas.errors import Mismatch

from antdt_streams.ledger.core import groups
from antdt_streams.ledger.core.line import Bounds
from antdt_streams.ledger.core.state import State

# 2: steps of a fixed size may be meant, which a reader of version 1 would not know. 3: their size may change, a job may
# end behind a step, and topics may be meant.
STATES: Mapping[int, type[State]] = {1: State, 2: State, 3: State}
FOLD_VERSION = max(STATES)  # of the logs that begin now


def state_of(genesis: records.Genesis, bounds: Bounds | None = None) -> State:
    """The empty state at the begin of a log.

    Raises:
        Mismatch: its rules, or those of its strategy, are not known here.
    """
    check_version(genesis.fold_version)
    groups.rules_of(genesis.spec.strategy)
    return STATES[genesis.fold_version](genesis.spec, bounds)


def check_version(version: int) -> None:
    """Raise Mismatch if a log or a leader is of rules that are not known here."""
    if version not in STATES:
        raise Mismatch(
            "The version of the log's rules", f"at most {FOLD_VERSION}", version, "Upgrade antdt to read this log."
        )
