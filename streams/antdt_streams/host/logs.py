"""Logs of a service: one line each on stderr, time, level, job and service first, then what happened."""

from __future__ import annotations

import logging
import sys
import time

QUIET = ("faust", "mode", "aiokafka", "asyncio")


class OneLine(logging.Formatter):
    """`2026-01-31T12:00:00.123Z info job=demo service=monitor message`; a traceback is folded into the same line."""

    def __init__(self, job: str, service: str) -> None:
        super().__init__()
        self.head = f"job={job} service={service}"

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = f"{at}.{int(record.msecs):03d}Z {record.levelname.lower()} {self.head} {record.getMessage()}"
        if record.exc_info:
            line += f" traceback={self.formatException(record.exc_info)!r}"
        return line.replace("\r", " ").replace("\n", " ")


def log_to_stderr(job: str, service: str, level: int = logging.INFO) -> None:
    """Send this process's logs to stderr; libraries only speak from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(job, service))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("antdt").setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
