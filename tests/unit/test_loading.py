"""Data processes without a broker: the same samples as without them, and what happens when something goes wrong."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.context import BaseContext, ForkProcess, ForkServerContext, SpawnContext
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from antdt.data.loading import DataProcessDied, InThread, Loader, LoadingOptions, SampleFailed, loader_of
from antdt.data.loading.packing import pack, unpack
from antdt.data.sources import source_of
from antdt.host.child import in_child
from antdt_schemas.errors import Unavailable, UsageError
from antdt_schemas.ranges import Range
from torch.utils.data import TensorDataset, get_worker_info

from tests.helpers.loading import SIZE, Augmented, Numbers, Stream, batches, forked, gone, same

Make = Callable[..., Loader | InThread]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes loaders, and ends them."""
    made: list[Loader | InThread] = []

    def loader(dataset: Any, workers: int, seed: int = 5, size: int | None = None, **options: Any) -> Loader | InThread:
        source = source_of(dataset, seed=seed, size=size, collate=list)
        made.append(loader_of(source, workers, seed, LoadingOptions(**options)))
        return made[-1]

    yield loader
    for one in made:
        one.close()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["contiguous", "channels last"])
def test_a_batch_of_whole_tensors_is_what_an_index_gives(order: tuple[int, ...]) -> None:
    """Also its strides: a convolution of other strides gives other bits."""
    tensor = torch.arange(5 * 4 * 4 * 3).reshape(5, 4, 4, 3).permute(order)
    source = source_of(TensorDataset(tensor), shuffle=False)
    (found,) = source.fetch([Range(0, 0, 0, 1, 3)])
    wanted = tensor[torch.arange(1, 4)]
    assert torch.equal(found, wanted) and found.stride() == wanted.stride()


@pytest.mark.parametrize(("workers", "chunk"), [(1, 0), (3, 0), (2, 7)])
def test_batches_are_the_same_whoever_loads_them(make: Make, workers: int, chunk: int) -> None:
    plain, loader = make(Numbers(), 0), make(Numbers(), workers, chunk_size=chunk)
    for epoch in range(2):
        pairs = zip(batches(plain, (16, 1, 50, 33), epoch), batches(loader, (16, 1, 50, 33), epoch), strict=True)
        assert all(same(a, b) for a, b in pairs)


class Native:
    """Stands for what lives by the threads of the process that made it: a client of Kafka, a process group."""

    taken_apart: list[int] = []

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        self.taken_apart.append(os.getpid())


@pytest.fixture
def garbage() -> Iterator[None]:
    """Something that is garbage, and not collected yet."""
    gc.disable()
    Native()
    yield
    gc.enable()
    gc.collect()
    assert Native.taken_apart == [os.getpid()], "the parent did not collect it either"
    Native.taken_apart.clear()


class Collecting(Numbers):
    def __getitem__(self, index: int) -> Any:
        gc.collect()
        return len(Native.taken_apart)


@pytest.mark.usefixtures("garbage")
def test_a_data_process_does_not_collect_what_its_parent_made(make: Make) -> None:
    """It would take apart what has no threads here: wait for ever, or crash."""
    assert next(batches(make(Collecting(), 1), (4,))) == [0, 0, 0, 0]


@pytest.mark.usefixtures("garbage")
def test_no_other_child_does() -> None:
    child = in_child(lambda: sys.exit(gc.collect() and len(Native.taken_apart)))
    child.join(20)
    assert (child.exitcode, gc.isenabled()) == (0, False)


def test_collated_batches_are_the_same_too(make: Make) -> None:
    class Pairs(Numbers):
        def __getitem__(self, index: int) -> Any:
            return torch.full((2, 3), float(index)), index

    one, two = (loader_of(source_of(Pairs(), seed=1), n, 1, LoadingOptions()) for n in (0, 2))
    try:
        assert all(same(a, b) for a, b in zip(batches(one, (24,)), batches(two, (24,)), strict=True))
    finally:
        two.close()


