"""What a worker holds at a time, as it learns it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from antdt.driving import holds
from antdt.driving.holds import PROBATION, Holds, KernelKills, is_of_the_machine, is_out_of_memory, learn_from_kill
from antdt.host.whereabouts import SHRUNK, Page


def trained(page: Page, samples: int, times: int = PROBATION, stated: int = 0) -> Holds:
    made = Holds(page, stated)
    for _ in range(times):
        made.tries(samples)
        made.passed()
    return made


def test_where_memory_is_out_it_goes_on_with_what_has_passed_before_or_with_half() -> None:
    made = Holds(Page())
    assert made.limit == 0
    for at, then in ((48, 24), (24, 12)):
        made.tries(at)
        assert made.failed() == made.limit == then
    grown = trained(Page(), 32)
    grown.tries(48)
    assert grown.failed() == 32
    grown.tries(1)
    assert grown.failed() == 0, "there is nothing smaller"


def test_it_is_known_in_the_next_life() -> None:
    page = Page()
    made = trained(page, 32)
    made.tries(48)
    made.failed()
    page.clear()
    assert Holds(page).limit == 32
    assert Holds(page, stated=16).limit == 16
    assert Holds(Page(), stated=16).limit == 16


@pytest.mark.parametrize("before", [1, PROBATION])
@pytest.mark.parametrize("passed", [0, 1, PROBATION - 1])
def test_a_kill_soon_after_a_growth_undoes_it(before: int, passed: int) -> None:
    page = Page()
    trained(page, 32, before)
    trained(page, 48, passed).tries(48)
    said = learn_from_kill(page, by_kernel=False)
    assert "soon after its micro-batches grew from 32 samples to 48: it takes 32 at a time" in said
    assert page.numbers[SHRUNK]
    page.clear()
    assert not page.numbers[SHRUNK], "of one life"
    assert Holds(page).limit == 32


def test_a_kill_at_any_other_time_says_nothing_of_memory() -> None:
    page = Page()
    assert learn_from_kill(page, by_kernel=False) == ""
    trained(page, 32, 3)
    assert learn_from_kill(page, by_kernel=False) == "", "its first size"
    trained(page, 32)
    trained(page, 48)
    trained(page, 40).tries(48)
    assert learn_from_kill(page, by_kernel=False) == "", "it has held that for a while"
    assert Holds(page).limit == 0


def test_what_was_tried_and_given_up_unmade_does_not_count_as_held() -> None:
    page = Page()
    trained(page, 32).tries(48)  # the generation ended in the middle
    trained(page, 32)
    Holds(page).tries(48)
    assert learn_from_kill(page, by_kernel=False)


def test_what_may_have_had_another_reason_is_lifted_later_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(holds, "monotonic", lambda: now)
    page = Page()
    trained(page, 32)
    for lasts in (600, 1200, 2400):
        Holds(page).tries(48)
        assert f"for {lasts} s" in learn_from_kill(page, by_kernel=False)
        now += lasts - 1
        assert Holds(page).limit == 32
        now += 2
        assert Holds(page).limit == 0
    Holds(page).tries(48)
    assert "for lack of memory" in learn_from_kill(page, by_kernel=True)
    now += 1e9
    assert Holds(page).limit == 32


def test_the_kernel_is_believed_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, file = 0.0, tmp_path / "vmstat"
    monkeypatch.setattr(holds, "monotonic", lambda: now)
    file.write_text("pgfault 5\noom_kill 2\n")
    kills = KernelKills(file)
    assert not kills.lately()
    file.write_text("pgfault 5\noom_kill 3\n")
    assert kills.lately()
    for _ in range(2):
        now += 10
        kills.look()
    assert not kills.lately(), "long ago"
    assert not KernelKills(tmp_path / "none").lately()
    page = Page()
    Holds(page).tries(32)
    assert "it takes 16 at a time" in learn_from_kill(page, by_kernel=True)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 1 TB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_what_says_that_memory_is_out(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert is_of_the_machine(error)


def test_what_a_machine_says_is_no_samples_fault() -> None:
    assert is_of_the_machine(OSError(errno.ENOSPC, "No space left on device"))
    assert is_of_the_machine(OSError(errno.EMFILE, "Too many open files"))
    for error in (OSError("cannot identify image file"), FileNotFoundError(2, "x"), ValueError("memory"), KeyError(1)):
        assert not is_of_the_machine(error)
