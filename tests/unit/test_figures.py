"""Metrics: their names, their bounds, what they are worth; and what happens where they cannot be served."""

from __future__ import annotations

import logging
import math
import re
import socket
import urllib.request
from dataclasses import replace
from typing import Any

import pytest
from antdt_schemas import records
from antdt_schemas.errors import UsageError
from antdt_schemas.exporting import Exporter, Where
from antdt_schemas.figures import LOOP_AGE, Histogram, Lag
from antdt_streams.cli.services import metrics_of
from antdt_streams.controller.figures import ControllerFigures
from antdt_streams.ledger.figures import LedgerFigures
from antdt_streams.monitor import service as monitor
from antdt_streams.monitor.figures import SLOWEST, MonitorFigures
from antdt_streams.runtime.memory import MemoryDriver

from tests.helpers.figures import Processor, join, ledger_figures, samples, scraped, served
from tests.replay.control_loop import Loop, step_batch, steps_of


def value(found: Any, name: str, **labels: str) -> float:
    """The one sample of this name with these labels."""
    values = [v for n, has, v in found if n == name and labels.items() <= dict(has).items()]
    assert len(values) == 1, (name, labels, values)
    return values[0]


def test_names_are_those_of_prometheus() -> None:
    for service, found in samples().items():
        names = {name for name, _, _ in found if name.startswith("antdt_")}
        assert len(names) > 5, service
        for name in names:
            assert re.fullmatch(r"antdt_[a-z]+(_[a-z]+)*", name), name
            assert not re.search(r"_(ms|millis|minutes|percent|count_total)$", name), name
    assert {name for name in served() if name.endswith("_seconds")} >= {"antdt_loop_age_seconds"}


def test_every_sample_says_whose_it_is() -> None:
    for service, found in samples().items():
        assert found
        for name, labels, _ in found:
            if name.startswith("antdt_"):
                assert (labels["antdt_job"], labels["antdt_service"]) == ("memory", service), name


def test_a_histogram_counts_what_is_at_most_its_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 2.0, 9.0, math.nan, math.inf):
        histogram.observe(seconds)
    assert histogram.cumulative() == [2, 4, 5] and histogram.sum == 14.0


def test_who_is_behind_is_told_in_records_and_in_seconds() -> None:
    lag = Lag()
    lag.look(0.0, 10, 10)
    assert (lag.records, lag.seconds) == (0, 0.0)
    lag.look(100.0, 10, 13)
    assert (lag.records, lag.seconds) == (3, 0.0), "nothing was there before this look"
    lag.look(105.0, 12, 15)
    assert (lag.records, lag.seconds) == (3, 5.0), "the end of 100 s is not reached"
    lag.look(107.0, 13, 16)
    assert (lag.records, lag.seconds) == (3, 2.0), "it is, and that of 105 s is not"
    lag.look(108.0, 16, 16)
    assert (lag.records, lag.seconds) == (0, 0.0)


def test_a_reader_that_keeps_up_is_not_behind_however_much_comes() -> None:
    lag = Lag()
    for second in range(10_000):
        lag.look(float(second), 1000 * second - 3, 1000 * second)
        assert lag.seconds <= 1.0


def test_the_monitor_tells_of_steps_and_of_the_slowest_only() -> None:
    found = samples()["monitor"]
    total = sum(v for n, _, v in found if n == "antdt_step_seconds_count")
    assert total == 4 * value(found, "antdt_worker_steps_total") > 0
    assert (
        value(found, "antdt_worker_class", **{"class": "persistent"})
        + value(found, "antdt_worker_class", **{"class": "healthy"})
        <= 4
    )
    assert value(found, "antdt_worker_slowness_ratio", worker="w3") > 2.0
    many = MonitorFigures()
    loop = Loop.of(lambda number, _: 1.0 + number / 10, workers=40).run(120)
    watching = Processor(monitor.service(), list(loop.records))
    for one in watching.written(records.Measurement):
        many.observe(step_batch("w0", []), [one])
    shown = scraped("j", "monitor", many)
    assert len([1 for name, _, _ in shown if name == "antdt_worker_sample_seconds"]) == SLOWEST


def test_what_a_worker_could_not_send_is_counted_once() -> None:
    figures = MonitorFigures()
    for dropped in (0, 2, 5, 5, 1):  # the last one is of its next life
        figures.observe(steps_of("w0", 0, [0.1], 8) if not dropped else step_batch("w0", [], dropped=dropped), [])
    assert value(scraped("j", "monitor", figures), "antdt_dropped_steps_total") == 6


def test_the_time_of_servers_is_not_that_of_workers() -> None:
    figures = MonitorFigures()
    figures.observe(step_batch("s0", [(0, 8, 0, 0.1)], role="server"), [])
    assert value(scraped("j", "monitor", figures), "antdt_worker_steps_total") == 0


def test_the_controller_tells_of_decisions_by_action_and_outcome() -> None:
    found = samples()["controller"]
    assert value(found, "antdt_decisions_total", action="ADJUST_BS") >= 1
    measured = {labels["verdict"]: v for n, labels, v in found if n == "antdt_decision_effects_total" and v}
    assert measured == {"harmed": 1}, "the first plan came before one worker slowed down"
    assert value(found, "antdt_decision_gain_ratio", kind="measured") < 0
    assert value(found, "antdt_plan") >= 1
    # All there can be, so that a rate has a beginning.
    effects = [labels for name, labels, _ in found if name == "antdt_decision_effects_total"]
    assert len(effects) == (len(records.Action) - 1) * len(records.Verdict)
    assert len(scraped("j", "controller", ControllerFigures())) > len(effects)


