"""Elastic AllReduce: exact weights, members that come and go. Knows torch; knows neither Kafka nor the ledger."""

from __future__ import annotations

from antdt.strategies.allreduce.composition import Composition, ReplicasDiffer, Row
from antdt.strategies.allreduce.rendezvous import (
    Generation,
    GenerationClosed,
    GenerationOptions,
    NotFormed,
    Rendezvous,
    store_of,
)
from antdt.strategies.allreduce.strategy import AllReduce, AllReduceOptions, StepResult, Timings

__all__ = [
    "AllReduce",
    "AllReduceOptions",
    "Composition",
    "Generation",
    "GenerationClosed",
    "GenerationOptions",
    "NotFormed",
    "Rendezvous",
    "ReplicasDiffer",
    "Row",
    "StepResult",
    "Timings",
    "store_of",
]
