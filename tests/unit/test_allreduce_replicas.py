"""Replicas that differ end the run, named: whatever made them differ, and before anything hides it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from antdt.files import checkpoint
from antdt.files.model_files import ModelFiles
from antdt.strategies.allreduce import AllReduce, AllReduceReplica, ReplicasDiffer, fingerprint
from antdt.strategies.allreduce.composition import outlier
from antdt.strategies.allreduce.state import parse
from antdt.worker.session import Session, Where
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.helpers.allreduce import each, generation_of, mean_loss, replica, take
from tests.unit.test_allreduce_gradient import Normed
from tests.unit.test_session import SPEC

OFTEN = AllReduce(128, 512, compare_every=1)
Change = Callable[[AllReduceReplica], None]


def learn(member: AllReduceReplica, samples: int = 2) -> Any:
    take(member, samples)
    if samples:
        generator = torch.Generator().manual_seed(member.step_number)
        x = torch.rand(samples, 6, generator=generator, dtype=torch.float64)
        member.backward(mean_loss(member, x, x[:, :3]), samples)
    return member.step()


def all_raise(members: list[AllReduceReplica], act: Callable[[AllReduceReplica], Any], match: str) -> None:
    """Everybody, not only whoever is behind."""

    def one(rank: int) -> None:
        with pytest.raises(ReplicasDiffer, match=match):
            act(members[rank])

    each(len(members), one)
    each(len(members), lambda rank: members[rank].abort())


def clamp(member: AllReduceReplica) -> None:
    with torch.no_grad():
        member.model.head.weight[1, 3] += 1e-9


def thaw(member: AllReduceReplica) -> None:
    with torch.no_grad():
        member.model.frozen.weight.mul_(2)


@pytest.mark.parametrize("compositions", ["inline", "gather"])
@pytest.mark.parametrize("samples", [(2, 2, 2), (2, 2, 0), (0, 0, 0)])
def test_a_parameter_that_one_worker_changes_ends_the_run_of_all(samples: tuple[int, ...], compositions: Any) -> None:
    options = AllReduce(128, 512, compositions=compositions)
    members = [replica(options=options) for _ in samples]
    with generation_of(members):
        each(len(members), lambda rank: learn(members[rank]))
        clamp(members[-1])
        wanted = (
            r"After step 1, .* parameter head\.weight\[1, 3\] differs: expected .* \(rank 0\), found .* \(rank \d\)"
        )
        all_raise(members, lambda m: learn(m, samples[members.index(m)]), wanted)
    assert {member.step_number for member in members} == {1}


def test_a_schedule_that_one_worker_has_by_hand_is_named_after_the_first_step_that_it_spoils() -> None:
    members = [replica() for _ in range(2)]

    def halve(optimizer: Any, *_: Any) -> None:
        if members[1].step_number == 6:
            optimizer.param_groups[0]["lr"] = 0.05

    members[1].optimizer.register_step_post_hook(halve)
    with generation_of(members):
        for _ in range(7):  # beyond the steps in which everything is compared
            each(2, lambda rank: learn(members[rank]))
        wanted = r"After step 7, .*'lr' of parameter group 0.*0\.1 \(rank 0\), found 0\.05 \(rank 1\).*scheduler=sch"
        all_raise(members, learn, wanted)


def test_parameter_groups_that_one_worker_adds_are_named() -> None:
    members = [replica() for _ in range(2)]
    rest = [dict(m.optimizer.param_groups[0]) for m in members]
    with generation_of(members):
        for member, group in zip(members, rest, strict=True):
            moved = member.optimizer.param_groups[0]["params"].pop()
            if member is members[1]:
                member.optimizer.add_param_group({"params": [moved], "lr": group["lr"]})
        each(2, lambda rank: learn(members[rank]))
        all_raise(members, learn, r"number of parameter groups differs: expected 1 \(rank 0\), found 2 \(rank 1\)")


def test_schedulers_in_hooks_and_learning_rates_of_numpy_are_equal() -> None:
    numpy = pytest.importorskip("numpy")
    members = [replica(options=OFTEN) for _ in range(2)]

    def set_lr(member: AllReduceReplica, kind: Any) -> None:
        member.optimizer.param_groups[0]["lr"] = kind(0.1 / (1 + member.step_number))

    for member, kind in zip(members, (float, numpy.float64), strict=True):
        member.optimizer.register_step_pre_hook(lambda *_, m=member, k=kind: set_lr(m, k))
    with generation_of(members):
        for rank_without in (0, 1, 0):
            each(2, lambda rank, r=rank_without: learn(members[rank], 2 * (rank != r)))
    assert type(members[1].optimizer.param_groups[0]["lr"]) is numpy.float64
    assert type(parse(members[1].snapshot()).optimizer["param_groups"][0]["lr"]) is float, "it can be read back"


def test_frozen_parameters_are_compared_when_a_generation_begins_and_before_a_checkpoint() -> None:
    members = [replica() for _ in range(2)]
    with generation_of(members):
        each(2, lambda rank: learn(members[rank]))
        thaw(members[0])
        each(2, lambda rank: learn(members[rank]))  # not in every step: they may be huge
        all_raise(members, lambda m: m.verify(), r"frozen parameter frozen\.weight\[0, 0\]")


def test_buffers_are_compared_as_the_last_step_left_them() -> None:
    members = [replica(build=Normed, options=OFTEN) for _ in range(2)]
    with generation_of(members):
        each(2, lambda rank: learn(members[rank]))
        members[0].model(torch.rand(3, 6, dtype=torch.float64))  # a forward between two steps is reduced with the next
        each(2, lambda rank: learn(members[rank]))
        members[0].optimizer.register_step_post_hook(lambda *_: members[0].model.norm.running_var.add_(1))
        each(2, lambda rank: learn(members[rank]))
        all_raise(members, learn, r"buffer norm\.running_var\[0\]")


@pytest.mark.parametrize("every", [16, 0])
def test_a_difference_is_found_within_the_bound_that_was_asked_for(every: int) -> None:
    members = [replica(options=AllReduce(128, 512, compare_every=every)) for _ in range(2)]
    with generation_of(members):
        for _ in range(5):
            each(2, lambda rank: learn(members[rank]))
        clamp(members[1])
        for _ in range(11):
            each(2, lambda rank: learn(members[rank]))
        assert members[0].step_number == 16
        if every:
            all_raise(members, learn, "After step 16")
        else:
            each(2, lambda rank: learn(members[rank]))


def test_an_adoption_does_not_hide_that_two_members_differ() -> None:
    members = [replica() for _ in range(2)]
    with generation_of(members):
        for _ in range(6):
            each(2, lambda rank: learn(members[rank]))
        clamp(members[0])
    everybody = [*members, replica(seed=2)]
    with generation_of(everybody):
        all_raise(everybody, lambda m: m.adopt(0), r"After step 6, .*head\.weight\[1, 3\].*\(rank 0\).*\(rank 1\)")


def test_the_final_file_does_not_hide_that_a_member_had_another_model(tmp_path: Path) -> None:
    members = [replica(build=Normed) for _ in range(2)]
    with generation_of(members):
        each(2, lambda rank: learn(members[rank]))
    checkpoint.write(tmp_path, "step-1.pt", members[0].save)
    file = tmp_path / "step-1.pt"
    assert members[1].holds(file), "the very same"
    clamp(members[1])
    with pytest.raises(ReplicasDiffer, match=r"head\.weight\[1, 3\] .*\(step-1\.pt\), found .*\(here\)"):
        members[1].holds(file)
    assert not members[1].void, "nothing was overwritten"
    members[1].lineage = b"another history."
    assert not members[1].holds(file), "what it has to load"
    assert not replica(build=Normed).holds(file), "before any step"


def test_who_has_made_the_last_step_has_no_second_model_in_memory_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, load = list[torch.Tensor](), torch.load

    def loaded(*args: Any, **named: Any) -> Any:
        found = load(*args, **named)
        read.extend(found["model"].values())
        read.extend(value for of in found["optimizer"]["state"].values() for value in of.values())
        return found

    monkeypatch.setattr(torch, "load", loaded)
    members = [replica(build=Normed) for _ in range(2)]
    files = [ModelFiles(tmp_path, "job", member) for member in members]
    with generation_of(members):
        each(2, lambda rank: learn(members[rank]))
    session = Session("w0", "w0.0", SPEC, Where("h", 1))
    session.generation = 1
    event = files[0].write(session, [])
    assert event is not None
    assert files[0].take_final(event.file) == ""
    assert not read, "who has written it reads nothing"
    assert files[1].take_final(event.file).endswith("UTC")
    in_file = sum(one.nbytes for one in read if is_of_file(one, tmp_path / event.file))
    assert in_file == sum(one.nbytes for one in read) > 0, "who only compares has no copy of it"
    read.clear()
    late = replica(build=Normed, seed=2)
    assert ModelFiles(tmp_path, "job", late).take_final(event.file).endswith("UTC")
    assert late.step_number == 1
    assert read, "who is behind loads it"
    assert not any(is_of_file(one, tmp_path / event.file) for one in read), "and it keeps none of the file"


def is_of_file(tensor: torch.Tensor, path: Path) -> bool:
    """Whether the kernel has this memory as a part of that file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, name = line.split()
        low, high = (int(one, 16) for one in place.split("-"))
        if low <= tensor.data_ptr() < high:
            return name == str(path)
    return False


