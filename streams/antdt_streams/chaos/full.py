"""A disk that is full for some processes: the system lets them write nothing more into any file.

By the limit on the size of files (RLIMIT_FSIZE), which the system checks where it would find the disk full, so writes
fail with EFBIG in place of ENOSPC. It leaves pipes, sockets and every other process alone.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable
from contextlib import suppress


class FullDisk:
    """From `strike` to `relieve` for whoever `pids` names at a time: processes that are started meanwhile, too."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
        self._struck: set[int] = set()

    def strike(self) -> bool:
        """Repeat it while it lasts. False where there is nobody."""
        for pid in self._pids():
            if pid not in self._struck and _limit(pid, full=True):
                self._struck.add(pid)
        return bool(self._struck)

    def relieve(self) -> None:
        """There is room again: also for children that those were starting, which have the limit from them."""
        for _ in range(2):
            self._struck.update(self._pids())
            for pid in self._struck:
                _limit(pid, full=False)
        self._struck.clear()


def _limit(pid: int, full: bool) -> bool:
    with suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if full else hard, hard))
        return True
    return False
