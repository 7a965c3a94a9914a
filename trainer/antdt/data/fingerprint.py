"""What a worker's data set is, by a few of its samples: marks that the ledger compares with those of the first worker.

A sample counts by its content, part by part. It is made twice: what differs then is random and is left out, here as by
everybody else who finds so. Samples are made by a process that is forked for it: one that hangs, kills or raises harms
nobody, and neither generators nor open files of this process move. Owns what is taken and what is made of it. Must not
know who compares.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from itertools import islice
from math import inf
from multiprocessing import Pipe
from time import monotonic
from typing import Any, NamedTuple

import torch
from antdt_schemas.errors import UsageError
from antdt_schemas.fingerprint import PLACES_MAX, STREAM, UNKNOWN, mark, places

from antdt.data.identity import ANOTHER_WORKER
from antdt.data.names import keys_of, sample_key
from antdt.data.seeding import seed_sample
from antdt.data.sources import IterableSource, MapSource
from antdt.host.child import in_child

WITHIN_S = 2.0
SLOW_S = 0.5  # more than that, for a sample that does not come
TELLING_MIN = 4  # samples: of fewer, what is random may look as if it were not
PLAIN, KEY_ONLY, RANDOM = 1, 2, 3  # what a mark is made of
KINDS = 100
DIGEST_SIZE = 8
LISTED_MAX = 64
ONCE = "once"

log = logging.getLogger("antdt")


class Part(NamedTuple):
    """kind: type and, of arrays, element type and dimensions. content: its digest; None where it has none."""

    kind: str
    content: bytes | None


Parts = dict[str, Part]


class Divided(NamedTuple):
    """The data set divides itself between workers by this."""

    by: str


class Taken(NamedTuple):
    """One sample, made twice; its name."""

    first: Parts
    second: Parts
    key: str = ""


def fingerprint_of(source: MapSource | IterableSource, samples: int = PLACES_MAX, within_s: float = WITHIN_S) -> bytes:
    """Marks of the keys and of at most so many samples; empty for 0.

    Raises:
        UsageError: a stream that gives other samples each time it is iterated, or to another worker.
    """
    count = min(samples, PLACES_MAX, source.size)
    if count < 1:
        return b""
    needed = min(TELLING_MIN, count)
    if isinstance(source, MapSource) and source.is_tensors:
        samples = len(source.dataset)
        parts = [parts_of(source.dataset[place % samples]) for place in places(source.size)[:count]]
        return b"".join([UNKNOWN, *_marks([Taken(one, one) for one in parts], needed, 0)])
    is_stream = isinstance(source, IterableSource) and not hasattr(source.dataset, "iter_range")
    told = list(_told(source, count, within_s, is_stream))
    taken = [one for one in told if isinstance(one, Taken)]
    keys = next((one for one in told if isinstance(one, bytes)), UNKNOWN)
    if is_stream:
        _refuse_divided([one.by for one in told if isinstance(one, Divided)])
        _refuse_unsteady(taken, ONCE in told)
    return b"".join([keys, *_marks(taken, needed, STREAM if is_stream else 0)])


# -- taking samples, in a process of its own


def _told(source: MapSource | IterableSource, count: int, within_s: float, is_stream: bool) -> Iterator[Any]:
    """What the process says, as far as it comes: the digest of the keys, then samples."""
    here, there = Pipe(duplex=False)

    def tell() -> None:
        torch.set_num_threads(1)
        here.close()
        try:
            taking = _stream if is_stream else _items
            for one in taking(source, count, monotonic() + within_s / (2 if is_stream else 1)):
                there.send(one)
        except Exception as error:  # noqa: BLE001  training will say it, if it matters
            log.debug("samples cannot be compared: %r", error)

    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        child = in_child(tell)
    there.close()
    until = monotonic() + within_s + SLOW_S
    try:
        while here.poll(max(0.0, until - monotonic())):
            yield here.recv()
    except EOFError:
        pass
    finally:
        child.kill()
        child.join()
        here.close()


def _items(source: Any, count: int, until: float) -> Iterator[Any]:
    """Samples at `places`, as a data process would make them."""
    dataset = source.dataset
    yield _mark_of_keys(keys_of(dataset))
    samples = len(dataset) if isinstance(source, MapSource) else source.size  # a sampler's list may be longer
    for place in (found % samples for found in places(source.size)[:count]):
        first, second = _seeded(dataset, place), _seeded(dataset, place)
        yield Taken(first, second, os.path.basename(_key(dataset, place)))
        if monotonic() > until:
            return


def _seeded(dataset: Any, place: int) -> Parts:
    seed_sample(0, 0, place)
    try:
        return parts_of(_sample(dataset, place))
    except Exception:  # noqa: BLE001  whoever trains on it hears of it
        return {}


def _sample(dataset: Any, place: int) -> Any:
    if hasattr(dataset, "iter_range"):
        return next(iter(dataset.iter_range(place, place + 1)))
    many = getattr(dataset, "__getitems__", None)
    return many([place])[0] if many is not None else dataset[place]


def _key(dataset: Any, place: int) -> str:
    try:
        return sample_key(dataset, place)
    except Exception:  # noqa: BLE001  a name is not needed
        return ""


def _stream(source: Any, count: int, until: float) -> Iterator[Any]:
    """The first samples of two iterations, and whether another worker would get others."""
    try:
        first, before = _begun(source, count, until)
    except Exception:
        if not (divided := list(_divided(source, [], set(), count))):
            raise
        yield from divided
        return
    second = source.begin(0)
    if second is first:
        yield ONCE
    made = list[Taken]()
    with source.apart.used():
        for number, sample in enumerate(islice(second, len(before))):
            made.append(Taken(before[number], parts_of(sample)))
            yield made[-1]
    if not made and before:
        yield ONCE
    yield from _divided(source, before, _random_parts(made), count)


def _begun(source: Any, count: int, until: float) -> tuple[Any, list[Parts]]:
    """An iteration and its first samples."""
    begun, out = source.begin(0), []
    with source.apart.used():
        for sample in islice(begun, count):
            out.append(parts_of(sample))
            if monotonic() > until:
                break
    return begun, out


def _divided(source: Any, before: list[Parts], random: set[str], count: int) -> Iterator[Divided]:
    """By what the data set divides itself between workers, if it does: it gives others to a second one of two."""
    for by, another in ANOTHER_WORKER.items():
        try:
            with another():
                there = _begun(source, len(before) or count, inf)[1]
        except Exception:  # noqa: BLE001  it needs more of that than is there: nothing is known
            continue
        if there and (not before or any(_differ(*both, random) for both in zip(before, there, strict=False))):
            yield Divided(by)


def _differ(one: Parts, other: Parts, random: set[str]) -> bool:
    return any(one.get(path) != other.get(path) for path in (one.keys() | other.keys()) - random)


# -- what a sample is


def parts_of(sample: Any) -> Parts:
    """All parts of a sample by their path in it."""
    out: Parts = {}
    _collect(sample, "", out)
    return out


def _collect(value: Any, path: str, out: Parts) -> None:
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            _collect(value[key], f"{path}/{key}", out)
    elif isinstance(value, list | tuple) and len(value) <= LISTED_MAX and not all(map(_is_scalar, value)):
        for index, one in enumerate(value):
            _collect(one, f"{path}/{index}", out)
    else:
        out[path] = _part(value)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | bytes | None)


def _part(value: Any) -> Part:
    try:
        kind, content = _content(value)
    except Exception:  # noqa: BLE001  of a kind that cannot be looked into
        kind, content = type(value).__name__, None
    return Part(kind, None if content is None else blake2b(content, digest_size=DIGEST_SIZE).digest())


def _content(value: Any) -> tuple[str, bytes | None]:
    name = type(value).__name__
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        return f"{value.dtype}/{value.ndim}", f"{tuple(value.shape)}".encode() + flat.view(
            torch.uint8
        ).numpy().tobytes()
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):  # numpy's, without numpy
        whole = repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
        return f"{value.dtype}/{value.ndim}", f"{tuple(value.shape)}".encode() + whole
    if hasattr(value, "tobytes") and hasattr(value, "mode") and hasattr(value, "size"):  # a picture of PIL
        return f"{value.mode}", f"{value.size}".encode() + value.tobytes()
    if isinstance(value, str | os.PathLike) and os.path.isabs(value):
        return name, os.path.basename(value).encode()  # the same file may lie elsewhere on another machine
    if _is_scalar(value) or isinstance(value, list | tuple):
        return name, repr(value).encode()
    return name, None


# -- what is made of it


def _mark_of_keys(keys: Sequence[str]) -> bytes:
    """Of all names in their order, from where they begin to differ: the folder may be another one elsewhere."""
    if not any(keys):
        return UNKNOWN
    low, high = min(keys), max(keys)
    common = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    begin = low.rfind("/", 0, common) + 1
    out = blake2b(digest_size=32)
    for key in keys:
        out.update(key[begin:].encode(errors="surrogateescape") + b"\0")
    return mark(PLAIN, out.digest())


def _marks(taken: Sequence[Taken], needed: int, stream: int) -> list[bytes]:
    """One for each sample; UNKNOWN for what could not be made. needed: samples, for their content to count."""
    made = [one for one in taken if one.first and one.second]
    random, everywhere, kind = _random_parts(made), _everywhere(made), PLAIN
    if random:
        kind = RANDOM + blake2b(repr(sorted(random)).encode(), digest_size=1).digest()[0] % KINDS
    out = []
    for one in taken:
        if one.first and one.second and len(made) >= needed:
            parts = [
                (path, part.kind, b"" if path in random else part.content)
                for path, part in sorted(one.first.items())
                if path in everywhere or path not in random
            ]
            out.append(mark(stream + kind, repr((one.key, parts)).encode()))
        else:
            out.append(mark(stream + KEY_ONLY, one.key.encode()) if one.key else UNKNOWN)
    return out


def _random_parts(made: Iterable[Taken]) -> set[str]:
    """Paths of parts that were not the same both times, in any sample."""
    out = set()
    for one in made:
        for path in one.first.keys() | one.second.keys():
            part = one.first.get(path)
            if part is None or part.content is None or part != one.second.get(path):
                out.add(path)
    return out


def _everywhere(made: Sequence[Taken]) -> set[str]:
    """Paths that every sample has."""
    draws = [parts.keys() for one in made for parts in (one.first, one.second)]
    return set.intersection(*map(set, draws)) if draws else set()


def _refuse_divided(by: Sequence[str]) -> None:
    """Each worker would skip what others hold, of a part that is all that it has."""
    if by:
        raise UsageError(
            f"The data set divides its samples between workers by itself, by {' and '.join(by)}: it must give all of "
            "them to every worker, and the Agent shares them out. Leave the split out (webdataset: nodesplitter=None; "
            "datasets: no split_dataset_by_node)."
        )


def _refuse_unsteady(made: Sequence[Taken], is_once: bool) -> None:
    """A stream must give the same samples in every iteration, to every worker: position k is its k-th one."""
    what_to_do = (
        "It must give the same samples in the same order in every iteration and to every worker, without shuffling or "
        "splitting by itself."
    )
    if is_once:
        raise UsageError(f"The data set can be iterated only once: a second iteration goes on. {what_to_do}")
    random = _random_parts(made)
    steady = {path for one in made for path in one.first if path not in random}
    telling = [path for path in steady if len({one.first.get(path) for one in made}) > 1]
    if random and not telling and len(made) >= TELLING_MIN:
        raise UsageError(
            f"The data set gives other samples each time it is iterated. {what_to_do} If only what is done to them is "
            "random, let each sample contain its number or name (or set AgentOptions(fingerprint_samples=0))."
        )
