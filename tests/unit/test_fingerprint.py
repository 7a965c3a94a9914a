"""Which data: the same samples have the same marks whatever is random in them, and others have others."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from antdt.data.fingerprint import fingerprint_of, parts_of
from antdt.data.names import keys_of, sample_key
from antdt.data.sources import source_of
from antdt_schemas.errors import UsageError
from antdt_schemas.fingerprint import MARK_SIZE, UNKNOWN, first_difference, places
from antdt_schemas.ranges import Range
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset, get_worker_info

SIZE = 200


class Items:
    """Pictures with labels; `change` is done to each."""

    def __init__(self, order: list[int] | None = None, change: Callable[[torch.Tensor], Any] = lambda x: x) -> None:
        self.order, self.change = order or list(range(SIZE)), change
        self.calls = 0

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        self.calls += 1
        number = self.order[index]
        return {"x": self.change(torch.full((3, 4), float(number))), "y": number % 10}


class Named(Items):
    """Has the names of its samples."""

    def __init__(self, root: str, order: list[int] | None = None) -> None:
        super().__init__()
        self.samples = [(f"{root}/class{i % 3}/{i}.png", i % 3) for i in order or range(SIZE)]

    def __getitem__(self, index: int) -> Any:
        raise OSError("not now")


class Stream(IterableDataset):  # type: ignore[misc]
    def __init__(self, numbers: Callable[[], Iterator[Any]]) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[Any]:
        return iter(self.numbers())


def of(dataset: Any, **options: Any) -> bytes:
    size = SIZE if isinstance(dataset, Iterator | IterableDataset) else None
    return fingerprint_of(source_of(dataset, size=size), **options)


def difference(one: Any, other: Any) -> Any:
    return first_difference(of(one), of(other), SIZE)


def flipped(x: torch.Tensor) -> torch.Tensor:
    return -x if random.SystemRandom().random() < 0.5 else x


RANDOM: dict[str, Callable[[torch.Tensor], Any]] = {
    "torch": lambda x: x + torch.rand(x.shape),
    "numpy": lambda x: x.numpy() * numpy.random.rand(),
    "python": lambda x: x * random.random(),
    "its own": flipped,
    "another shape": lambda x: x[:, : random.SystemRandom().randint(1, 4)],
    "more parts": lambda x: [x] * random.SystemRandom().randint(1, 4),
    "of no known kind": lambda x: object(),
}


def reversed_order() -> list[int]:
    return list(range(SIZE))[::-1]


@pytest.mark.parametrize("kind", sorted(RANDOM))
def test_what_is_random_in_samples_hides_neither_that_they_are_the_same_nor_that_they_are_others(kind: str) -> None:
    one, same, other = Items(change=RANDOM[kind]), Items(change=RANDOM[kind]), Items(reversed_order(), RANDOM[kind])
    random.random()
    assert difference(one, same) is None
    if kind != "more parts":  # what comes and goes need not be the same for both: then nothing can be said
        assert difference(one, other).place in places(SIZE)


def test_another_order_is_told_by_the_first_sample_that_is_another_one() -> None:
    order = list(range(SIZE))
    third = places(SIZE)[2]
    order[third], order[(third + 1) % SIZE] = order[(third + 1) % SIZE], order[third]
    assert difference(Items(), Items(order)).place == third
    whole = TensorDataset(torch.arange(SIZE))
    assert difference(whole, TensorDataset(torch.arange(SIZE))) is None
    assert difference(whole, TensorDataset(torch.arange(SIZE).flip(0))).place == 0


def test_nothing_of_it_happens_in_this_process(capfd: pytest.CaptureFixture[str]) -> None:
    dataset, states = Items(), (random.getstate(), torch.get_rng_state())
    assert of(dataset) != b""
    assert dataset.calls == 0
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("fault", ["kills", "hangs", "raises"])
def test_a_sample_that_kills_hangs_or_raises_costs_its_own_mark_and_what_comes_after(fault: str) -> None:
    def bad(x: torch.Tensor) -> torch.Tensor:
        if float(x[0, 0]) == places(SIZE)[6]:
            if fault == "kills":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "hangs":
                time.sleep(60)
            raise ValueError
        return x

    started = time.monotonic()
    found = of(Items(change=bad), within_s=0.3)
    assert time.monotonic() - started < 30, "it has a bound"
    whole = of(Items())
    assert found[: 7 * MARK_SIZE] == whole[: 7 * MARK_SIZE]
    if fault == "raises":
        assert found[7 * MARK_SIZE : 8 * MARK_SIZE] == UNKNOWN
        assert found[8 * MARK_SIZE :] == whole[8 * MARK_SIZE :]
    else:
        assert len(found) == 7 * MARK_SIZE


def test_slow_samples_are_fewer_and_too_few_are_none() -> None:
    def slowly(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.2)
        return x

    found = of(Items(change=slowly), within_s=0.5)
    assert set(found) == {0}, "one or two samples say nothing of what is random"
    assert of(Items(), samples=0) == b""


def test_names_say_that_the_order_is_another_one_wherever_the_files_lie() -> None:
    shuffled = list(range(SIZE))
    shuffled[150], shuffled[151] = 151, 150  # no sample that is looked at
    assert not {150, 151} & set(places(SIZE))
    assert difference(Named("/data/a"), Named("/mnt/other/b")) is None
    found = difference(Named("/data/a"), Named("/data/a", shuffled))
    assert found is not None and found.place is None
    assert difference(Named("/data/a"), Items()) is None, "one has no content, the other no names"


def test_names_are_found_through_parts_of_data_sets() -> None:
    whole = Named("/data")
    part = Subset(whole, [5, 9, 2])
    both = ConcatDataset([part, whole])
    assert sample_key(part, 1) == "/data/class0/9.png"
    assert [sample_key(both, i) for i in (0, 2, 3)] == [f"/data/class{i % 3}/{i}.png" for i in (5, 2, 0)]
    assert keys_of(both)[:4] == [f"/data/class{i % 3}/{i}.png" for i in (5, 9, 2, 0)]
    assert keys_of(ConcatDataset([part, Items()])) == keys_of(Items()) == []
    assert sample_key(Items(), 3) == ""

    class Own(Items):
        def sample_key(self, index: int) -> str:
            return f"row {index}"

    assert sample_key(Subset(Own(), [7]), 0) == "row 7"


class Counting(IterableDataset):  # type: ignore[misc]
    """Another order in each iteration, from a seed that it counts up."""

    def __init__(self) -> None:
        self.iterations = 0

    def __iter__(self) -> Iterator[Any]:
        self.iterations += 1
        return iter(random.Random(self.iterations).sample(range(SIZE), SIZE))


UNSTEADY: dict[str, Callable[[], Any]] = {
    "of the system": lambda: Stream(lambda: iter(random.SystemRandom().sample(range(SIZE), SIZE))),
    "a buffer": lambda: Stream(lambda: iter([(1.0, i) for i in random.SystemRandom().sample(range(50), 50)])),
    "numpy's own": lambda: Stream(lambda: iter(numpy.random.default_rng().permutation(SIZE))),
    "counts": Counting,
}


@pytest.mark.parametrize("kind", sorted(UNSTEADY))
def test_a_stream_that_shuffles_by_other_random_numbers_each_time_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match="gives other samples each time it is iterated"):
        of(UNSTEADY[kind]())


class Epochs(IterableDataset):  # type: ignore[misc]
    """Another order in each epoch that it is told, as streams of `datasets` have it."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return iter(random.Random(self.epoch).sample(range(SIZE), SIZE))


