"""The data of the examples: so many samples to train on are read, and no others."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from antdt.examples.digits import load

IMAGE = 28 * 28


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_is_read_as_far_as_it_is_trained_on(tmp_path: Path, packed: bool) -> None:
    pixels = bytes(at % 251 for at in range(6 * IMAGE))
    for part in ("train", "t10k"):
        for name, content in (("images-idx3", b"h" * 16 + pixels), ("labels-idx1", b"h" * 8 + bytes(range(6)))):
            file = tmp_path / f"{part}-{name}-ubyte"
            if packed:
                file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(content))
            else:
                file.write_bytes(content)
    whole, test = load(f"mnist:{tmp_path}")
    some, test_of_some = load(f"mnist:{tmp_path}", 4)
    assert (len(whole), len(test), len(some), len(test_of_some)) == (6, 6, 4, 6)
    assert whole.tensors[1].tolist() == list(range(6))
    assert (whole.tensors[0].reshape(-1) * 255).round().to(torch.uint8).tolist() == list(pixels)
    assert all(torch.equal(one, other[:4]) for one, other in zip(some.tensors, whole.tensors, strict=True))


def test_the_first_digits() -> None:
    (whole, test), (some, test_of_some) = load("digits"), load("digits", 100)
    assert all(torch.equal(one, other[:100]) for one, other in zip(some.tensors, whole.tensors, strict=True))
    assert torch.equal(test.tensors[0], test_of_some.tensors[0])
