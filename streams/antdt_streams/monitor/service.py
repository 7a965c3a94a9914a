"""The Monitor as a service of the runtime: steps in, measurements out."""

from __future__ import annotations

from antdt_schemas.records import Measurement
from antdt_schemas.topics import MEASUREMENTS, STEPS, Topic

from antdt_streams.monitor.core.state import MonitorState
from antdt_streams.monitor.figures import MonitorFigures
from antdt_streams.runtime.service import Service

VERSION = 3  # 3: servers, stages, micro-batches; how fast all go on


def service() -> Service:
    new, load, fold = MonitorState, MonitorState.load, MonitorState.process
    outputs: dict[type, Topic] = {Measurement: MEASUREMENTS}
    return Service("monitor", VERSION, STEPS, new, load, fold, outputs, figures=MonitorFigures)
