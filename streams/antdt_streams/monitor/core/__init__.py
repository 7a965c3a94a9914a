"""The pure core of the Monitor: step timings in, measurements out. No clock, randomness, logging or network.

The detector's parameters were chosen on two production traces of 10 workers and held on nine further ones without a
change. Blind spots: half of the nodes slowing down together reads as common mode; two nodes that are sick from the
start read as a slower hardware class.
"""

from __future__ import annotations

from antdt_streams.monitor.core.options import DetectorOptions
from antdt_streams.monitor.core.state import MonitorState
from antdt_streams.storage.rows import Position

__all__ = ["DetectorOptions", "MonitorState", "Position"]