def test_a_processor_tells_what_it_took_and_how_far_it_is_behind() -> None:
    loop = Loop.of(lambda *_: 1.0).run(40)
    records_in: list[Any] = [*loop.records, b"junk"]
    one = Processor(monitor.service(), records_in, left=7)
    found = scraped("j", "monitor", one.runtime)
    assert value(found, "antdt_records_total") == len(records_in)
    assert value(found, "antdt_dead_letters_total") == 1
    assert value(found, "antdt_input_lag_records", topic="steps") == 7
    assert value(found, "antdt_input_offset", topic="steps") == len(records_in)
    assert value(found, "antdt_leader") == 1
    one.partitions.end([0], lost=True)
    assert value(scraped("j", "monitor", one.runtime), "antdt_leader") == 0, "it stands by"


def test_what_is_taken_back_is_not_observed_twice() -> None:
    """A record that makes a service fail takes the good ones before it back, and forward again."""
    seen: list[Any] = []

    class Seen(MonitorFigures):
        def observe(self, record: Any, outputs: Any) -> None:
            seen.append(record)

    real = monitor.service()

    def process(state: Any, record: Any, position: Any, now_ms: int) -> Any:
        if record.worker == "poison":
            raise RuntimeError("poison")
        return real.process(state, record, position, now_ms)

    batches = [
        steps_of("w0", 0, [0.1]),
        steps_of("w1", 0, [0.1]),
        steps_of("poison", 0, [0.1]),
        steps_of("w2", 0, [0.1]),
    ]
    Processor(replace(real, process=process, figures=Seen), batches)
    assert [one.worker for one in seen] == ["w0", "w1", "w2"]


def test_a_ledger_tells_of_its_job_and_of_itself() -> None:
    measured, life = ledger_figures([join("w0"), join("w1")], known_end=5)
    found = scraped("j", "ledger", measured)
    assert value(found, "antdt_leader") == 1 and value(found, "antdt_offices_total") == 1
    assert value(found, "antdt_log_offset") == life.office.fold.position.next_offset
    digest = life.office.fold.position.hash
    assert value(found, "antdt_log_digest") == int(digest.hex()[:12], 16)
    by_state = {labels["state"]: v for n, labels, v in found if n == "antdt_samples"}
    assert sum(by_state.values()) == life.office.state.samples_total == 100
    assert value(found, "antdt_input_lag_records", topic="requests") == 3
    assert value(found, "antdt_cycle_seconds_count") >= 1
    assert value(found, "antdt_job_done") == 0


def test_before_it_has_read_anything_a_ledger_says_that_it_does_not_lead() -> None:
    found = scraped("j", "ledger", LedgerFigures(lambda: None, lambda: 0))
    assert value(found, "antdt_leader") == 0
    assert not [1 for name, _, _ in found if name == "antdt_log_offset"]


def test_a_launch_tells_of_its_workers() -> None:
    found = samples()["launch"]
    assert value(found, "antdt_launch_workers", state="running") == 2
    assert value(found, "antdt_worker_exits_total", status="-9") == 1
    assert value(found, "antdt_worker_restarts_total") == 1


# -- served


def answer(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as found:
        return str(found.read().decode())


def test_metrics_are_served_until_it_is_closed() -> None:
    exporter = Exporter("j", "monitor", lambda: [LOOP_AGE.of(1.5)])
    port = exporter.serve(Where(0))
    assert port
    text = answer(port)
    exporter.close()
    assert 'antdt_loop_age_seconds{antdt_job="j",antdt_service="monitor"} 1.5' in text
    assert "antdt_build_info{" in text and "process_cpu_seconds_total" in text
    with pytest.raises(OSError):
        answer(port)


def test_a_port_that_is_taken_is_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        exporter = Exporter("j", "monitor")
        with caplog.at_level(logging.WARNING):
            assert exporter.serve(Where(port)) is None
        exporter.close()
    (line,) = [one.getMessage() for one in caplog.records]
    assert f"127.0.0.1:{port}" in line and "in use" in line and "goes on without" in line


def test_without_the_library_a_port_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("antdt_schemas.exporting.find_spec", lambda _: None)
    Where().check()
    with pytest.raises(UsageError, match=r"pip install 'antdt\[metrics\]'"):
        Where(9400).check()


def test_each_service_has_a_port_of_its_own() -> None:
    names = ("ledger", "monitor", "controller", "standby")
    assert metrics_of(names, Where()) == {}
    ports = [options[1] for options in metrics_of(names, Where(9400, "0.0.0.0")).values()]
    assert ports == ["9400", "9401", "9402", "9403"]
    assert {options[1] for options in metrics_of(names, Where(0)).values()} == {"0"}
    with pytest.raises(UsageError, match="4 services"):
        metrics_of(names, Where(65533))


def test_nobody_observes_where_nobody_asks() -> None:
    driver = MemoryDriver(monitor.service(), "j")
    assert driver.runner._observer is None
