"""The order of an epoch: a seeded permutation of sample positions that is never stored.

A balanced Feistel network over the next even power of two, walked along its cycle until the result falls below the
number of samples (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Any position maps to its sample
and back in constant time and memory, so 10^9 samples cost nothing. This is the scalar reference; trainers vectorise it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

ROUNDS = 6
FACTOR = 0x45D9F3B
WORD = 0xFFFFFFFF

FEISTEL = "feistel-1"
SEQUENTIAL = "sequential"
SAMPLED = "sampled-1"  # as a sampler of the script draws it; behind a slash, the digest of its lists


@dataclass(frozen=True, slots=True)
class Permutation:
    """A bijection of range(size). `keys` are one 32-bit word a round; `half_bits` is half the width of the domain."""

    size: int
    half_bits: int
    keys: tuple[int, ...]

    @classmethod
    def of(cls, seed: int, epoch: int, size: int) -> Permutation:
        """The order of one epoch of a data set of `size` samples."""
        material = blake2b(f"{FEISTEL}/{seed}/{epoch}".encode(), digest_size=4 * ROUNDS).digest()
        keys = tuple(int.from_bytes(material[4 * i : 4 * i + 4], "big") for i in range(ROUNDS))
        return cls(size, max(1, ((size - 1).bit_length() + 1) // 2), keys)

    def __call__(self, position: int) -> int:
        """Sample index at a position, 0 <= position < size."""
        assert 0 <= position < self.size, (position, self.size)
        mask = (1 << self.half_bits) - 1
        while True:
            left, right = position >> self.half_bits, position & mask
            for key in self.keys:
                left, right = right, left ^ (mix(right + key) & mask)
            position = (left << self.half_bits) | right
            if position < self.size:
                return position

    def position(self, sample: int) -> int:
        """The position of a sample, 0 <= sample < size: the inverse, back along the same cycle."""
        assert 0 <= sample < self.size, (sample, self.size)
        mask = (1 << self.half_bits) - 1
        while True:
            left, right = sample >> self.half_bits, sample & mask
            for key in reversed(self.keys):
                left, right = right ^ (mix(left + key) & mask), left
            sample = (left << self.half_bits) | right
            if sample < self.size:
                return sample


@dataclass(frozen=True, slots=True)
class Order:
    """Which sample is where in every epoch of a job, as far as that follows from what its records say. Where a sampler
    draws the order, a position is a place in a list that only workers have.
    """

    name: str
    seed: int
    size: int

    @property
    def is_known(self) -> bool:
        """Whether the methods may be called."""
        return self.name in (FEISTEL, SEQUENTIAL)

    def sample(self, epoch: int, position: int) -> int:
        """The index of the sample at a position of an epoch."""
        if self.name == SEQUENTIAL:
            return position
        assert self.name == FEISTEL, self.name
        return Permutation.of(self.seed, epoch, self.size)(position)

    def position(self, epoch: int, sample: int) -> int:
        """Where a sample is in an epoch."""
        if self.name == SEQUENTIAL:
            return sample
        assert self.name == FEISTEL, self.name
        return Permutation.of(self.seed, epoch, self.size).position(sample)


def mix(x: int) -> int:
    """A 32-bit finaliser (after Mueller's integer hash)."""
    x &= WORD
    x = ((x ^ (x >> 16)) * FACTOR) & WORD
    x = ((x ^ (x >> 16)) * FACTOR) & WORD
    return x ^ (x >> 16)
