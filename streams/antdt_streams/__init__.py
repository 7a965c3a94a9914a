"""Ledger, Monitor and Controller: the stream processors of antdt, and its command line.

Owns the public names of this side, which are what a policy of one's own is written with; see `policies`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from antdt_streams.policies import (
        Action,
        AdjustBatchSize,
        AdjustBatchSizeOptions,
        Assignment,
        ClusterView,
        Dedicated,
        DedicatedParameters,
        Effect,
        Memory,
        NodeClass,
        NodeView,
        NonDedicated,
        NonDedicatedParameters,
        Policy,
        Proposal,
        Verdict,
    )

__all__ = [
    "Action",
    "AdjustBatchSize",
    "AdjustBatchSizeOptions",
    "Assignment",
    "ClusterView",
    "Dedicated",
    "DedicatedParameters",
    "Effect",
    "Memory",
    "NodeClass",
    "NodeView",
    "NonDedicated",
    "NonDedicatedParameters",
    "Policy",
    "Proposal",
    "Verdict",
]


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: each of our modules imports this one first."""
    if name in __all__:
        from antdt_streams import policies

        return getattr(policies, name)
    raise AttributeError(f"module 'antdt_streams' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
