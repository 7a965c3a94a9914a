"""What the benchmarks share: medians with their spread, a word about the machine, and the file with the results."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def spread(values: Sequence[float], digits: int = 1) -> dict[str, Any]:
    """Median, least, greatest, and all of them in order."""
    rounded = [round(v, digits) for v in values]
    return {
        "median": round(statistics.median(values), digits),
        "min": min(rounded),
        "max": max(rounded),
        "all": rounded,
    }


def quartiles(values: Sequence[float], digits: int = 2) -> dict[str, float]:
    """Median and both quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, digits), "q1": round(low, digits), "q3": round(high, digits)}


def machine() -> dict[str, Any]:
    """Cores, how many processes wanted one in the last minute, Python: figures mean nothing without them."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load_1_min": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def tell_nccl_apart(name: str) -> None:
    """Before NCCL is loaded: processes on one device are members all the same. It refuses two of one host, so each says
    that it is a host of its own, and they meet by sockets.
    """
    os.environ |= {"NCCL_HOSTID": name, "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}


def write(path: Path | None, results: Any) -> None:
    """Write the results as JSON where a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