def test_what_is_drawn_depends_on_the_sample_only(make: Make) -> None:
    """Whatever the number of processes, the sizes of steps and of chunks; and another epoch draws something else."""

    def drawn(workers: int, sizes: tuple[int, ...], epoch: int = 0, **options: Any) -> list[Any]:
        return [s for batch in batches(make(Augmented(), workers, **options), sizes, epoch) for s in batch]

    first = drawn(1, (32,))
    assert drawn(3, (7, 60), chunk_size=5) == first
    assert len({s[1] for s in first}) == SIZE
    assert {s[1] for s in drawn(2, (32,), epoch=1)}.isdisjoint(s[1] for s in first)
    assert [s[0] for s in first] != sorted(s[0] for s in first)


def test_samples_by_range(make: Make) -> None:
    one, two = make(Stream(), 1, size=SIZE), make(Stream(), 2, size=SIZE, chunk_size=9)
    first = [s for b in batches(one, (16,)) for s in b]
    assert [s[0] for s in first] == list(range(SIZE))
    assert [s for b in batches(two, (50, 3)) for s in b] == first
    with pytest.raises(SampleFailed, match=r"gave 0 samples for positions \[300, 304\), its size was stated as 310"):
        list(batches(make(Stream(), 1, size=310, chunk_size=4), (50,), size=310))


def test_whole_tensors_need_no_process(make: Make) -> None:
    source = source_of(TensorDataset(torch.arange(9)))
    assert isinstance(loader_of(source, 4, 0, LoadingOptions()), InThread)