def test_who_finds_a_difference_says_so_although_the_others_have_ended() -> None:
    members = [replica() for _ in range(3)]
    with generation_of(members) as generations:
        each(3, lambda rank: learn(members[rank]))
        clamp(members[1])

        found = [threading.Event(), threading.Event()]
        for member, event in zip(members[:2], found, strict=True):
            parts = member._replica.parts
            member._replica.parts = lambda p=parts, e=event: (e.set(), p())[1]  # type: ignore[method-assign,misc]

        def vanish() -> list[Any]:
            # Once they have everybody's rows, too: what is shown is that they then need nobody.
            assert all(event.wait(10) for event in found)
            generations[2].leave()
            return []

        members[2]._replica.parts = vanish  # type: ignore[method-assign]

        def ends(rank: int) -> None:
            with pytest.raises(ReplicasDiffer, match=r"After step 1, replicas are not equal: the model differs"):
                learn(members[rank])
            generations[rank].leave()  # as its process would

        each(3, ends)


# -- fingerprints


def test_one_bit_anywhere_changes_a_fingerprint() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool):
        tensors = [torch.zeros(3, dtype=dtype), torch.zeros(70_000, dtype=dtype), torch.zeros((), dtype=dtype)]
        before = fingerprint.of_tensors(tensors)
        seen = {before}
        for index, at in ((0, 2), (1, 0), (1, 69_999), (2, 0)):
            changed = [tensor.clone() for tensor in tensors]
            bits = changed[index].reshape(-1).view(torch.uint8)
            bits[at * changed[index].element_size()] ^= 1
            seen.add(fingerprint.of_tensors(changed))
        assert len(seen) == 5
        assert fingerprint.of_tensors([tensor.clone() for tensor in tensors]) == before


