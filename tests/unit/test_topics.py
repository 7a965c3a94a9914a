"""A topic as a data set, with a broker in memory: what is read, kept, left out, and trained on."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from antdt import Agent, RecordsLost, Topic, UsageError
from antdt.agent import AgentOptions
from antdt.data.records import Record
from antdt.data.topics import FAULTS_IN_A_ROW, TopicSource
from antdt.worker.session.reading import Chunk
from antdt_schemas.ranges import Range

from tests.helpers.topic_memory import MemoryTopic, full


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing speaks of a job."""
    strip(monkeypatch)


def strip(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that nobody has launched."""
    for name in [name for name in os.environ if name.startswith("ANTDT_") or name in ("RANK", "WORLD_SIZE")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("antdt.begun._in_a_job", [])
    monkeypatch.setattr("antdt.host.told._at_s", [])


def number(record: Record) -> torch.Tensor:
    """The decoder."""
    assert record.value is not None
    return torch.tensor([float(record.value)])


def trained(topic: Topic, batch_size: int = 8, **words: Any) -> list[list[float]]:
    """What the script of a worker without a job gets, batch by batch."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    agent = Agent(model, torch.optim.SGD(model.parameters(), lr=1e-6), topic, batch_size=batch_size, **words)
    out = []
    for x in agent:
        out.append(x.squeeze(1).tolist())
        agent.step(model(x).pow(2).mean())
    return out


def test_every_record_of_every_epoch_is_trained_on_once() -> None:
    memory = full(3, 40)
    batches = trained(Topic("memory", number, broker=memory), epochs=2)
    seen = sorted(v for batch in batches for v in batch)
    assert seen == sorted([float(v) for v in range(120)] * 2) and memory.closed
    assert {len(batch) for batch in batches} <= {8, *range(1, 9)} and len(batches) >= 30


def test_offsets_without_a_record_are_no_samples_and_steps_have_as_many_as_they_shall() -> None:
    there = {0: {at: str(at).encode() for at in range(0, 400, 7)}, 1: {}}
    batches = trained(Topic("memory", number, broker=MemoryTopic(there, {0: 500, 1: 300}, most=20)))
    assert sorted(v for batch in batches for v in batch) == [float(at) for at in range(0, 400, 7)]
    assert [len(batch) for batch in batches[:-1]] == [8] * (len(batches) - 1)


def test_a_gap_of_millions_of_offsets_is_passed_over_at_once() -> None:
    memory = MemoryTopic({0: {at: str(at).encode() for at in (5, 30_000_000)}}, {0: 50_000_000})
    assert [v for batch in trained(Topic("memory", number, broker=memory)) for v in batch] == [5.0, 30_000_000.0]
    assert len(memory.asked) < 10


def test_micro_batches_are_of_records() -> None:
    places = [*range(40), *range(40, 400, 31)]  # dense first, and sparse then
    there = {0: {at: str(at).encode() for at in places}}
    options = AgentOptions(micro_batch_size_max=3)
    batches = trained(Topic("memory", number, broker=MemoryTopic(there, {0: 500}, most=20)), options=options)
    assert sorted(v for batch in batches for v in batch) == [float(at) for at in places]
    assert {len(batch) for batch in batches[:-3]} == {2, 3}, "steps of 8"


def test_a_topic_of_nothing_but_markers_ends_without_a_batch() -> None:
    assert trained(Topic("memory", number, broker=MemoryTopic({0: {}}, {0: 5000}))) == []


def test_a_decoder_may_say_that_a_record_is_no_sample_and_fail_at_some() -> None:
    memory = full(1, 30)
    memory.records[0][4], memory.records[0][11] = b"", b"what"

    def decode(record: Record) -> torch.Tensor | None:
        return number(record) if record.value else None

    batches = trained(Topic("memory", decode, broker=memory))
    assert sorted(v for batch in batches for v in batch) == [float(v) for v in range(30) if v not in (4, 11)]


def test_a_decoder_that_fails_at_everything_is_the_scripts_mistake() -> None:
    memory = full(1, 100)
    memory.records[0] = dict.fromkeys(range(100), b"no number")
    with pytest.raises(
        UsageError, match=f"each of the first {FAULTS_IN_A_ROW} records, at memory/0@15 with ValueError"
    ):
        trained(Topic("memory", number, broker=memory))


def test_what_retention_has_removed_is_an_error() -> None:
    memory = full(1, 100)
    memory.begins[0] = 0

    def decode(record: Record) -> torch.Tensor:
        memory.begins[0] = 90
        return number(record)

    memory.most = 10
    with pytest.raises(RecordsLost, match="memory/0@"):
        trained(Topic("memory", decode, broker=memory))


def test_no_more_is_kept_than_there_is_room_for() -> None:
    memory = full(1, 3000)
    for at in range(3000):
        memory.records[0][at] = b"0" * 5000 + str(at).encode()
    memory.most = 50
    most = [0]

    def decode(record: Record) -> torch.Tensor:
        most[0] = max(most[0], record.offset - len(seen))
        return number(record)

    seen: list[float] = []
    model = torch.nn.Linear(1, 1)
    topic = Topic("memory", decode, broker=memory, cache_mb=1)
    agent = Agent(model, torch.optim.SGD(model.parameters(), lr=0.0), topic, batch_size=50)
    for x in agent:
        seen += x.squeeze(1).tolist()
        agent.step(model(x).pow(2).mean())
    assert sorted(seen) == [float(at) for at in range(3000)]
    assert most[0] < 2 * (1 << 20) / 5000 + 200


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Topic("t", decode=None), "decode"),  # type: ignore[arg-type]
        (lambda: Topic("t", number, cache_mb=0), "cache_mb"),
        (lambda: trained(Topic("t", number, broker=MemoryTopic({0: {}}, {0: 0}))), "no records"),
        (lambda: trained(Topic("t", number, bounded=False, broker=full(1, 9))), "needs a job"),
    ],
)
def test_what_cannot_be_is_said(make: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    "words", [{"sampler": [0]}, {"num_workers": 2}, {"size": 3}, {"options": AgentOptions(order="steps")}]
)
def test_order_and_loaders_are_not_for_topics(words: dict[str, object]) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer, topic = torch.optim.SGD(model.parameters(), lr=0.1), Topic("t", number, broker=full(1, 9))
    with pytest.raises(UsageError):
        Agent(model, optimizer, topic, batch_size=4, **words)  # type: ignore[arg-type]


