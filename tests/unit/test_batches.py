"""Fixed global batches: the one arithmetic of members, ledger and audit."""

from __future__ import annotations

import random

import pytest
from antdt_schemas import batches
from antdt_schemas.batches import DROP, EVEN, SMALL, Cursor, Layout, Layouts, Piece


def places(layout: Layout, tail: tuple[Piece, ...] = ()) -> list[tuple[tuple[Piece, ...], Cursor]]:
    """Every step, and where each ends."""
    found, at = [], Cursor()
    while (step := layout.step(at, tail)) is not None:
        found.append(step)
        at = step[1]
    return found


@pytest.mark.parametrize("last", [EVEN, SMALL, DROP])
@pytest.mark.parametrize("epochs", [1, 3])
def test_steps_follow_each_other_and_never_overlap_an_epoch(last: str, epochs: int) -> None:
    for samples in range(1, 40):
        for batch_size in range(1, 12):
            if last == DROP and samples < batch_size:
                continue
            layout = Layout(samples, epochs, batch_size, last)
            steps = places(layout)
            assert len(steps) == layout.steps_per_epoch * epochs
            due = [(epoch, position) for epoch in range(epochs) for position in range(layout.epoch_length)]
            taken = [(p.epoch, p.start + k) for pieces, _ in steps for p in pieces for k in range(p.length)]
            assert taken == due, (samples, batch_size)
            sizes = {batches.total(pieces) for pieces, _ in steps}
            assert max(sizes) <= batch_size
            if last == DROP:
                assert sizes == {batch_size} and layout.epoch_length > samples - batch_size
            if last == EVEN:
                assert max(sizes) - min(sizes) <= 1


def test_even_is_memoryless_and_equals_the_closed_form() -> None:
    for samples in range(1, 200):
        for batch_size in range(1, 60):
            count = -(-samples // batch_size)
            starts = [pieces[0].start for pieces, _ in places(Layout(samples, 1, batch_size, EVEN))]
            assert starts == [s * (samples // count) + min(s, samples % count) for s in range(count)]


@pytest.mark.parametrize("last", [EVEN, SMALL, DROP])
def test_a_batch_size_may_change_anywhere_and_no_position_is_left_out_or_repeated(last: str) -> None:
    rng = random.Random(last)
    for _ in range(1_500):
        samples, epochs = rng.randint(1, 40), rng.randint(1, 3)
        most = samples if last == DROP else 12
        steps = rng.choice((0, 0, rng.randint(1, 15)))
        layouts = Layouts(Layout(samples, max(epochs, steps), rng.randint(1, most), last, steps))
        at, made, generation, ends = Cursor(), 0, 1, dict[int, int]()
        while True:
            if rng.random() < 0.3:
                generation += 1
                layouts = layouts.resized(generation, rng.randint(1, most))
            layout = layouts.of(generation)
            ahead, left = list(layout.ahead(at, made)), layout.steps_ahead(at, made)
            assert sum(count for _, count in ahead) == left
            step = layout.step(at, (), made)
            if step is None:
                break
            (piece,), behind = step
            assert (piece.epoch, piece.start) == layout.due(at, made) == tuple(ahead[0][0][:2])
            assert piece.start == ends.get(piece.epoch, 0) and 0 < piece.length <= layout.batch_size
            ends[piece.epoch], at, made = piece.start + piece.length, behind, made + 1
            assert layout.steps_ahead(at, made) == left - 1
        assert (left, made) == (0, steps or made) and sorted(ends) == list(range(len(ends)))
        whole = list(ends.values())[:-1] if steps else list(ends.values())
        assert steps or len(ends) == epochs
        assert all(samples - end < most if last == DROP else end == samples for end in whole)


def test_the_tail_comes_behind_the_last_epoch_in_its_order() -> None:
    layout, tail = Layout(6, 2, 4, EVEN), (Piece(1, 4, 1), Piece(0, 0, 2), Piece(0, 5, 1), Piece(1, 0, 1))
    steps = places(layout, tail)[4:]
    assert steps == [
        ((Piece(1, 4, 1), Piece(0, 0, 2), Piece(0, 5, 1)), Cursor(2, 4)),
        ((Piece(1, 0, 1),), Cursor(2, 5)),
    ]
    assert places(layout, tail[:2])[4:] == [((Piece(1, 4, 1), Piece(0, 0, 2)), Cursor(2, 3))]


def test_parts_are_in_proportion_and_nobody_has_less_than_the_least() -> None:
    assert batches.split(64, [32, 16, 16]) == [32, 16, 16]
    assert batches.split(63, [32, 16, 16]) == [31, 16, 16]
    assert batches.split(8, [100, 1, 1, 1]) == [5, 1, 1, 1]
    assert batches.split(8, [100, 1, 1, 1], least=2) == [2, 2, 2, 2]
    assert batches.split(3, [1, 1, 1, 1]) == [0, 1, 1, 1]
    assert batches.split(10, [0, 0]) == [5, 5]
    rng = random.Random(3)
    for _ in range(3_000):
        weights = [rng.choice((0, 1, 5, rng.randint(1, 400))) for _ in range(rng.randint(1, 9))]
        size, least = rng.randint(0, 500), rng.choice((1, 1, 2, 8))
        parts = batches.split(size, weights, least)
        assert sum(parts) == size and min(parts) >= min(least, size // len(weights)), (size, weights, least, parts)
        if sum(weights):
            for weight, part in zip(weights, parts, strict=True):
                assert part <= max(weight * size / sum(weights), least) + 1, (size, weights, least, parts)


def test_pieces_are_sets_of_positions_in_an_order() -> None:
    rng = random.Random(4)

    def some(most: int) -> list[Piece]:
        found: list[Piece] = []
        for _ in range(rng.randint(0, most)):
            piece = Piece(rng.randint(0, 1), rng.randint(0, 20), rng.randint(1, 6))
            found += batches.without((piece,), found)
        return found

    def listed(pieces: list[Piece] | tuple[Piece, ...]) -> list[tuple[int, int]]:
        return [(p.epoch, p.start + k) for p in pieces for k in range(p.length)]

    for _ in range(2_000):
        one, other = some(4), some(5)
        assert listed(batches.without(one, other)) == [x for x in listed(one) if x not in listed(other)]
        assert sorted(listed(batches.within(one, other))) == sorted(set(listed(one)) & set(listed(other)))
        start, length = rng.randint(0, 20), rng.randint(0, 12)
        assert listed(batches.cut(one, start, length)) == listed(one)[start : start + length]
        assert batches.pieces_of(batches.flat_of(one)) == tuple(one)
        sizes = batches.split(batches.total(one), [rng.randint(1, 9) for _ in range(3)])
        assert [x for i in range(3) for x in listed(batches.share(one, sizes, i))] == listed(one)
