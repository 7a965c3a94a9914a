"""The manifests of deploy/kubernetes as local processes: the very command line and environment of each container, its
probes, and pods that are started again by the rules of the manifest, on a real broker.

What stands in for the cluster: volumes are folders, a pod is a process, and this file is the controller.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from antdt_schemas.connection import Connection
from antdt_schemas.errors import ExitCode
from antdt_streams.cli.main import main
from antdt_streams.views.avoided import affinity, patch
from antdt_streams.views.job import audit_of
from click.testing import CliRunner

from tests.helpers.in_progress import committed, joined, long_enough, members, order
from tests.helpers.manifests import (
    BASE,
    HERE,
    KUBERNETES,
    WORKERS,
    Container,
    Machine,
    after,
    at,
    container,
    document,
    rules_of,
    settings,
)
from tests.helpers.warm import Warm, launched, module

pytestmark = [pytest.mark.kafka, pytest.mark.dear, pytest.mark.timeout(400)]
WITHIN_S, LOOK_S = 120.0, 0.3
PODS = 4
SERVICES = ("ledger", "monitor", "controller")


class Cluster:
    """Starts containers, and ends all of them."""

    def __init__(self, folder: Path, connection: Connection, job: str) -> None:
        self.folder, self.processes = folder, list[Warm]()
        self.settings = settings() | {"ANTDT_JOB": job, "ANTDT_KAFKA_BOOTSTRAP_SERVERS": connection.bootstrap}
        self.checkpoints = folder / "checkpoints"  # one for all pods, as the claim is

    def container(
        self, template: Mapping[str, object], pod: str, node: str, index: int, adds: Mapping[str, str]
    ) -> Container:
        mounts = {}
        for volume in template["spec"]["volumes"]:  # type: ignore[index]
            claimed = "persistentVolumeClaim" in volume
            mounts[volume["name"]] = self.checkpoints if claimed else self.folder / pod / volume["name"]
            mounts[volume["name"]].mkdir(parents=True, exist_ok=True)
        return container(template, Machine(mounts, self.settings, node, index, adds))

    def start(self, one: Container, pod: str) -> Warm:
        """With nothing in the environment but what an image has anyway, and the manifest says."""
        image = {name: os.environ[name] for name in ("PATH", "HOME", "VIRTUAL_ENV") if name in os.environ}
        environ, output = image | one.environ, self.folder / f"{pod}.log"
        if one.arguments[0] == "launch":
            process = launched(one.arguments[1:], environ, output)
        else:
            process = module(["antdt_streams", *one.arguments], environ, output)
        self.processes.append(process)
        return process

    def said(self) -> str:
        return "\n".join(f"-- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))

    def until(self, holds: object, what: str) -> None:
        end = time.monotonic() + WITHIN_S
        while not holds():  # type: ignore[operator]
            assert time.monotonic() < end, f"{what}\n{self.said()}"
            time.sleep(LOOK_S)


@contextmanager
def cluster(folder: Path, connection: Connection, job: str) -> Iterator[Cluster]:
    one = Cluster(folder, connection, job)
    try:
        yield one
    finally:
        for process in one.processes:
            process.kill()
        for process in one.processes:
            process.wait(10)


def services(here: Cluster) -> None:
    """The base: the topics are made, every replica's probe of its start succeeds."""
    topics = here.container(document(BASE / "topics.yaml", "Job")["spec"]["template"], "topics", "node-9", 0, {})
    assert here.start(topics, "topics").wait(WITHIN_S) == 0, here.said()
    for name in SERVICES:
        spec = document(BASE / f"{name}.yaml", "Deployment")["spec"]
        for replica in range(spec["replicas"]):
            pod = f"{name}-{replica}"
            one = here.container(spec["template"], pod, f"node-{replica}", 0, {})
            here.start(one, pod)
            for probe in ("startupProbe", "readinessProbe"):
                command = one.probe(probe)
                here.until(lambda: subprocess.run(command, check=False).returncode == 0, f"{pod} is not ready")  # noqa: B023


class Workers:
    """The pods of one manifest, and what follows when one has ended. seconds: lives of each pod by now."""

    def __init__(self, here: Cluster, file: str) -> None:
        self.here, self.file, self.rules = here, file, rules_of(file)
        kind, path, self.adds = WORKERS[file]
        self.template = at(document(KUBERNETES / file, kind), path)
        self.nodes = {index: f"node-{index}" for index in range(PODS)}
        self.lives, self.ends = dict.fromkeys(range(PODS), 0), list[tuple[int, int]]()
        self.running = {index: self._start(index) for index in range(PODS)}

    def _start(self, index: int) -> Warm:
        pod = f"worker-{index}-{self.lives[index]}"
        self.lives[index] += 1
        return self.here.start(self.here.container(self.template, pod, self.nodes[index], index, self.adds), pod)

    def look(self) -> bool:
        """One turn of a controller: whether all pods have succeeded."""
        for index, process in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            self.ends.append((index, code))
            del self.running[index]
            if code == 0:
                continue
            assert after(self.rules, code) in ("Ignore", "Count", "RestartPod"), f"{code}\n{self.here.said()}"
            if code == ExitCode.RESTART_ELSEWHERE:
                self.nodes[index] = "node-8"
            self.running[index] = self._start(index)
        return not self.running


def avoided(connection: Connection, job: str) -> None:
    """The node that w2 has left is named, in each of the forms."""

    def said(*options: str) -> str:
        done = CliRunner().invoke(main, ["avoid-nodes", job, "--bootstrap-servers", connection.bootstrap, *options])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert said() == "node-2\n"
    (one,) = json.loads(said("--format", "json"))["nodes"]
    assert (one["node"], one["worker"], one["reason"]) == ("node-2", "w2", "policy test: slow")
    assert json.loads(said("--format", "nodeAffinity")) == affinity(["node-2"])
    assert json.loads(said("--format", "patch", "--kind", "jobset")) == patch(["node-2"], "jobset")
    assert said("--expire-h", "0.0001") == said("--max", "0") == ""


@pytest.mark.parametrize("file", WORKERS)
def test_a_job_of_this_manifest_is_exact_though_a_pod_is_evicted_and_one_is_to_go_elsewhere(
    file: str, connection: Connection, job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "train.py").write_text(long_enough((HERE / "examples" / "train.py").read_text()))
    monkeypatch.chdir(app)  # as the image of workers does
    with cluster(tmp_path, connection, job) as here:
        services(here)
        workers = Workers(here, file)
        here.until(lambda: committed(connection, job) > 1500, "no training")
        workers.running[1].send_signal(signal.SIGTERM)
        here.until(lambda: workers.look() or workers.lives[1] == 2, "the evicted pod is not back")
        here.until(lambda: members(connection, job) == PODS, "it is no member")
        order(connection, job, "w2")
        here.until(lambda: workers.look() or workers.lives[2] == 2, "nobody goes elsewhere")
        here.until(lambda: members(connection, job) == PODS, "it is no member elsewhere")
        (app / "go").touch()
        here.until(workers.look, "no end")
        assert (1, 143) in workers.ends and (2, 76) in workers.ends, here.said()
        assert sorted(code for _, code in workers.ends) == [0, 0, 0, 0, 76, 143]
        audit = audit_of(connection, job)
        assert audit["exactly_once"], audit
        ran = joined(connection, job)
        assert ran == [
            ("w0", "node-0"),
            ("w1", "node-1"),
            ("w1", "node-1"),
            ("w2", "node-2"),
            ("w2", "node-8"),
            ("w3", "node-3"),
        ]
        avoided(connection, job)
