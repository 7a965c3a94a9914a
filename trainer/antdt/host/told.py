"""SIGTERM means leave, from the first moment of a worker's life to its last.

Before its loop over the Agent, and behind it, a worker has nothing to leave behind: it ends at once, with 143. In the
loop `membership` finishes the step first. Owns the memory of having been told; must not know what leaving takes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from antdt_schemas.errors import ExitCode

# Time for whatever swallowed the end (a `__del__`, the callback of a weak reference) to be over.
AGAIN_S = 0.02

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


def insist() -> None:
    """From now on an end that Python swallows is told again.

    The handler raises wherever the main thread is. Inside a `__del__` or the callback of a weak reference (each import
    runs one) the interpreter reports what is raised as "ignored" and goes on: the process would not end.
    """
    sys.unraisablehook = _again_or(sys.unraisablehook)


def _again_or(report: Callable[[sys.UnraisableHookArgs], Any]) -> Callable[[sys.UnraisableHookArgs], Any]:
    def hook(what: sys.UnraisableHookArgs) -> None:
        if not (_at_s and isinstance(what.exc_value, SystemExit) and what.exc_value.code == int(ExitCode.DRAINED)):
            report(what)
            return
        # From a thread: raised in here it would be swallowed as well.
        again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        again.start()

    return hook
