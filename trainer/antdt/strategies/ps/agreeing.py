"""What all servers of a generation must have alike, as each says of itself when it begins. Must not know sockets."""

from __future__ import annotations

import logging

from antdt_schemas.errors import Mismatch

from antdt.strategies.ps.wire import Hello

log = logging.getLogger("antdt")

SAME = "All servers must run the same script with the same arguments"


def all_seen(hello: Hello) -> Exception | None:
    """Nobody looks: all servers write into one folder."""
    return None


def unlike(primary: Hello, other: Hello) -> Mismatch | None:
    """Why the primary does not go on with another server.

    First weights are only compared aloud: where a script sets no seed each server draws its own part, and that is as
    good as any; where it loads weights, they should be the same.
    """
    whose = f"of server s{other.part}"
    for name in ("version", "lineage"):
        ours, theirs = getattr(primary, name), getattr(other, name)
        if ours != theirs:
            return Mismatch(f"The {name} {whose}", ours, theirs, "All servers go on from the same checkpoint.")
    if primary.layout != other.layout:
        what = f"The model or the optimizer {whose}"
        return Mismatch(what, primary.layout, other.layout, f"{SAME}: these have other parameters or tables.")
    if primary.stated != other.stated:
        only = [set(primary.stated) - set(other.stated), set(other.stated) - set(primary.stated)]
        ours, theirs = ("; ".join(sorted(some)) or "nothing of it" for some in only)
        return Mismatch(f"What the script states {whose}", ours, theirs, f"{SAME}.")
    if primary.first != other.first:
        log.warning(
            "the script's first weights are others on server s%d: the model begins with a part of each. "
            "torch.manual_seed before the model is made, or one file of weights, makes them the same",
            other.part,
        )
    return None
