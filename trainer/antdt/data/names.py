"""What a data set itself calls its samples. For people only, and to compare data sets: nothing is found by a name."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Subset

# Where data sets keep the names of their samples, in order: a list of strings, or of tuples that begin with one.
NAMES = ("samples", "imgs", "files", "paths", "filenames", "file_paths", "file_list", "image_paths", "img_paths")


def name_of(dataset: Any, index: int) -> str:
    """The `sample_key`, or nothing where the data set fails at it."""
    try:
        return sample_key(dataset, index)
    except Exception:  # noqa: BLE001  the data set's own code, and a name is for people only
        return ""


def sample_key(dataset: Any, index: int) -> str:
    """What the data set itself calls a sample: by its method `sample_key(index)`, or by its list of names, also through
    a Subset or a ConcatDataset. Empty where it has no name for it.
    """
    own = getattr(dataset, "sample_key", None)
    if callable(own):
        return str(own(index))
    if isinstance(dataset, Subset):
        return sample_key(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        part = bisect_right(dataset.cumulative_sizes, index)
        return sample_key(dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0))
    named = _names(dataset)
    return _name(named[index]) if named is not None else ""


def keys_of(dataset: Any) -> list[str]:
    """The names of all samples, in order, where the data set has them in a list; else none."""
    if isinstance(dataset, Subset):
        whole = keys_of(dataset.dataset)
        return [whole[index] for index in dataset.indices] if whole else []
    if isinstance(dataset, ConcatDataset):
        parts = [keys_of(part) for part in dataset.datasets]
        return [key for part in parts for key in part] if all(parts) else []
    return [_name(one) for one in _names(dataset) or ()]


def _names(dataset: Any) -> Sequence[Any] | None:
    for attribute in NAMES:
        found = getattr(dataset, attribute, None)
        if isinstance(found, list | tuple) and len(found) == len(dataset) > 0 and _name(found[0]):
            return found
    return None


def _name(entry: Any) -> str:
    first = entry[0] if isinstance(entry, list | tuple) and entry else entry
    return str(first) if isinstance(first, str | os.PathLike) else ""
