"""Replay of a log: the state at any offset, the same from everywhere, and where a log breaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from antdt_schemas import codec, lineage, records
from antdt_schemas.errors import ExitCode, UsageError
from antdt_streams.ledger.core import rows
from antdt_streams.ledger.core.fold import Fold
from antdt_streams.proof.audit import audit
from antdt_streams.proof.replay import document, replay

from tests.helpers.ledger import Bench
from tests.helpers.logs import export, simulated
from tests.helpers.memory_ledger import MemoryLedger
from tests.simulation.world import World


def test_the_state_at_every_offset_is_that_of_a_reader_who_stopped_there() -> None:
    log = simulated(3)
    fold = Fold()
    for offset, payload in enumerate(log):
        fold.read(offset, payload)
        found = document(replay(enumerate(log), at=offset), full=True)
        assert found["whole"] and found["offset"] == offset
        if fold.state is not None:
            assert found["digest"] == rows.digest(fold.state).hex()
            assert found["rows"] == {k.decode(): r.decode() for k, r in rows.all_rows(fold.state)}


def test_a_replay_reaches_what_the_leader_had_in_memory() -> None:
    world = World(5)
    world.run()
    leader = MemoryLedger(world.broker)
    found = document(replay(enumerate(world.broker.log)))
    assert found["digest"] == rows.digest(leader.office.state).hex()
    assert found["head_hash"] == leader.office.fold.position.hash.hex()
    assert found["last_proven"] < found["offset"], "nothing names the last entry yet"


def test_an_anchor_proves_the_last_entry_and_refuses_another_history() -> None:
    log = simulated(3)
    head = bytes.fromhex(document(replay(enumerate(log)))["head_hash"])
    anchors = {len(log) - 1: head}
    assert document(replay(enumerate(log), anchors=anchors))["last_proven"] == len(log) - 1
    cut = document(replay(enumerate(log[:-1]), anchors=anchors))
    assert (cut["broken"]["expected"], cut["broken"]["found"]) == (f"at least offset {len(log) - 1}", str(len(log) - 2))
    # A forger with the keys to the broker writes everything anew, chain and all: only the anchor tells.
    forged = World(11)
    forged.run()
    other = list(forged.broker.log)
    assert document(replay(enumerate(other)))["whole"]
    offset = min(len(other), len(log)) - 1
    kept = document(replay(enumerate(log), at=offset))["head_hash"]
    found = document(replay(enumerate(other), anchors={offset: bytes.fromhex(kept)}))["broken"]
    assert found["offset"] == offset and found["expected"] == kept


def test_an_offset_behind_the_end_is_the_users_mistake() -> None:
    with pytest.raises(UsageError, match="ends at offset"):
        replay(enumerate(simulated(3)), at=10_000)
    with pytest.raises(UsageError, match="empty"):
        replay((), at=0)


def test_a_log_that_breaks_shows_no_state() -> None:
    log = list(simulated(3))
    log[9], log[10] = log[10], log[9]
    found = document(replay(enumerate(log)))
    assert not found["whole"] and found["state"] is None and found["digest"] is None
    assert found["broken"]["last_proven"] < 9 <= found["broken"]["offset"] <= 10


def test_an_altered_office_is_found_though_all_its_entries_turn_void() -> None:
    """Rule 4 makes whatever does not name the Leader's hash void: altering that entry must not silence its office."""
    bench = Bench()
    bench.join("a.1", "b.1")
    log = list(bench.broker.log)
    body = codec.decode(log[1], records.Entry).body
    assert isinstance(body, records.Leader)
    log[1] = codec.encode(records.Entry(records.Leader(body.run_id, "somebody-else", body.owner, body.fold_version)))
    report = audit(enumerate(log))
    assert report["void_entries"] == len(log) - 2
    assert report["broken"]["offset"] == 2 and report["last_proven"] == -1
    # The truth beside it: real zombies name what really stood in the log, and raise no doubt.
    world = next(w for w in map(run_world, range(40)) if w.counts["void_entry"] and not w.counts["log_tail_lost"])
    assert audit(enumerate(world.broker.log))["broken"] is None


def run_world(seed: int) -> World:
    world = World(seed)
    world.run()
    return world


def test_memory_does_not_grow_with_the_log() -> None:
    """What a replay keeps is the state, and that is bounded: no list of rows that nobody will store."""
    replayed = replay(enumerate(simulated(3)))
    assert replayed.fold.state is not None and not replayed.fold.state.dirty
    assert len(replayed.fold.recent) < 5


# -- the command, without a broker


def antdt(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process that cannot import a Kafka client."""
    code = "import sys; sys.modules['confluent_kafka'] = None; from antdt_streams.cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ, check=False)


def test_replay_and_audit_of_a_file_need_no_kafka_client(tmp_path: Path) -> None:
    path = tmp_path / "log.avro"
    header = export(path, simulated(3))
    done = antdt("replay", "--file", path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["document"] == "antdt.replay/1"
    assert found["head_hash"] == header.head_hash.hex() and found["last_proven"] == header.entries - 1
    people = antdt("replay", "memory", "--file", path, "--at", 7)
    assert people.returncode == 0 and "to offset 7:" in people.stdout
    audited = antdt("audit", "--file", path, "--json")
    assert audited.returncode == 0 and json.loads(audited.stdout)["digest"] == found["digest"]
    assert antdt("replay", "other", "--file", path).returncode == ExitCode.USAGE


def test_a_damaged_file_gives_one_sentence_and_exit_status_42(tmp_path: Path) -> None:
    path = tmp_path / "log.avro"
    log = list(simulated(3))
    rolling = lineage.ROOT
    export(path, log)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 100])
    for command in ("replay", "audit"):
        done = antdt(command, "--file", path)
        assert done.returncode == ExitCode.NEVER_RETRY
        assert "The log breaks at offset 0." in done.stderr + done.stdout and "Traceback" not in done.stderr
    log[12] = log[12][:-1] + bytes([log[12][-1] ^ 1])
    export(path, log)
    done = antdt("replay", "--file", path, "--json")
    broken = json.loads(done.stdout)["broken"]
    assert done.returncode == ExitCode.NEVER_RETRY and broken["last_proven"] < 12 <= broken["offset"] <= 13
    for offset, payload in enumerate(log[: broken["last_proven"] + 1]):
        rolling = lineage.chain(rolling, offset, payload)
    anchor = f"{broken['last_proven']}:{rolling.hex()}"
    kept = antdt("replay", "--file", path, "--at", broken["last_proven"], "--anchor", anchor)
    assert kept.returncode == 0, kept.stderr
