"""Owns each peer's virtual environment, so that its dependencies never meet ours. Knows nothing of what is measured.

`python -m bench.peers.environment dlrover` builds it on first use and prints the path of its Python.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from antdt_schemas.errors import Unavailable, UsageError

HERE = Path(__file__).resolve().parent
INSTALL_TIMEOUT_S = 900
ERROR_LINES_MAX = 12


def python_of(peer: str) -> Path:
    """Python of `bench/peers/env/<peer>`, built from `requirements-<peer>.txt` when missing, unfinished or outdated.

    Raises UsageError for a peer that has no such file, Unavailable when the packages cannot be installed.
    """
    requirements = HERE / f"requirements-{peer}.txt"
    if not re.fullmatch(r"[a-z0-9-]+", peer) or not requirements.is_file():
        known = sorted(path.stem.removeprefix("requirements-") for path in HERE.glob("requirements-*.txt"))
        raise UsageError(f"No peer named {peer!r}: choose one of {', '.join(known)}.")
    folder = HERE / "env" / peer
    python = folder / "bin" / "python"
    # Written last: a folder without it, or with another content, is an install that was cut short or is out of date.
    installed = folder / "installed.txt"
    if python.exists() and installed.is_file() and installed.read_bytes() == requirements.read_bytes():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    for command in _install_commands(folder, python, requirements):
        _run(command, peer)
    installed.write_bytes(requirements.read_bytes())
    return python


def _install_commands(folder: Path, python: Path, requirements: Path) -> list[list[str]]:
    # The file holds the full closure, so nothing may be resolved beyond it.
    if uv := shutil.which("uv"):
        install = [uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), "-r", str(requirements)]
        return [[uv, "venv", "--quiet", "--python", sys.executable, str(folder)], install]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    return [[sys.executable, "-m", "venv", str(folder)], [*pip, "-r", str(requirements)]]


def _run(command: list[str], peer: str) -> None:
    hint = f"Building the environment needs a package index and about 300 MB; without them leave out the peer {peer}."
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"`{' '.join(command)}` took longer than {INSTALL_TIMEOUT_S} s.", hint) from None
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-ERROR_LINES_MAX:])
        raise Unavailable(f"`{' '.join(command)}` failed with status {done.returncode}:\n{said}\n", hint)


def main() -> int:
    """Print the path of one peer's Python; 2 or 75 and the reason on stderr when there is none."""
    if len(sys.argv) != 2:
        print("Usage: python -m bench.peers.environment PEER", file=sys.stderr)
        return int(UsageError.exit_code)
    try:
        print(python_of(sys.argv[1]))
    except (UsageError, Unavailable) as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
