"""Parameter servers: they hold the model, workers compute. Knows torch and zmq; knows neither Kafka nor the ledger."""

from __future__ import annotations

from antdt.strategies.ps.options import ParameterServer

__all__ = ["ParameterServer"]
