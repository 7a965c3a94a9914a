"""The rules of topics as training data, each with a piece of our code that keeps it, and what notices its absence."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from antdt.data.topics import TopicSource
from antdt.hand import Hand
from antdt.worker.session.reading import ReadLeases
from antdt_streams.ledger.core import reading
from antdt_streams.ledger.core.samples import Samples
from antdt_streams.ledger.core.shards import Shards
from antdt_streams.proof.coverage import Coverage

from tests.helpers.ledger import Bench
from tests.mutations.mutate import Check, Edit, Mutation
from tests.properties import test_topic_reading
from tests.unit import test_read_leases, test_topic_ledger, test_topics

SEEDS = range(8)


def read() -> Check:
    """Workers that read topics of a few seeds."""

    def check() -> None:
        whole = test_topic_reading.test_each_record_is_in_the_model_once_and_the_audit_knows_what_is_none
        with tempfile.TemporaryDirectory() as folder:
            for seed in SEEDS:
                whole(seed, False, Path(folder))

    return check


def bench(check: Callable[[Bench], None]) -> Check:
    """A unit test of the ledger that wants its bench."""
    return lambda: check(test_topic_ledger.members())


def alone(check: Check) -> Check:
    """A unit test of a script without a job."""

    def within() -> None:
        with pytest.MonkeyPatch.context() as patch:
            test_topics.strip(patch)
            check()

    return within


MUTATIONS = (
    Mutation(
        "topics",
        "what was found may be taken before the ledger knows",
        (Edit(ReadLeases.was_read, "elif not any(", "if True or not any("),),
        read(),
    ),
    Mutation(
        "topics",
        "a lease goes on behind what cannot be decoded",
        (Edit(ReadLeases._known, "held.end = progress.read = end", "progress.read = end"),),
        lambda: test_read_leases.test_a_lease_ends_before_what_cannot_be_decoded_and_the_next_one_follows(
            test_read_leases.member()
        ),
    ),
    Mutation(
        "topics",
        "a step counts offsets, not records",
        (Edit(ReadLeases._reach, "if low >= progress.ready or count + low - at > samples:", "if True:"),),
        read(),
    ),
    Mutation(
        "topics",
        "who lost a lease says what was in it",
        (Edit(reading.examined, "lease.incarnation == request.incarnation and", ""),),
        bench(test_topic_ledger.test_only_whoever_holds_a_lease_says_what_is_in_it),
    ),
    Mutation(
        "topics",
        "a token of a lease before is as good",
        (Edit(reading.examined, " and lease.token == body.token", ""),),
        bench(test_topic_ledger.test_only_whoever_holds_a_lease_says_what_is_in_it),
    ),
    Mutation(
        "topics",
        "what is behind a record that cannot be decoded is nobody's",
        (Edit(Shards.set_aside, "if end < lease.end:", "if False:"),),
        bench(test_topic_ledger.test_what_cannot_be_decoded_is_in_quarantine_and_the_rest_of_its_lease_returns),
    ),
    Mutation(
        "topics",
        "a topic is over while it may grow",
        (Edit(Samples.finished.fget, "self.space.closed and", ""),),
        test_topic_ledger.test_a_topic_that_grows_gets_positions_and_ends_when_somebody_says_so,
    ),
    Mutation(
        "topics",
        "offsets that are known are added again",
        (Edit(reading.grown, "if known.get(p, 0) < end", "if True"),),
        test_topic_ledger.test_a_topic_that_grows_gets_positions_and_ends_when_somebody_says_so,
    ),
    Mutation(
        "topics",
        "an epoch that was handed out stays so, whatever is added",
        (Edit(Shards.extend, "self._low_epoch = 0", "pass"),),
        test_topic_ledger.test_a_topic_that_grows_gets_positions_and_ends_when_somebody_says_so,
    ),
    Mutation(
        "topics",
        "what is found twice is none twice",
        (Edit(Coverage.vacancies.fget, "inside.overlaps(a, b)", "((a, b),)"),),
        bench(test_topic_ledger.found_again),
    ),
    Mutation(
        "topics",
        "micro-batches are cut by offsets",
        (Edit(Hand._split, "isinstance(self._source, TopicSource)", "False"),),
        alone(test_topics.test_micro_batches_are_of_records),
    ),
    Mutation(
        "topics",
        "a worker keeps all that it is given",
        (Edit(TopicSource.has_room.fget, "self.size_kept < self.topic.cache_mb << 20", "True"),),
        test_topics.test_there_is_room_until_so_much_is_kept_and_again_once_it_is_used,
    ),
)
