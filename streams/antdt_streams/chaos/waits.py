"""Who waits for whom, where a run does not end: from what services and workers say of themselves. Only reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from antdt_schemas.connection import Connection
from antdt_schemas.errors import AntdtError

# What of a worker's phases is waiting, and for what of whom.
WAITS = {"reducing": "the gradients", "forming": "the next generation", "idle": "samples"}


def waits_of(connection: Connection, job: str) -> str:
    """One line each, as of now."""
    from antdt_streams.views.job import status_of

    try:
        return "\n".join(sentences(status_of(connection, job)))
    except AntdtError as error:
        return f"Who waits for whom cannot be told: {error}"


def sentences(found: Mapping[str, Any]) -> list[str]:
    """The document of `antdt status` as sentences: services, then the generation, then each of its members."""
    said, members = found["standings"], [*found["members"], *found.get("attached", ())]
    lines = [f"{name} {one['said']}" for name, one in found["services"].items()]
    if not found["open"]:
        closed = f"generation {found['generation']}, which is closed"
        lines.append(f"ledger waits for members of {closed}, to ask for the next")
    silent = [name for name in members if not any(one.startswith(f"{name}.") for one in said)]
    for who, at in sorted(said.items()):
        others = [name for name in sorted(said) if name != who and said[name]["phase"] != at["phase"]]
        whom = ", ".join(others + silent) or "the ledger"
        what = f", and waits for {WAITS[at['phase']]} of {whom}" if at["phase"] in WAITS else ""
        detail = f" ({at['detail']})" if at["detail"] else ""
        lines.append(f"{who} is {at['phase']}{detail} since {at['phase_s'] + at['age_s']:.0f} s{what}")
    return lines + [f"{name} says nothing" for name in silent]
