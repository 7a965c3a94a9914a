"""SIGTERM means leave, from the first moment of a worker's life to its last.

Before its loop over the Agent, and behind it, a worker has nothing to leave behind: it ends at once, with 143. In the
loop `membership` finishes the step first. Owns the memory of having been told; must not know what leaving takes.
"""

from __future__ import annotations

import sys
from time import monotonic
from typing import Any

from antdt_schemas.errors import ExitCode

_at_s: list[float] = []


def at_s() -> float | None:
    """When this process was told to end, by its monotonic clock; None: it was not."""
    return _at_s[0] if _at_s else None


def remember() -> None:
    """Note that this process was told, now, unless it was before."""
    if not _at_s:
        _at_s.append(monotonic())


def end(_number: int, _frame: Any) -> None:
    """The handler of SIGTERM; a script may have one of its own instead. Where it holds up the end, the Agent knows."""
    remember()
    sys.exit(int(ExitCode.DRAINED))
