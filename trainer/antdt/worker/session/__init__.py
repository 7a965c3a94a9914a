"""A worker's side of the exactly-once protocol, without a clock, a thread or a broker."""

from __future__ import annotations

from antdt.worker.session.asking import SessionOptions
from antdt.worker.session.commits import Composition
from antdt.worker.session.leases import Held
from antdt.worker.session.machine import OVER, SERVER, WORKER, Phase, Session, Where

__all__ = ["OVER", "SERVER", "WORKER", "Composition", "Held", "Phase", "Session", "SessionOptions", "Where"]