def buffered() -> Iterator[int]:
    """A buffer that is shuffled while it is read, by all generators there are."""
    buffer = []
    for number in range(SIZE):
        buffer.append(number)
        if len(buffer) > 40:
            at = (random.randrange(41) + int(torch.randint(41, ())) + numpy.random.randint(41)) % 41
            yield buffer.pop(at)
    random.shuffle(buffer)
    yield from buffer


def by_processes() -> Iterator[int]:
    """Divides itself between data processes, as every stream does that is read by several."""
    info = get_worker_info()
    return itertools.islice(range(SIZE), info.id if info else 0, None, info.num_workers if info else 1)


STEADY: dict[str, Callable[[], Any]] = {
    "random": lambda: Stream(lambda: iter(random.sample(range(SIZE), SIZE))),
    "torch": lambda: Stream(lambda: iter(torch.randperm(SIZE).tolist())),
    "a buffer": lambda: Stream(buffered),
    "epochs": Epochs,
    "data processes": lambda: Stream(by_processes),
    "seeded": lambda: Stream(lambda: iter(random.Random(3).sample(range(SIZE), SIZE))),
}


@pytest.mark.parametrize("kind", sorted(STEADY))
@pytest.mark.parametrize("workers", [1, 3])
def test_a_stream_that_shuffles_is_the_same_for_all_workers_and_after_a_death(kind: str, workers: int) -> None:
    sources = [source_of(STEADY[kind](), size=SIZE, seed=5, collate=list) for _ in range(workers)]
    marks, chance, epochs = set(), random.Random(1), list[list[int]]()
    for number, source in enumerate(sources):
        random.seed(number), torch.manual_seed(number), numpy.random.seed(number)
        marks.add(fingerprint_of(source))
    assert len(marks) == 1 and b"" not in marks
    for epoch in (0, 1, 0, 1):
        seen = []
        for start in range(0, SIZE, 16):
            stop = min(SIZE, start + 16)
            cuts = sorted(chance.randrange(start, stop + 1) for _ in range(workers - 1))
            for source, low, high in zip(sources, [start, *cuts], [*cuts, stop], strict=True):
                seen += source.fetch([Range(0, 0, epoch, low, high - low)]) if high > low else []
                random.random(), torch.rand(()), numpy.random.rand()  # as a loop does
        assert sorted(seen) == list(range(SIZE))
        epochs.append(seen)
    assert epochs[0] == epochs[2] and epochs[1] == epochs[3], "begun again"
    assert (epochs[0] == epochs[1]) == (kind in ("data processes", "seeded"))


