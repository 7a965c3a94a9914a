"""Where the auditor's checker lies, and a copy of it beside an exported log.

Owns nothing of what it does: `verify_standalone.py` shares no code with this package, which only hands it on.
"""

from __future__ import annotations

from pathlib import Path

from antdt_schemas.errors import UsageError

from antdt_streams.host.files import write_whole

NAME = "verify_standalone.py"
PACKAGE = Path(__file__).parents[1]


def script() -> bytes:
    """The checker, of the source tree that this is run from, or of the wheel."""
    source = PACKAGE.parents[1] / "tools" / NAME
    return (source if source.is_file() else PACKAGE / "tools" / NAME).read_bytes()


def check_place(log: Path) -> Path:
    """Where the checker of this log goes.

    Raises:
        UsageError: another file of that name is there.
    """
    path = log.with_name(NAME)
    if path.exists() and (not path.is_file() or path.read_bytes() != script()):
        raise UsageError(f"{path} is there already, and is not the checker of this version: move it, or --no-checker.")
    return path


def lay_beside(log: Path) -> Path:
    """Write the checker beside a log; its path. Raises UsageError as `check_place` does."""
    path = check_place(log)
    if not path.exists():
        write_whole(path, script())
    return path
