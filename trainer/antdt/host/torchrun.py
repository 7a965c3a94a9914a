"""Which run of torchrun a process belongs to, where it was started by that and not by `antdt launch`.

torchrun's agent has all of its workers end before it starts them again, so a later life of a worker of the same run has
proof that the earlier one is over, as with a launcher of ours. What a run is named by must be the same for all lives of
a worker, and for nobody else.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path

RUN_ID = "TORCHELASTIC_RUN_ID"
# What torchrun says where nobody has named the run: so do all others.
UNNAMED = ("", "none")
NAME_CHARS_MAX = 100


def run_of(environ: Mapping[str, str], proc: Path = Path("/proc")) -> str:
    """A name for the run; empty: it is none of torchrun's."""
    if RUN_ID not in environ:
        return ""
    run = environ[RUN_ID]
    if run not in UNNAMED:
        return f"torchrun:{run}"[:NAME_CHARS_MAX]
    # Without a name the agent of this machine stands for it: its ranks stay on this machine.
    agent = os.getppid()
    return f"torchrun:{socket.gethostname()}:{agent}:{_started(agent, proc)}"[:NAME_CHARS_MAX]


def _started(pid: int, proc: Path) -> str:
    """When a process was started, in ticks since boot: a number that comes back is told apart. Empty if not known."""
    try:
        text = (proc / str(pid) / "stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]
