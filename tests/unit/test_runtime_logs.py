"""Logs are one line each, whatever is in them."""

from __future__ import annotations

import logging

from antdt_streams.host.logs import OneLine


def formatted(message: str, *args: object, error: BaseException | None = None) -> str:
    info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("antdt.x", logging.ERROR, "f.py", 1, message, args, info)
    record.created, record.msecs = 1_700_000_000.25, 250.0
    return OneLine("demo", "monitor").format(record)


def test_a_line_says_when_who_and_what() -> None:
    line = formatted("event=started next_offset=%d", 7)
    assert line == "2023-11-14T22:13:20.250Z error job=demo service=monitor event=started next_offset=7"


def test_line_breaks_and_tracebacks_stay_on_the_line() -> None:
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError as error:
        line = formatted("a\r\nb", error=error)
    assert "\n" not in line
    assert "two" in line
    assert "Traceback" in line
