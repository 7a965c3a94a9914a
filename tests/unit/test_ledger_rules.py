"""Which rules hold for a job: its strategy's for the group, and those of its Genesis for the fold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from antdt_schemas import codec, records
from antdt_schemas.errors import Mismatch
from antdt_schemas.lineage import ROOT
from antdt_schemas.records import Status
from antdt_streams.ledger.core import groups, rows, versions
from antdt_streams.ledger.core.callers import REFUSED_MS
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.ledger.core.groups import RULES, AllReduce, rules_of
from antdt_streams.ledger.core.state import State
from antdt_streams.ledger.core.versions import FOLD_VERSION

from tests.helpers.ledger import SPEC, Bench


def genesis(strategy: str, version: int) -> bytes:
    spec = replace(SPEC, strategy=strategy)
    return codec.encode(records.Entry(records.Genesis("r", "j", "o", spec, version, "none", 10, 5_000)))


def due(bench: Bench) -> tuple[tuple[str, ...], str]:
    """The events of the next grant, and the reason."""
    events, reason = rules_of("allreduce").grant(bench.state)
    return tuple(type(event).__name__ for event in events), reason


def test_why_the_next_generation_is_not_granted_yet_is_always_said() -> None:
    bench = Bench()
    assert due(bench) == ((), "0 of 2 workers ask for it")
    bench.join("w0.0")
    assert due(bench) == ((), "1 of 2 workers ask for it")
    bench.join("w1.0")
    assert due(bench) == ((), "generation 1 is open")
    bench.say("w0.0", records.Regroup(1, 0, bench.lineage, "h", 1))
    assert due(bench) == ((), "w1.0 did not ask for the next one yet")
    bench.say("w1.0", records.Leave(1))
    assert bench.state.members.group == ("w0.0",)
    bench.say("w0.0", records.Leave(2))
    assert due(bench) == ((), "0 of any workers ask for it")


class Independent(AllReduce):
    """Members that do not wait for each other: who goes ends nothing, and anybody reports."""

    name: ClassVar[str] = "independent"

    def on_loss(self, s: State, who: str, why: str) -> Iterator[records.Event]:
        return iter(())

    def may_commit(self, s: State, who: str) -> str | None:
        return None


@pytest.mark.parametrize("strategy", ["allreduce", "independent"])
def test_the_strategy_of_the_job_says_what_a_loss_does_and_who_commits(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "RULES", {**RULES, "independent": Independent()})
    bench = Bench(replace(SPEC, strategy=strategy))
    bench.join("w0.0", "w1.0")
    number, token, epoch, start, _ = bench.lease("w1.0", 10)
    alone = strategy == "independent"
    assert bench.commit("w1.0", (number, token, epoch, start, 4)).status is (Status.OK if alone else Status.REFUSED)
    bench.say("w0.0", records.Leave(1))
    assert bench.state.members.open is alone


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (("gossip", 1), ("strategy", "found gossip", "one of allreduce", "Upgrade")),
        (("allreduce", FOLD_VERSION + 1), ("version", f"at most {FOLD_VERSION}", "Upgrade")),
    ],
)
def test_a_log_of_unknown_rules_is_refused_at_its_first_entry(rules: tuple[str, int], words: tuple[str, ...]) -> None:
    with pytest.raises(Mismatch) as refused:
        Fold().read(0, genesis(*rules))
    for word in words:
        assert word in str(refused.value)


def test_the_rules_of_averaging_are_found_by_any_period_and_another_one_is_another_job() -> None:
    assert rules_of("local-sgd/every=8") is rules_of("local-sgd/every=500") is RULES["local-sgd/every=N"]
    Fold().read(0, genesis("local-sgd/every=8", 1))
    bench = Bench(replace(SPEC, strategy="local-sgd/every=8"))
    bench.join("w0.0")
    for other in ("local-sgd/every=4", "allreduce"):
        bench.spec = replace(SPEC, strategy=other)
        refused = bench.say("w1.0", bench.a_join())
        assert refused.status is Status.REFUSED
        assert f"strategy (the job has 'local-sgd/every=8', this worker '{other}')" in refused.reason


def test_a_lease_holds_what_all_take_between_two_averages_so_that_a_period_is_a_few_of_them() -> None:
    for strategy, leases in (("allreduce", 8), ("local-sgd/every=4", 2)):
        bench = Bench(replace(SPEC, samples=1000, shard_size=2, strategy=strategy))
        bench.join("w0.0", "w1.0")
        assert len(bench.lease("w0.0", 64)) == 5 * leases


class Forgetful(State):
    """Rules of a version to come: refusals are not counted any more."""

    how = {**State.how, records.Refused: lambda _s, _e: None}


def test_a_log_is_folded_by_the_rules_that_its_genesis_names(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.join("w0.0", "w1.0")
    bench.say("w1.0", records.Commit(1, 5, (), (), b"", -1))
    log, before = bench.broker.log, rows.digest(bench.state)
    monkeypatch.setattr(versions, "STATES", {**versions.STATES, 1: State, 2: Forgetful})

    def folded(version: int) -> State:
        fold = Fold()
        for offset, payload in enumerate(log):
            body: Any = codec.decode(payload, records.Entry).body
            if isinstance(body, records.Genesis):
                payload = codec.encode(records.Entry(replace(body, fold_version=version)))
            elif isinstance(body, records.Cycle):
                body = replace(body, epoch_hash=fold.office.hash, epoch_offset=fold.office.offset)  # type: ignore[union-attr]
                body = replace(body, previous_hash=fold.position.hash)
                payload = codec.encode(records.Entry(body))
            fold.read(offset, payload)
        assert fold.state is not None
        assert fold.void_entries == 0
        return fold.state

    assert (folded(1).refused, folded(2).refused) == (1, 0)
    assert rows.digest(folded(1)) == before, "the rules to come change nothing of what was"


def test_those_that_wait_are_told_who_came_for_it_and_was_refused() -> None:
    """Whose terminal says why may be on another machine."""
    bench = Bench()
    assert bench.say("w0.0", bench.a_join()).reason == ""
    other = replace(bench.a_join(), spec=replace(bench.spec, samples=101))
    for _ in range(2):
        refusal = bench.say("w1.0", other)
        assert refusal.status is records.Status.REFUSED
        waiting = bench.say("w0.0", bench.a_join())
        assert waiting.reason == f"1 of 2 workers ask for it; w1 was refused: {refusal.reason}"
    bench.say("w2.0", replace(other, spec=replace(bench.spec, samples=102)))
    assert "w2 was refused" in bench.say("w0.0", bench.a_join()).reason, "the newest of them"
    granted = bench.say("w1.1", bench.a_join())
    assert granted.status is records.Status.OK and bench.state.members.open
    bench.say("w0.0", records.Regroup(1, 0, ROOT, "h", 1))
    assert bench.say("w0.0", bench.a_join()).reason == "w1.1 did not ask for the next one yet; " + (
        f"w2 was refused: {bench.refused()[-1].reason}"
    )
    bench.ledger.office.patience.clock_ms += REFUSED_MS
    assert "refused" not in bench.say("w0.0", bench.a_join()).reason, "it was long ago"
