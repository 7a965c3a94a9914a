"""Random states of a process: torch on the CPU and on CUDA devices, Python's own, and numpy's where it is in use.

As bytes, because they travel to the member that writes the checkpoint. Must not know members or files.
"""

from __future__ import annotations

import io
import random
import sys
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch


def pack(devices: Sequence[torch.device]) -> bytes:
    """Where all of them are now."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device) for device in devices],
        "python": (version, torch.tensor(words, device="cpu"), gauss),
    }
    numpy = _numpy()
    if numpy is not None:
        kind, words, position, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = (
            kind,
            torch.tensor(words.tolist(), device="cpu"),
            int(position),
            int(has_gauss),
            float(cached),
        )
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def unpack(state: bytes, devices: Sequence[torch.device]) -> None:
    """Sets them to where they were."""
    found = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
    torch.set_rng_state(found["cpu"])
    for device, one in zip(devices, found["cuda"], strict=False):
        torch.cuda.set_rng_state(one, device)
    version, words, gauss = found["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    numpy = _numpy()
    if numpy is not None and "numpy" in found:
        kind, words, *rest = found["numpy"]
        numpy.random.set_state((kind, words.tolist(), *rest))


def take_over(states: Sequence[bytes], rank: int, devices: Sequence[torch.device]) -> None:
    """Those of `rank`. A rank that was not there is seeded from the first one's and its own number."""
    if rank < len(states):
        unpack(states[rank], devices)
        return
    seed_all(states[0] + rank.to_bytes(4, "big"))


def diverge(salt: Sequence[object], devices: Sequence[torch.device]) -> None:
    """Where they are now and `salt` say where they go on: equal ones part, and always to the same places."""
    seed_all(pack(devices) + repr(tuple(salt)).encode())


def seed_all(material: bytes) -> None:
    """Seeds all of them from `material`; numpy's only where that is in use."""
    seed = int.from_bytes(blake2b(material, digest_size=8).digest(), "big")
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = _numpy()
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def _numpy() -> Any:
    """numpy, if somebody has imported it and draws from its usual generator."""
    numpy = sys.modules.get("numpy")
    drawn = getattr(numpy, "random", None)
    return numpy if drawn is not None and isinstance(drawn.get_state(), tuple) else None