def opened() -> set[str]:
    """What this process has open; without connections, which others in it may make and lose meanwhile."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/self/net", name).read_text().splitlines()]
    far = {f"socket:[{row[9]}]" for row in rows}
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found - far


def test_what_is_not_wanted_any_more_is_dropped(make: Make) -> None:
    """A release, a regroup, a roll-back: the next list says so, whatever was being loaded."""
    before = len(opened())
    loader, plain = make(Numbers(), 2), make(Numbers(), 0)
    assert isinstance(loader, Loader)
    loader.expect([(0, 0, 200)], 32)
    held = sum(job.piece.length for job in loader._jobs)
    assert 96 <= held <= 128, "a step and two more, whole chunks"
    loader.expect([(0, 40, 8), (0, 120, 80)], 32)
    assert all(j.piece.start >= 120 or j.piece.start <= 47 < j.piece.stop or j.piece.start <= 40 for j in loader._jobs)
    loader.expect((), 32)
    assert not loader._jobs
    assert not loader.pool._waiting
    loader.expect([(1, 0, 32)], 32)
    wanted = [Range(1, 1, 1, 0, 32)]
    assert same(loader.fetch(wanted), plain.fetch(wanted))
    descriptors = len(opened())
    for _ in range(3):
        loader.expect([(0, 0, 200)], 32)
        loader.fetch([Range(1, 1, 0, 0, 32)])
        loader.expect((), 32)
    loader.expect([(0, 299, 1)], 1)
    loader.fetch([Range(1, 1, 0, 299, 1)])
    assert len(opened()) <= descriptors + 1, "nothing leaks"
    loader.expect([(0, 0, 200)], 32)
    loader.pool.receive(10)
    loader.close()
    assert len(opened()) <= before, "and nothing is left"


def test_what_has_come_is_looked_at_without_waiting_and_stays_there(make: Make) -> None:
    loader, plain = make(Numbers(), 2), make(Numbers(), 0)
    assert isinstance(loader, Loader)
    wanted = [Range(1, 1, 0, 32, 32)]
    assert plain.peek(wanted) is None, "it would run code of the data set"
    assert loader.peek(wanted) is None, "nobody was told to load it"
    loader.expect([(0, 0, 96)], 32)
    until = time.monotonic() + 30
    while (found := loader.peek(wanted)) is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    assert same(found, plain.fetch(wanted)) and same(loader.fetch(wanted), found)
    whole = InThread(source_of(TensorDataset(torch.arange(300)), seed=5))
    assert torch.equal(whole.peek(wanted)[0], whole.fetch(wanted)[0])


def test_more_than_links_hold(make: Make) -> None:
    """Neither side may wait for the other to listen."""
    loader = make(Numbers(1200), 1, chunk_size=1, prefetch_factor=1)
    (first, *_) = [len(b) for b in batches(loader, (400,), size=1200)]
    assert first == 400


def test_the_data_sets_own_words_are_shown(make: Make) -> None:
    def spoil(index: int) -> None:
        if index == 17:
            raise KeyError("no such picture")

    loader = make(Numbers(spoil=spoil), 2, chunk_size=16)
    source = source_of(Numbers(), seed=5)
    at = source.indices(0, 0, SIZE).tolist().index(17)  # type: ignore[union-attr]
    loader.expect([(0, at - at % 16, 16)], 16)
    if at % 16:
        assert len(loader.fetch([Range(1, 1, 0, at - at % 16, at % 16)])) == at % 16, "those before it are good"
    with pytest.raises(SampleFailed) as caught:
        loader.fetch([Range(1, 1, 0, at, 1)])
    said = str(caught.value)
    assert f"Loading sample 17 (position {at} of epoch 0) failed" in said
    assert 'raise KeyError("no such picture")' in said, "the line where it happened"
    assert "Traceback" in said


def test_samples_that_cannot_travel_are_named(make: Make) -> None:
    class Odd(Numbers):
        def __getitem__(self, index: int) -> Any:
            return lambda: index

    with pytest.raises(SampleFailed, match=r"cannot be passed on to the trainer(?s:.*)pickle"):
        next(batches(make(Odd(), 1), (4,)))


def test_a_data_set_that_gives_too_few(make: Make) -> None:
    class Few(Numbers):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return indices[1:]

    with pytest.raises(SampleFailed, match="gave 3 samples where it was asked for 4"):
        next(batches(make(Few(), 1), (4,)))


def test_a_process_that_is_killed_is_named(make: Make) -> None:
    loader = make(Numbers(spoil=lambda _: os.kill(os.getpid(), signal.SIGKILL)), 1)
    with pytest.raises(DataProcessDied, match=r"Data process 0 \(pid \d+\) was ended by SIGKILL while .* sample \d+"):
        next(batches(loader, (4,)))


def test_a_process_that_leaves_is_named(make: Make) -> None:
    loader = make(Numbers(spoil=lambda _: os._exit(3)), 1)
    with pytest.raises(DataProcessDied, match="ended with status 3"):
        next(batches(loader, (4,)))


def test_waiting_has_a_bound(make: Make) -> None:
    loader = make(Numbers(spoil=lambda _: time.sleep(60)), 1, timeout_s=0.1)
    assert isinstance(loader, Loader)
    with pytest.raises(Unavailable, match=r"nothing came within 0\.1 s"):
        next(batches(loader, (4,)))
    pids = loader.pool.pids
    loader.close()
    assert gone(pids), "whatever they are doing"


def test_worker_init_fn_and_worker_info(make: Make) -> None:
    class Informed(Numbers):
        def __getitem__(self, index: int) -> Any:
            info = get_worker_info()
            return info.id, info.num_workers, info.dataset is self, self.begun

    def begin(number: int) -> None:
        get_worker_info().dataset.begun = f"begun {number}"

    found = {s for b in batches(make(Informed(), 2, worker_init_fn=begin), (16,)) for s in b}
    assert found == {(0, 2, True, "begun 0"), (1, 2, True, "begun 1")}

    def fail(number: int) -> None:
        raise OSError("no disk")

    with pytest.raises(SampleFailed, match=r"worker_init_fn failed in data process 0(?s:.*)OSError: no disk"):
        next(batches(make(Numbers(), 1, worker_init_fn=fail), (4,)))


@pytest.mark.parametrize(
    ("dataset", "workers", "options", "said"),
    [
        (Numbers(), -1, {}, "num_workers=-1"),
        (Numbers(), 1, {"prefetch_factor": 0}, "prefetch_factor is at least 1"),
        (Numbers(), 1, {"multiprocessing_context": "fax"}, "'fax': this system has"),
        (Numbers(spoil=lambda _: 1), 1, {"multiprocessing_context": "spawn"}, "cannot be passed on to a process"),
        (iter(range(9)), 2, {}, r"unless it has iter_range\(start, stop\)"),
    ],
)
def test_what_cannot_work_is_said(make: Make, dataset: Any, workers: int, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make(dataset, workers, size=9, **options)


class Passed(ForkProcess):
    """Gets what it would get from spawn or forkserver, pickled, and is forked: those import torch for 1.5 s."""

    def start(self) -> None:
        """The link is left as it is: passing that on is Python's part."""
        link, *rest = self._args  # type: ignore[attr-defined]
        self._target, rest = pickle.loads(ForkingPickler.dumps((self._target, rest)))  # type: ignore[has-type]
        assert rest[-1] == (), "whoever is not forked has no foreign links"
        self._args = link, *rest
        super().start()