def source(memory: MemoryTopic) -> TopicSource:
    return TopicSource(Topic("memory", number, broker=memory), None, None)


def test_of_a_chunk_is_said_what_is_not_there_and_what_cannot_be_decoded() -> None:
    there = {0: {10: b"10", 12: b"x", 13: b"13", 17: b"17", 25: b"25"}}
    mine = source(MemoryTopic(there, {0: 30}))
    found = mine.read(Chunk(5, 1, 0, 110, 10, 0, 10))
    assert found.end == 120 and list(found.vacant) == [(111, 1), (114, 3), (118, 2)]
    assert [(one.position, one.key) for one in found.faulty] == [(112, "memory/0@12")]
    assert mine.name_of(0, 113) == "memory/0@13"
    assert mine.count([Range(5, 1, 0, 110, 10)]) == 3 and mine.count([Range(6, 1, 0, 110, 10)]) == 0
    assert mine.peek([Range(0, 0, 0, 110, 8)]).tolist() == [[10.0], [13.0], [17.0]], "whatever lease it is in"
    assert mine.fetch([Range(5, 1, 0, 110, 4)]).tolist() == [[10.0], [13.0]]
    kept = mine.size_kept
    assert mine.fetch([Range(5, 1, 0, 114, 6)]).tolist() == [[17.0]]
    assert mine.size_kept < kept
    mine.keep(set())
    assert mine.size_kept == 0 and mine.name_of(0, 113) == ""


def test_there_is_room_until_so_much_is_kept_and_again_once_it_is_used() -> None:
    memory = MemoryTopic({0: {at: b"1".ljust(5000) for at in range(300)}}, {0: 300})
    mine = TopicSource(Topic("memory", number, broker=memory, cache_mb=1), None, None)
    assert mine.has_room
    mine.read(Chunk(5, 1, 0, 0, 300, 0, 0))
    assert not mine.has_room and mine.size_kept > 300 * 5000
    assert len(mine.fetch([Range(5, 1, 0, 0, 300)])) == 300
    assert mine.has_room
