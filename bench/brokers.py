"""Whether a job runs on brokers of other versions and makers: `python -m bench.brokers --json FILE`.

On each one a real job is started (`antdt up`), trained by two workers (`antdt launch`), audited, and its topics are
checked. Apache Kafka comes from Maven Central by jgo, kfake (a broker in Go, for tests) from the module proxy by `go`;
what cannot be fetched is said and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from antdt_schemas.connection import ENV_BOOTSTRAP
from antdt_schemas.data_folder import ENV_DATA
from antdt_streams.broker import BrokerOptions, EmbeddedBroker
from antdt_streams.broker.jars import ENV_JARS

from bench.common import machine, write

KAFKA = ("3.9.1", "4.0.0", "4.4.0")
SLF4J = "org.slf4j:slf4j-simple:1.7.36"
# Of one repository, but only the first has versions: this is one of the second that fits it.
MODULES = ("franz-go@v1.22.3", "franz-go/pkg/kfake@v0.0.0-20260918054303-01f206a7e32c")
KFAKE = """package main

import (
	"fmt"
	"io"
	"os"

	"github.com/twmb/franz-go/pkg/kfake"
)

func main() {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer cluster.Close()
	fmt.Println(cluster.ListenAddrs()[0])
	io.Copy(io.Discard, os.Stdin) // until whoever has started it is gone
}
"""
JOB, WITHIN_S = "matrix", 180
TRAIN = ("--samples", "800", "--epochs", "2", "--delay-ms", "1", "--checkpoint-every", "20")
ANTDT = [sys.executable, "-m", "antdt_streams"]

Started = AbstractContextManager[str]


@contextmanager
def kafka(version: str, folder: Path) -> Iterator[str]:
    """Apache Kafka of a version: its address."""
    import jgo

    jars = folder / "jars"
    jars.mkdir()
    for artifact in jgo.resolve(f"org.apache.kafka:kafka_2.13:{version}+{SLF4J}"):
        shutil.copy2(artifact.resolve(), jars)
    options = BrokerOptions(environ={**os.environ, ENV_JARS: str(jars)})
    with EmbeddedBroker(folder / "kafka", options) as broker:
        yield broker.bootstrap


@contextmanager
def kfake(folder: Path) -> Iterator[str]:
    """A broker in Go that keeps everything in memory: its address."""
    (folder / "main.go").write_text(KFAKE)

    def go(*arguments: str) -> None:
        subprocess.run(["go", *arguments], cwd=folder, check=True, capture_output=True, timeout=600)

    go("mod", "init", "broker")
    go("get", *(f"github.com/twmb/{module}" for module in MODULES))
    go("build", "-o", "broker", ".")
    with subprocess.Popen([folder / "broker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def trial(bootstrap: str, folder: Path) -> dict[str, Any]:
    """One job from its topics to its audit: exit statuses, seconds, what was said when something went wrong."""
    environ = {**os.environ, ENV_BOOTSTRAP: bootstrap, ENV_DATA: str(folder / "data"), "OMP_NUM_THREADS": "1"}
    began_s = monotonic()

    def run(*arguments: str) -> tuple[int, str]:
        command = [*ANTDT, *arguments]
        done = subprocess.run(
            command, env=environ, cwd=folder, capture_output=True, text=True, timeout=WITHIN_S, check=False
        )
        return done.returncode, done.stdout + done.stderr

    with (folder / "up.log").open("w+") as said:
        up = subprocess.Popen([*ANTDT, "up", JOB], env=environ, cwd=folder, stdout=said, stderr=said)
        try:
            while "is up" not in (folder / "up.log").read_text():
                if up.poll() is not None or monotonic() - began_s > WITHIN_S:
                    return {"up": up.poll(), "said": (folder / "up.log").read_text()[-500:]}
                sleep(0.1)  # between two looks
            script = Path(__file__).parents[1] / "trainer" / "antdt" / "examples" / "recorded.py"
            record = ("--record", str(folder / "record"), *TRAIN)
            launch, told = run("launch", "--job", JOB, "-n", "2", str(script), *record)
            audit, report = run("audit", JOB, "--json")
            check, differs = run("topics", "check", JOB)
        finally:
            up.send_signal(signal.SIGTERM)
            code = up.wait(WITHIN_S)
    proven = json.loads(report) if audit in (0, 1) else {}
    return {
        "launch": launch,
        "audit": audit,
        "committed": proven.get("committed", 0),
        "differences": len(differs.splitlines()) if check else 0,
        "up": code,
        "seconds": round(monotonic() - began_s, 1),
        "said": ""
        if launch == audit == check == 0
        else "\n".join((told[-500:], report[-300:], differs[-500:])).strip(),
    }


def main() -> None:
    """Every broker in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="a version of Kafka, or kfake; may be given again")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    brokers: dict[str, Callable[[Path], Started]] = {
        version: lambda folder, version=version: kafka(version, folder) for version in KAFKA
    }
    brokers["kfake"] = kfake
    results: dict[str, Any] = {}
    print(f"{'broker':<8} {'launch':>6} {'audit':>6} {'committed':>10} {'topics differ':>14} {'seconds':>8}")
    for name in options.only or brokers:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            try:
                with brokers[name](folder) as bootstrap:
                    found = trial(bootstrap, folder)
            except (OSError, subprocess.SubprocessError, ImportError) as error:
                found = {"said": f"left out: {type(error).__name__}: {error}"}
        results[name] = found
        columns = [str(found.get(key, "-")) for key in ("launch", "audit", "committed", "differences", "seconds")]
        print(
            f"{name:<8} {columns[0]:>6} {columns[1]:>6} {columns[2]:>10} {columns[3]:>14} {columns[4]:>8}", flush=True
        )
        if found.get("said"):
            print(found["said"], file=sys.stderr, flush=True)
    write(options.json, {"machine": machine(), "brokers": results})


if __name__ == "__main__":
    main()
