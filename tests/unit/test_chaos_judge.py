"""The judge of the chaos suite finds what is wrong, and only that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from antdt_schemas import records
from antdt_streams.chaos.judge import Entries, judge_log, judge_quarantine, judge_records, judge_result

from tests.helpers.ledger import Bench
from tests.unit.test_evidence import Lives

SPEC = records.JobSpec("d", 20, bytes(16), "sequential", 1, 0, 10, 10, 2, 3, "allreduce")


@pytest.fixture
def run() -> tuple[Entries, list[str]]:
    """A log of two steps over 20 samples, and the lineage of each."""
    bench = Bench(SPEC)
    bench.join("w0.0", "w1.0")
    mine, other = bench.lease("w0.0", 10), bench.lease("w1.0", 10)
    lineages = []
    for front in (0, 5):
        bench.commit("w0.0", (*mine[:3], mine[3] + front, 5), (*other[:3], other[3] + front, 5))
        lineages.append(bench.lineage.hex())
    return list(enumerate(bench.broker.log)), lineages


def write(folder: Path, worker: str, *lines: dict[str, object]) -> None:
    (folder / f"{worker}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def honest(folder: Path, lineages: list[str]) -> None:
    """What the two workers wrote: one tried other samples first, one died inside the second step."""
    first, second = lineages
    write(
        folder,
        "w0",
        {"step": 1, "samples": [7, 8]},
        {"step": 1, "samples": [0, 1, 2, 3, 4]},
        {"step": 1, "lineage": first},
        {"step": 2, "samples": [5, 6, 7, 8, 9]},
        {"step": 2, "lineage": second},
    )
    write(
        folder,
        "w1",
        {"step": 1, "samples": [10, 11, 12, 13, 14]},
        {"step": 1, "lineage": first},
        {"step": 2, "samples": [15, 16, 17, 18, 19]},
    )


def test_records_that_agree_with_the_log_pass(tmp_path: Path, run: tuple[Entries, list[str]]) -> None:
    entries, lineages = run
    honest(tmp_path, lineages)
    assert judge_records(entries, tmp_path) == []


def test_several_micro_batches_make_a_step(tmp_path: Path, run: tuple[Entries, list[str]]) -> None:
    entries, lineages = run
    honest(tmp_path, lineages)
    first, second = lineages
    given_up = {"step": 2, "samples": [15, 16, 17]}
    parts = [{"step": 2, "samples": [15, 16, 17]}, {"step": 2, "samples": [18, 19]}]
    before = [{"step": 1, "samples": [10, 11, 12, 13, 14]}, {"step": 1, "lineage": first}]
    write(tmp_path, "w1", *before, given_up, *parts, {"step": 2, "lineage": second})
    assert judge_records(entries, tmp_path) == []
    write(tmp_path, "w1", *before, given_up, {"step": 2, "lineage": second}, *parts[1:])
    assert "Step 2: the log says that w1 used" in judge_records(entries, tmp_path)[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"step": 2, "samples": [15, 16, 17, 18, 18]}, "Step 2: the log says that w1 used [15, 16, 17, 18, 19]"),
        ({"step": 2, "samples": [15, 16, 17, 18]}, "5 samples were not used 1 times: [15, 16, 17, 18, 19]"),
        ({"step": 3, "samples": [15, 16, 17, 18, 19]}, "Step 2: the log says that w1 used"),
    ],
)
def test_other_samples_than_the_log_says_are_found(
    tmp_path: Path, run: tuple[Entries, list[str]], line: dict[str, object], said: str
) -> None:
    entries, lineages = run
    honest(tmp_path, lineages)
    write(tmp_path, "w1", {"step": 1, "samples": [10, 11, 12, 13, 14]}, {"step": 1, "lineage": lineages[0]}, line)
    assert any(said in wrong for wrong in judge_records(entries, tmp_path))


def test_another_lineage_than_the_log_has_is_found(tmp_path: Path, run: tuple[Entries, list[str]]) -> None:
    entries, lineages = run
    honest(tmp_path, [lineages[0], lineages[0]])
    assert "Step 2: the log says that w0 used [5, 6, 7, 8, 9]" in judge_records(entries, tmp_path)[0]


def test_a_log_without_an_end_and_a_script_without_the_final_model_are_found(
    tmp_path: Path, run: tuple[Entries, list[str]]
) -> None:
    entries, _ = run
    report, wrong = judge_log(entries)
    assert wrong == ["The log has no end: no final checkpoint."]
    assert "did not come to its end" in judge_result(report, tmp_path / "none.json")[0]
    late = tmp_path / "late.json"
    late.write_text('{"steps": 0}')
    assert "a model of 0 steps, the log has 2" in judge_result(report, late)[0]
    late.write_text('{"steps": 2}')
    assert judge_result(report, late) == []


def test_who_is_in_quarantine_and_has_done_nothing_is_found() -> None:
    bench = Lives()
    for _ in range(bench.spec.max_attempts):
        bench.held()
        bench.failed(13)
        bench.exited(75)
        bench.again()
    entries = list(enumerate(bench.broker.log))
    assert judge_quarantine(entries, [13]) == []
    assert "Samples [13] came into quarantine" in judge_quarantine(entries, [4])[0]


@pytest.fixture
def fixed() -> tuple[Entries, str]:
    """A log of one step of a fixed size, and its lineage."""
    bench = Bench(replace(SPEC, batch_size=10, samples=10, batches="even"))
    bench.join("w0.0", "w1.0")
    bench.commit("w0.0", (bench.state.members.generation, 0, 0, 0, 10))
    assert bench.step == 1
    return list(enumerate(bench.broker.log)), bench.lineage.hex()


def test_parts_of_a_step_of_a_fixed_size_come_to_the_whole(tmp_path: Path, fixed: tuple[Entries, str]) -> None:
    """Of one worker in two micro-batches, of one behind a try that was given up, and of one that died within it."""
    entries, lineage = fixed
    made = {"step": 1, "lineage": lineage}
    write(tmp_path, "w0", {"step": 1, "samples": [0, 1]}, {"step": 1, "samples": [2, 3]}, made)
    write(tmp_path, "w1", {"step": 1, "samples": [2, 3, 4]}, {"step": 1, "samples": [4, 5, 6]}, made)
    write(tmp_path, "w2", {"step": 1, "samples": [0, 1]}, {"step": 1, "samples": [7, 8, 9]})
    assert judge_records(entries, tmp_path) == []
    write(tmp_path, "w3")
    assert judge_records(entries, tmp_path) == [], "who came later has no part in it"


@pytest.mark.parametrize("samples", [[7, 8], [7, 8, 8], [6, 7, 8, 9], [7, 8, 9, 10]])
def test_parts_that_do_not_come_to_the_step_are_found(
    tmp_path: Path, fixed: tuple[Entries, str], samples: list[int]
) -> None:
    entries, lineage = fixed
    made = {"step": 1, "lineage": lineage}
    write(tmp_path, "w0", {"step": 1, "samples": [0, 1, 2, 3, 4, 5, 6]}, made)
    write(tmp_path, "w1", {"step": 1, "samples": samples}, made)
    assert any("Step 1" in said for said in judge_records(entries, tmp_path))
