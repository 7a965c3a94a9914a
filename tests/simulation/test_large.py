"""A job of many workers: it forms, loses some of them, and goes on."""

from __future__ import annotations

from tests.simulation.large import Large, Size


def test_a_job_of_many_workers_forms_loses_some_and_ends_with_every_sample_in_its_model_once() -> None:
    """The judge says so, at every entry and in the end."""
    size = Size(workers=64, steps=40, lost=10, lost_at=20)
    world = Large(size)
    world.run()
    state = world.judge.fold.state
    assert state is not None and state.done is not None
    assert (state.members.generation, len(state.members.group)) == (2, size.workers - size.lost)
    assert state.shards.committed_total == size.workers * size.steps
    assert world.counts["lost"] == size.lost
    assert world.counts["rolled_back"] == 0, "who is left holds every step that is committed"
