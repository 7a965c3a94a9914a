"""What a data set draws from, seeded for one sample: whoever makes it, and however often, makes the same."""

from __future__ import annotations

import random
import sys
from hashlib import blake2b

import torch


def seed_sample(seed: int, epoch: int, position: int) -> None:
    """For the sample at this position."""
    digest = blake2b(f"{seed}/{epoch}/{position}".encode(), digest_size=8).digest()
    seed_generators(int.from_bytes(digest, "little"))


def seed_generators(value: int) -> None:
    """Python's, torch's, and numpy's only where it is in use."""
    random.seed(value)
    torch.default_generator.manual_seed(value % (1 << 63))
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(value % (1 << 32))