@pytest.mark.parametrize("context", [SpawnContext, ForkServerContext])
def test_processes_that_are_not_forked_from_the_loop(
    make: Make, monkeypatch: pytest.MonkeyPatch, context: type[BaseContext]
) -> None:
    monkeypatch.setattr(context, "Process", Passed)
    method = context().get_start_method()
    one, two = (make(Augmented(), 2, multiprocessing_context=m, worker_init_fn=abs) for m in ("fork", method))
    assert list(batches(two, (50,))) == list(batches(one, (50,)))


def _train(loader: Loader, told: int) -> None:
    os.write(told, " ".join(map(str, loader.pool.pids)).encode() + b"\n")
    for _ in batches(loader, (4,)):
        os.write(told, b".")


def test_nobody_is_left_when_the_trainer_is_killed(tmp_path: Path) -> None:
    def act(told: int) -> None:
        slow = Numbers(spoil=lambda index: time.sleep(0.02 if index % 2 else 60))
        loader = loader_of(source_of(slow, shuffle=False, collate=list), 3, 0, LoadingOptions(chunk_size=1))
        assert isinstance(loader, Loader)
        _train(loader, told)

    pid, told = forked(act, tmp_path / "log")
    pids = [int(p) for p in os.read(told, 100).split()]
    assert len(pids) == 3
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert gone(pids, 5)


def test_signals_to_the_group_are_the_trainers_business(tmp_path: Path) -> None:
    """SIGTERM: it still has its samples, to finish the step. Ctrl-C: one traceback, and nobody is left."""

    def act(told: int) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        slow = Numbers(spoil=lambda _: time.sleep(0.005))
        loader = loader_of(source_of(slow, collate=list), 3, 0, LoadingOptions())
        assert isinstance(loader, Loader)
        try:
            while True:
                _train(loader, told)
        finally:
            loader.close()

    pid, told = forked(act, tmp_path / "log")
    line = os.read(told, 100).split()[:3]
    os.killpg(pid, signal.SIGTERM)
    for _ in range(90):
        assert os.read(told, 1) in b". 0123456789\n"
    os.killpg(pid, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    said = (tmp_path / "log").read_text()
    assert said.count("Traceback") == 1
    assert "KeyboardInterrupt" in said
    assert gone([int(p) for p in line], 5)


def test_everything_travels_bit_by_bit() -> None:
    random.seed(1)
    big = torch.randn(40, 30)
    dtypes = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64]
    values: list[Any] = [
        *(torch.ones(shape, dtype=d) for d in dtypes for shape in ((), (0, 3), (5,), (40, 30))),
        big.t(),
        big[::2, 1:],
        torch.randn(300, dtype=torch.complex64).conj(),
        np.arange(1000).reshape(10, 100),
        np.array("text"),
        ("x", 3, None, {"k": [b"bytes" * 500]}),
    ]
    assert same(unpack(pack(values)), values)
    again = unpack(pack([big, big]))
    assert again[0] is again[1]
    again[0][0, 0] = 7.0
    assert big[0, 0] != 7.0
    parameter = torch.nn.Parameter(torch.ones(2))
    assert unpack(pack(parameter)).requires_grad
