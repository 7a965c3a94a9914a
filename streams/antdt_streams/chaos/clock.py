"""Clocks of single processes that can be set while they run; the broker's by libfaketime, where that is installed.

Only the time of day is moved: monotonic clocks go on, as they do on a machine whose clock an administrator sets.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from antdt_streams.host.files import write_whole

MISSING = "clock-broker: not available, install faketime (`pip install libfaketime`, or the package faketime of Debian)"
PROBE_SHIFT_S = 86_400
SHARED_MEMORY = Path("/dev/shm")


@cache
def library() -> Path | None:
    """The library, if there is one that works on this machine."""
    return next((path for path in _candidates() if _works(path)), None)


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("libfaketime")
    if spec is not None and spec.origin is not None:
        yield from sorted(Path(spec.origin).parent.glob("vendor/libfaketime/src/libfaketime.so*"))
    for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib"):
        yield from sorted(Path(folder).glob("**/faketime/libfaketime.so.1"))


def _works(path: Path) -> bool:
    """A file of another architecture is skipped by the loader with a warning only: look at what the clock says."""
    env = shutil.which("env") or "env"
    command = [env, f"LD_PRELOAD={path}", f"FAKETIME=+{PROBE_SHIFT_S}", sys.executable, "-I", "-S", "-c"]
    done = subprocess.run(
        [*command, "import time; print(time.time())"], capture_output=True, text=True, timeout=20, check=False
    )
    try:
        return abs(float(done.stdout) - time.time() - PROBE_SHIFT_S) < PROBE_SHIFT_S / 2
    except ValueError:
        return False


class Clock:
    """The time of day of one process, as an offset in a file that the process looks at about once a second."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self.set(0)

    def set(self, shift_s: int) -> bool:
        """Move the clock to `shift_s` from the true time. The file is never seen half-written."""
        write_whole(self.file, f"{shift_s:+d}\n".encode())
        return True

    def of_service(self, command: list[str], deaf: Path) -> list[str]:
        """The command of a service (`python -m antdt_streams …`) so that it lives by this clock, and falls deaf when
        the file `deaf` says so.
        """
        assert command[1:3] == ["-m", "antdt_streams"], command
        return [command[0], "-m", "antdt_streams.chaos.shifted", str(self.file), str(deaf), *command[3:]]

    def prefix(self) -> list[str]:
        """What the command line of the broker begins with so that it does; empty without the library."""
        found = library()
        if found is None:
            return []
        return [
            shutil.which("env") or "/usr/bin/env",
            f"LD_PRELOAD={found}",
            f"FAKETIME_TIMESTAMP_FILE={self.file}",
            "FAKETIME_CACHE_DURATION=1",
            "DONT_FAKE_MONOTONIC=1",
            # Left to itself it takes timed waits of newer C libraries for past already: a Java broker spins.
            "FAKETIME_FORCE_MONOTONIC_FIX=0",
        ]


def forget(pid: int) -> None:
    """Remove what the library leaves in shared memory when its process is killed."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        (SHARED_MEMORY / name).unlink(missing_ok=True)
