"""Policies: pure objects that look at the cluster and propose actions.

Write your own as a class with `name`, `version` and `decide`, and name it to the Controller by `file.py:ClassName` or
through the entry-point group `antdt.policies`; docs/POLICIES.md says how. All that it needs is in `antdt_streams`.
"""

from __future__ import annotations

from antdt_schemas.records import Action, Assignment, Effect, NodeClass, Verdict

from antdt_streams.policies.adjust_batch_size import AdjustBatchSize, AdjustBatchSizeOptions
from antdt_streams.policies.dd import Dedicated, DedicatedParameters
from antdt_streams.policies.nd import NonDedicated, NonDedicatedParameters
from antdt_streams.policies.policy import ClusterView, Memory, NodeView, Policy, Proposal

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
