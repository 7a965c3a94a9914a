"""Runs `antdt` in a process that can be struck: `python -m antdt_streams.chaos.shifted FILE DEAF ARGS`.

Its Python has another time of day, and its consumers fall deaf as the file DEAF says (see `antdt_schemas.deafness`).
FILE holds the offset in seconds and may be written while the process runs. libfaketime, which moves the whole broker,
will not do here: it does not know the C library's own timed waits, which librdkafka waits by, and with a clock that is
an hour ahead each of them lasts an hour (measured). So C libraries keep the true time.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

from antdt_schemas import deafness

CHECK_EVERY_S = 0.2


class Shift:
    """The offset, looked at again every CHECK_EVERY_S of monotonic time."""

    def __init__(self, file: Path) -> None:
        self.file, self.shift_s, self.looked_s = file, 0, -CHECK_EVERY_S

    def __call__(self) -> int:
        now_s = time.monotonic()
        if now_s - self.looked_s >= CHECK_EVERY_S:
            self.shift_s, self.looked_s = int(self.file.read_text(encoding="utf-8")), now_s
        return self.shift_s


def install(shift: Shift) -> None:
    """Replace what tells the time of day, also where modules that are imported already have a name for it."""
    true_time, true_time_ns = time.time, time.time_ns
    shifted = {true_time: lambda: true_time() + shift(), true_time_ns: lambda: true_time_ns() + shift() * 1_000_000_000}
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is true_time or value is true_time_ns:
                setattr(module, name, shifted[value])


if __name__ == "__main__":
    install(Shift(Path(sys.argv.pop(1))))
    deafness.install(Path(sys.argv.pop(1)))
    runpy.run_module("antdt_streams", run_name="__main__")
