"""Scenes of the demo that are one run each: one policy at work, what it decided, and what that was measured to save."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

from antdt_schemas import codec
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode, Unavailable
from antdt_schemas.records import Action, Decision, Parameter, Steering
from antdt_schemas.topics import DECISIONS
from rich.console import RenderableType
from rich.text import Text

from antdt_streams.demo.options import DemoOptions
from antdt_streams.demo.run import GRACE_S, POLL_S, Screen, Watch
from antdt_streams.host.child import end, spawn
from antdt_streams.kafka import topics_admin
from antdt_streams.kafka.reader import TopicReader, decoded
from antdt_streams.kafka.steer import steer
from antdt_streams.local.place import Place
from antdt_streams.local.services import SERVICES, environment_of, start_services
from antdt_streams.local.supervise import Supervisor, last_words
from antdt_streams.views.job import audit_of

WORKERS = 4
READY_S = 60.0


@dataclass(frozen=True)
class SceneOptions(DemoOptions):
    """What the screen goes by: nothing is done to the workers but what the scene's title says."""

    @property
    def injected(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class Scene:
    """parameters: of the policy, as a launch on one machine has them."""

    policy: str
    title: str
    script: tuple[str, ...]
    parameters: tuple[tuple[str, str], ...] = ()


SCENES = {
    "restart": Scene(
        "nd",
        "w1 falls ill after a fifth of the run, and AntDT-ND starts it again once it has cost more than that",
        ("--slow", "w1:3@0.2", "--epochs", "24"),
        (("restart_s", "2"), ("pause_s", "0.5"), ("cooldown_s", "30")),
    ),
    "dd": Scene(
        "dd",
        "w2 and w3 are three times as slow, and hold 12 samples at a time: AntDT-DD deals out quotas",
        ("--slow", "w2:3,w3:3", "--holds", "w0:24,w1:24,w2:12,w3:12", "--overhead-ms", "10", "--epochs", "12"),
    ),
}


def show(name: str, job: str, place: Place, connection: Connection, screen: Screen) -> dict[str, Any]:
    """Run a scene to its end; the result is what `--json` writes."""
    scene = SCENES[name]
    topics_admin.create(connection, job)
    folder = place.data / "demo" / job
    folder.mkdir(parents=True, exist_ok=True)
    supervisor, watch = start_services(job, place, connection, SERVICES, scene.policy), Watch(connection, job)
    try:
        supervisor.await_ready(READY_S, threading.Event())
        if scene.parameters:
            said = tuple(Parameter(*one) for one in scene.parameters)
            steer(connection, job, Steering("demo", parameters=said, reason="what a restart costs on one machine"))
        watch.start()
        _train(scene, job, place, connection, watch, supervisor, screen)
    finally:
        watch.stop()
        supervisor.stop()
    with TopicReader(connection, job, DECISIONS) as reader:
        decisions = [decision for _, decision in decoded(reader.to_end(), Decision)]
    report = audit_of(connection, job)
    made = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {
        "scene": name, "title": scene.title, "train_s": report["train_s"], "accuracy": made["accuracy"],
        "audit": report, "decisions": [codec.to_json(one) for one in decisions if _matters(one)], "jobs": [job],
    }  # fmt: skip


def _matters(decision: Decision) -> bool:
    return decision.action is not Action.NONE or decision.effect is not None


def _train(
    scene: Scene,
    job: str,
    place: Place,
    connection: Connection,
    watch: Watch,
    supervisor: Supervisor,
    screen: Screen,
) -> None:
    log, result = place.data / "logs" / job / "workers.log", place.data / "demo" / job / "result.json"
    command = [sys.executable, "-m", "antdt.launch", "--job", job, "-n", str(WORKERS), "--"]
    command += ["-m", "antdt.examples.unlike", *scene.script, "--result", str(result)]
    environ = dict(os.environ) | environment_of(connection, place)
    with log.open("ab") as out:
        process = spawn(command, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            threading.Event().wait(POLL_S)
            supervisor.poll()
            if watch.failure is not None:
                raise watch.failure
            screen.show(watch, scene.title)
        if process.returncode != ExitCode.DONE:
            raise Unavailable(f"The workers ended with status {process.returncode}: {last_words(log)}")
    finally:
        end(process, GRACE_S)


def told(result: dict[str, Any]) -> RenderableType:
    """What came out of a scene."""
    lines = [f"{result['title']}.", ""]
    for one in result["decisions"]:
        what = one["action"] if one["effect"] is None else "measured"
        lines.append(f"  {what:<13} {one['reason']}")
    audit = result["audit"]
    made = f"{result['train_s']:.1f} s, {audit['steps']} steps, accuracy {result['accuracy']:.3f}"
    return Text("\n".join([*lines, "", made, audit["verdict"]]))
