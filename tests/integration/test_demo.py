"""`antdt demo` as people run it: a short one to its end, and one that is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_streams.host.child import spawn
from antdt_streams.kafka import topics_admin

pytestmark = pytest.mark.kafka
WITHIN_S = 60.0
SHORT = ("--workers", "3", "--epochs", "1", "--samples", "600", "--batch-size", "48", "--delay-ms", "1.5")


def start(*options: str, **environ: str) -> subprocess.Popen[str]:
    """The command, its output a pipe, in a session of its own."""
    demo: Any = spawn(
        [sys.executable, "-m", "antdt_streams", "demo", *options],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return demo


def with_mark(mark: str) -> list[str]:
    """Command lines of all live processes that carry this mark in the environment they were started with."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
        except OSError:
            continue  # it has ended meanwhile
    return found


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for a condition, bounded."""
    end = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)  # between two looks


def test_a_short_demo_says_what_it_found_and_leaves_nothing_behind(connection: Connection, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    where = ("--bootstrap-servers", connection.bootstrap, "--data-dir", str(tmp_path))
    demo = start(*SHORT, *where, "--json", str(file))
    out = demo.communicate(timeout=WITHIN_S)[0]
    assert demo.returncode == 0, out
    found = json.loads(file.read_text())
    assert found["static_s"] > found["ideal_s"] > 0
    assert found["mitigated_s"] > found["ideal_s"]
    assert found["speedup"] == pytest.approx(found["static_s"] / found["mitigated_s"])
    for name in ("static", "mitigated"):
        assert 0 < found[f"accuracy_{name}"] <= 1
        report = found[f"audit_{name}"]
        assert report["exactly_once"]
        assert (report["epochs"], report["samples"], report["committed"]) == (1, 600, 600)
    assert found["audit_static"]["run_id"] != found["audit_mitigated"]["run_id"]
    assert "EXACTLY ONCE" in out
    assert "Try next" in out
    assert "\x1b" not in out, "no terminal, no control sequences"
    jobs = {folder.name for folder in (tmp_path / "logs").iterdir()}
    assert len(jobs) == 2
    assert not jobs & set(topics_admin.list_jobs(connection))


@pytest.mark.dear
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("scene", "action"), [("restart", "KILL_RESTART"), ("dd", "ADJUST_BS")])
def test_a_scene_shows_one_policy_and_what_it_was_measured_to_save(
    scene: str, action: str, connection: Connection, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    where = ("--bootstrap-servers", connection.bootstrap, "--data-dir", str(tmp_path))
    demo = start("--scene", scene, *where, "--json", str(file))
    out = demo.communicate(timeout=280)[0]
    assert demo.returncode == 0, out
    found = json.loads(file.read_text())
    assert found["audit"]["exactly_once"]
    assert action in {one["action"] for one in found["decisions"]}
    assert any(one["effect"] for one in found["decisions"])
    assert "measured" in out


BROKER = "kafka/broker.log"
SERVICES = "logs/*/ledger.log"
TRAINING = "checkpoints/*/*/*.pt"  # the model before the first step


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (BROKER, signal.SIGINT),
        pytest.param(TRAINING, signal.SIGINT, marks=pytest.mark.dear),
        pytest.param(SERVICES, signal.SIGKILL, marks=pytest.mark.dear),
    ],
)
def test_nothing_is_left_running(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    demo = start("--workers", "3", "--data-dir", str(tmp_path), ANTDT_TEST_MARK=mark)
    try:
        until(lambda: any(tmp_path.glob(moment)) or demo.poll() is not None, moment)
        assert demo.poll() is None
        if moment is TRAINING:
            assert len(with_mark(mark)) >= 8, "demo, broker, ledger, monitor, launcher and three workers"
        demo.send_signal(number)
        out = demo.communicate(timeout=WITHIN_S)[0]
    finally:
        demo.kill()
    assert demo.returncode == (ExitCode.DRAINED if number is signal.SIGINT else -number), out
    assert "Traceback" not in out
    until(lambda: with_mark(mark) == [], f"still running: {with_mark(mark)}")


@pytest.mark.dear
def test_a_topic_is_trained_on_while_it_grows_and_a_worker_is_killed(connection: Connection, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    options = "--scene", "topic", "--workers", "3", "--bootstrap-servers", connection.bootstrap, "--json", str(file)
    demo = start(*options, ANTDT_DATA=str(tmp_path / "data"))
    said, _ = demo.communicate(timeout=150)
    assert demo.returncode == 0, said
    assert "w1 is killed" in said and "EXACTLY ONCE" in said
    found = json.loads(file.read_text())
    assert found["audit"]["records"] == 8_000 and found["audit"]["ended"]
