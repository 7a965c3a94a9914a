"""Elastic AllReduce: exact weights, members that come and go. Knows torch; knows neither Kafka nor the ledger."""

from __future__ import annotations

from antdt.strategies.allreduce.composition import Composition, ReplicasDiffer, Row
from antdt.strategies.allreduce.options import AllReduce, GenerationOptions
from antdt.strategies.allreduce.rendezvous import Generation, NotFormed, Rendezvous, store_of
from antdt.strategies.allreduce.strategy import AllReduceReplica
from antdt.strategies.base import GenerationClosed

__all__ = [
    "AllReduce",
    "AllReduceReplica",
    "Composition",
    "Generation",
    "GenerationClosed",
    "GenerationOptions",
    "NotFormed",
    "Rendezvous",
    "ReplicasDiffer",
    "Row",
    "store_of",
]
