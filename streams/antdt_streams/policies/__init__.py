"""Policies: pure objects that look at the cluster and propose actions.

Write your own as a class with `name`, `version` and `decide`, and name it to the Controller by `file.py:ClassName` or
through the entry-point group `antdt.policies`.
"""

from __future__ import annotations

from antdt_streams.policies.adjust_batch_size import AdjustBatchSize, AdjustBatchSizeOptions
from antdt_streams.policies.policy import ClusterView, Memory, NodeView, Policy, Proposal

__all__ = [
    "AdjustBatchSize",
    "AdjustBatchSizeOptions",
    "ClusterView",
    "Memory",
    "NodeView",
    "Policy",
    "Proposal",
]
