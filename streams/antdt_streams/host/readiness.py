"""Says that a service answers: a file that is there while it does, for `antdt up` and for the probes of containers.

Owns that file. It says nothing about work: a standby that stands by answers, too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from antdt_streams.host.files import write_whole

ENV_READY_FILE = "ANTDT_READY_FILE"

log = logging.getLogger("antdt.ready")


class Readiness:
    """The file of one process; without a path nobody wants to know."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.withdraw()  # a life that was killed has left its own

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Readiness:
        named = environ.get(ENV_READY_FILE)
        return cls(Path(named) if named else None)

    def say(self, how: str) -> None:
        """From now on this service answers: `how` is one line for people. A full disk is no reason to end it."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, f"{how}\n".encode())
        except OSError as error:
            log.warning("event=not-said-ready file=%s reason=%r", self.path, str(error))

    def withdraw(self) -> None:
        if self.path is None:
            return
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("event=not-withdrawn file=%s reason=%r", self.path, str(error))
