"""Local training with periodic averaging. Knows torch, and AllReduce, which carries the averages; knows neither Kafka
nor the ledger.
"""

from __future__ import annotations

from antdt.strategies.local.options import LocalSGD

__all__ = ["LocalSGD"]
