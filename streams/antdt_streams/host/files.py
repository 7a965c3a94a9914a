"""Small files that others read while they are written."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """All of it or nothing, also beside somebody who writes the same file at the same time; survives no power cut."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    scratch.write_bytes(content)
    scratch.replace(path)