@given(st.lists(st.integers(0, 9_999), min_size=2, max_size=6, unique=True))
def test_signs_that_flip_together_do_not_cancel(places: list[int]) -> None:
    flat = torch.ones(10_000)
    flipped = flat.clone()
    flipped[places] = -1.0
    assert fingerprint.of_tensors([flat]) != fingerprint.of_tensors([flipped])
    swapped = flat.clone()
    swapped[places[0]] = flat[places[1]] = 2.0
    assert fingerprint.of_tensors([flat]) != fingerprint.of_tensors([swapped])


def test_negative_zero_and_layouts() -> None:
    assert fingerprint.of_tensors([torch.tensor([0.0])]) != fingerprint.of_tensors([torch.tensor([-0.0])])
    square = torch.rand(5, 5)
    assert fingerprint.of_tensors([square]) == fingerprint.of_tensors([square.t().contiguous().t()])
    big = torch.rand(fingerprint.BATCH_SIZE_BYTES // 2 + 3)  # of several batches
    assert fingerprint.of_tensors([big]) != fingerprint.of_tensors([big.flip(0)])
    assert fingerprint.of_tensors([big]) == fingerprint.of_tensors([big.clone()])


def test_an_outlier_is_named_against_most() -> None:
    assert outlier([5, 5, 5]) is None
    assert outlier([0, 5, 0]) is None
    assert outlier([0, 0]) is None
    assert outlier([7, 5, 5]) == (1, 0)
    assert outlier([5, 0, 7]) == (0, 2)


def test_a_compiled_model_trains_and_is_compared() -> None:
    def build() -> nn.Module:
        return torch.compile(nn.Linear(6, 3), backend="eager")

    members = [replica(build=build, options=OFTEN) for _ in range(2)]
    for member in members:  # compiling takes no threads
        member.model(torch.rand(2, 6, dtype=torch.float64))
    with generation_of(members):
        for _ in range(2):
            each(2, lambda rank: learn(members[rank]))
    assert [name for name, _ in members[0].model.named_parameters()] == ["_orig_mod.weight", "_orig_mod.bias"]
    torch.testing.assert_close(*(next(m.model.parameters()) for m in members), rtol=0, atol=0)
