"""Who comes with other data or other settings is told which, and what to do."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from antdt_schemas import records
from antdt_schemas.fingerprint import UNKNOWN, mark, places
from antdt_schemas.records import Status
from antdt_streams.ledger.core.others import DATA, LAUNCH, MOVING, SETTINGS, difference

from tests.helpers.ledger import SPEC, Bench

TOLD = {
    "samples": (99, "Not the data of this job: samples (the job has 100, this worker 99). Train on the same data"),
    "batch_size": (16, "Not the settings of this job: batch_size (the job has 8, this worker 16). Take the job's"),
    "epochs": (5, "Not the settings of this job: epochs (the job has 1, this worker 5)."),
    "dataset_digest": (b"\1" * 16, f"Not the data of this job: dataset_digest (the job has {'00' * 16}"),
    "order": ("feistel-1", "Not the data of this job: order (the job has 'sequential', this worker 'feistel-1')."),
}


def join(spec: records.JobSpec) -> records.Join:
    return records.Join("worker", "h", 1, "n", "", 0, spec)


def fingerprint(*marks: bytes) -> bytes:
    return b"".join(marks)


@pytest.mark.parametrize("field", sorted(TOLD))
def test_what_differs_is_named_with_both_values_and_what_to_do(field: str) -> None:
    value, said = TOLD[field]
    other: Any = replace(SPEC, **{field: value})
    bench = Bench()
    reply = bench.say("w0.0", join(other))
    assert reply.status is Status.REFUSED
    assert reply.reason.startswith(said)


def test_data_and_settings_are_told_apart() -> None:
    said = difference(SPEC, replace(SPEC, samples=7, seed=3))
    assert said.index("Not the data") < said.index("samples") < said.index("Not the settings") < said.index("seed")


def test_a_sampler_that_draws_another_list_is_named() -> None:
    job, worker = (replace(SPEC, order=f"sampled-1/{digest}") for digest in ("11", "22"))
    said = difference(job, worker)
    assert "(the job has 'sampled-1/11', this worker 'sampled-1/22'): the sampler draws another list here" in said
    assert "sampler" not in difference(SPEC, worker)


def test_every_field_of_a_job_is_compared_or_left_out_on_purpose() -> None:
    assert {f.name for f in fields(records.JobSpec)} == {*DATA, *SETTINGS, *LAUNCH, *MOVING, "fingerprint"}
    assert not difference(SPEC, replace(SPEC, workers_min=9, shard_size=7))


def test_the_first_sample_that_is_another_one_is_named() -> None:
    same, here, there = mark(1, b"same"), mark(1, b"here"), mark(1, b"there")
    job = replace(SPEC, fingerprint=fingerprint(UNKNOWN, same, same, here, here))
    worker = replace(SPEC, fingerprint=fingerprint(UNKNOWN, same, same, there, there))
    said = difference(job, worker)
    assert f"sample {places(100)[2]} is another one here (the job has {here.hex()}, this worker {there.hex()})" in said
    assert len(said) < 300, "the ledger cuts it"
    stream = [replace(SPEC, fingerprint=fingerprint(UNKNOWN, mark(200, x), mark(200, x))) for x in (b"a", b"b")]
    assert "sample 0 is another one here" in difference(*stream)
    keys = [replace(SPEC, fingerprint=mark(1, x)) for x in (b"a", b"b")]
    assert "the names of its samples are others, or in another order" in difference(*keys)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"", fingerprint(UNKNOWN, mark(1, b"a"))),
        (fingerprint(UNKNOWN, UNKNOWN), fingerprint(UNKNOWN, mark(1, b"a"))),
        (fingerprint(UNKNOWN, mark(1, b"a")), fingerprint(UNKNOWN, mark(2, b"b"))),
        (fingerprint(UNKNOWN, mark(1, b"a")), fingerprint(UNKNOWN, mark(1, b"a"), mark(1, b"more time"))),
    ],
    ids=["an older version", "nothing known", "made of something else", "less time"],
)
def test_what_one_of_them_does_not_know_is_not_held_against_the_other(one: bytes, other: bytes) -> None:
    assert not difference(replace(SPEC, fingerprint=one), replace(SPEC, fingerprint=other))
    assert not difference(replace(SPEC, fingerprint=other), replace(SPEC, fingerprint=one))


def test_places_are_the_same_for_all_and_lie_in_the_data() -> None:
    for samples in (1, 2, 5, 31, 33, 10**9):
        found = places(samples)
        assert found == places(samples)
        assert len(set(found)) == len(found) >= min(samples, 16)
        assert {0, samples - 1} <= set(found)
        assert all(0 <= place < samples for place in found)


def test_a_finished_job_says_what_is_wanted_else() -> None:
    bench = Bench()
    bench.state.done = "final.pt"
    reply = bench.say("w0.0", join(SPEC))
    assert (reply.status, reply.reason) == (Status.END, "")
    reply = bench.say("w0.1", join(replace(SPEC, epochs=3)))
    assert (reply.status, reply.file) == (Status.OVER, "final.pt")
    assert "epochs (the job has 1, this worker 3)" in reply.reason