def test_what_can_be_iterated_only_once_is_refused() -> None:
    numbers = iter(range(SIZE))
    with pytest.raises(UsageError, match="iterated only once"):
        of(Stream(lambda: numbers))
    with pytest.raises(UsageError, match="iterated only once"):
        of(i for i in range(SIZE))
    assert next(numbers) == 0, "not by us"


def by_rank(rank: Callable[[], tuple[int, int]]) -> Callable[[], Any]:
    def numbers() -> Iterator[int]:
        number, count = rank()
        return itertools.islice(range(2 * SIZE), number, None, count)

    return lambda: Stream(numbers)


def group() -> tuple[int, int]:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if there else (0, 1)


DIVIDED: dict[str, tuple[Callable[[], Any], str]] = {
    "by variables": (
        by_rank(lambda: (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))),
        "by RANK and WORLD_SIZE: it must",
    ),
    "by what is not there": (
        by_rank(lambda: (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))),
        "by RANK and WORLD_SIZE: it must",
    ),
    "by a group": (by_rank(group), r"by torch\.distributed: it must"),
    "by either": (
        by_rank(lambda: group() if group()[1] > 1 else (int(os.environ.get("RANK", "0")), 2)),
        r"by RANK and WORLD_SIZE and torch\.distributed: it must",
    ),
}


@pytest.mark.parametrize("kind", sorted(DIVIDED))
def test_a_stream_that_divides_itself_between_workers_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    split, said = DIVIDED[kind]
    with pytest.raises(UsageError, match=said):
        of(split())
    monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="divides its samples between workers by itself"):
        of(split())
    assert not torch.distributed.is_initialized()


def test_streams_that_differ_are_told_by_their_first_sample() -> None:
    assert difference(*(Stream(lambda n=n: iter(range(n, n + SIZE))) for n in (0, 1))).place == 0
    whole = Stream(lambda: iter(range(SIZE)))
    assert difference(whole, Stream(lambda: iter(range(SIZE)))) is None


def test_a_stream_whose_samples_are_changed_at_random_is_told_by_what_stays() -> None:
    def stream(first: int) -> Stream:
        return Stream(lambda: ((torch.rand(3), i) for i in range(first, first + SIZE)))

    assert difference(stream(0), stream(0)) is None
    assert difference(stream(0), stream(1)).place == 0


def test_a_stream_of_ranges_is_looked_at_everywhere() -> None:
    class Ranges:
        def __init__(self, stop: int) -> None:
            self.stop = stop

        def __len__(self) -> int:
            return SIZE

        def __iter__(self) -> Iterator[int]:
            raise AssertionError("by ranges")

        def iter_range(self, start: int, stop: int) -> Iterator[int]:
            return (i if i < self.stop else -i for i in range(start, stop))

    assert difference(Ranges(SIZE), Ranges(SIZE)) is None
    assert difference(Ranges(SIZE), Ranges(SIZE - 1)).place == SIZE - 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float16)),
        (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        (numpy.zeros(2), numpy.ones(2)),
        (numpy.array(["a"], dtype=object), numpy.array(["b"], dtype=object)),
        (list(range(999)), list(range(1, 1000))),
        ("text", "other"),
        (b"x", b"y"),
        ({"a": [torch.zeros(1)]}, {"a": [torch.ones(1)]}),
        ((1, None), (2, None)),
        ("/here/a.png", "/here/b.png"),
        (Path("/here/a.png"), Path("/here/b.png")),
    ],
)
def test_parts_count_by_what_is_in_them(one: Any, other: Any) -> None:
    assert parts_of(one) == parts_of(one) != parts_of(other)
    assert all(part.content is not None for part in parts_of(one).values())


def test_where_a_file_lies_is_not_what_it_is() -> None:
    assert parts_of("/here/a.png") == parts_of("/there/a.png")
