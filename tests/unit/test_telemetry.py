"""When a batch of timings leaves: what is news leaves at once, everything else waits its half second."""

from __future__ import annotations

from antdt.worker.telemetry import (
    BATCH_EVERY_S,
    EARLY_SAVED_MAX,
    FIRST_STEPS,
    IN_FLIGHT_MAX,
    STEPS_A_BATCH,
    STEPS_QUEUED_MAX,
    Sort,
    StepTiming,
    Telemetry,
)


def timing(step: int, own_s: float = 0.1, wait_s: float = 0.01, batch_size: int = 32) -> StepTiming:
    return StepTiming(1, step, batch_size, 0, 0.0, own_s, 0.0, wait_s)


def settled() -> tuple[Telemetry, int, float]:
    """A worker whose steps have been alike for some time: (telemetry, next step, now)."""
    telemetry, now_s = Telemetry("w0", "w0.0", "n", ""), 100.0
    for step in range(20):
        telemetry.add(timing(step))
        now_s += 1.0
        assert telemetry.batch(now_s) is not None
    return telemetry, 20, now_s


def test_the_first_steps_leave_one_by_one() -> None:
    telemetry = Telemetry("w0", "w0.0", "n", "", 48)
    for step in range(FIRST_STEPS + 1):
        telemetry.add(timing(step))
        sent = telemetry.batch(100.0 + step / 1000)
        assert (sent is not None) == (step < FIRST_STEPS)
        assert sent is None or sent.batch_size_max == 48, "what it can hold is said with every batch"


def test_a_jump_leaves_at_once_and_so_do_a_few_steps_after_it() -> None:
    slower = [timing(20 + i, own_s=0.3) for i in range(8)]
    others_slower = [timing(20 + i, wait_s=0.2) for i in range(8)]
    faster_in_the_shade = [timing(20 + i, own_s=0.05, wait_s=0.06) for i in range(8)]
    for change in (slower, others_slower, faster_in_the_shade):
        telemetry, _, now_s = settled()
        telemetry.add(timing(19))
        assert telemetry.batch(now_s + 0.001) is None, "nothing has changed"
        sent = []
        for i, step in enumerate(change):
            telemetry.add(step)
            sent.append(telemetry.batch(now_s + 0.002 + i / 1000) is not None)
        assert sent[:4] == [True] * 4
        assert sent[5:] == [False] * 3


def test_steps_that_never_settle_at_most_double_the_batches() -> None:
    telemetry, step, now_s = settled()
    count, lasts_s = 0, 60.0
    for i in range(int(lasts_s * 20)):
        telemetry.add(timing(step + i, own_s=0.1 if i % 2 else 0.2))
        count += telemetry.batch(now_s + i / 20) is not None
    assert count <= 2 * lasts_s / BATCH_EVERY_S + EARLY_SAVED_MAX


def test_without_acknowledgement_batches_are_full_bounded_and_the_rest_is_counted() -> None:
    telemetry, first, now_s = settled()
    sent, steps = [], 10_000
    for step in range(steps):
        telemetry.add(timing(first + step))
        batch = telemetry.batch(now_s + step * 0.1)
        if batch is not None:
            sent.append(batch)
            telemetry.sent(now_s + step * 0.1)
    assert len(sent) == IN_FLIGHT_MAX
    assert [len(batch.step) for batch in sent[-4:]] == [STEPS_A_BATCH] * 4
    on_their_way = sum(len(batch.step) for batch in sent)
    lost = steps - on_their_way - STEPS_QUEUED_MAX
    assert telemetry.dropped == lost

    for batch in sent:  # the broker is back, and the last of them is too late
        telemetry.acknowledged(len(batch.step), 2_000.0, arrived=batch is not sent[-1])
    after = []
    while (batch := telemetry.batch(2_000.0)) is not None:
        telemetry.sent(2_000.0)
        telemetry.acknowledged(len(batch.step), 2_000.0, arrived=True)
        after.append(batch)
    assert sum(len(batch.step) for batch in after) == STEPS_QUEUED_MAX
    assert after[-1].step[-1] == first + steps - 1
    assert after[0].dropped == lost + STEPS_A_BATCH
    numbers = [batch.number for batch in sent + after]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_batch_says_what_kind_of_node_it_is_of_and_in_how_many_parts_steps_were_computed() -> None:
    telemetry = Telemetry("s0", "s0.0", "n", "", sort=Sort("server", 2, "ps-bsp/servers=2"))
    telemetry.add(timing(0))
    whole = telemetry.batch(100.0)
    telemetry.add(timing(1)._replace(micro_batches=3))
    cut = telemetry.batch(101.0)
    assert whole is not None
    assert cut is not None
    assert (whole.role, whole.stage, whole.strategy, whole.micro_batches) == ("server", 2, "ps-bsp/servers=2", ())
    assert cut.micro_batches == (3,)
