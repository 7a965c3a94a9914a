"""The Monitor as a service of the runtime: steps in, measurements out."""

from __future__ import annotations

from antdt_schemas.records import Measurement
from antdt_schemas.topics import MEASUREMENTS, STEPS

from antdt_streams.monitor.core.state import MonitorState
from antdt_streams.runtime.service import Service

VERSION = 2  # 2: a node says what it can hold, and the noise of few nodes is that of their own samples


def service() -> Service:
    return Service(
        "monitor", VERSION, STEPS, MonitorState, MonitorState.load, MonitorState.process, {Measurement: MEASUREMENTS}
    )
