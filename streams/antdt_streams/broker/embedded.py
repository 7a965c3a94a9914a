"""One Apache Kafka broker (KRaft, one node, 127.0.0.1) as a child process with its data in a folder.

The folder holds everything: `data/`, `server.properties`, `ports.json` (a restart keeps its address), `broker.pid`,
`broker.log`, and `lock`, which the running broker itself holds, so that a folder never gets a second one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

from antdt_schemas.connection import Connection
from antdt_schemas.data_folder import HOST, LOCK, PORTS, ports_of, running, try_lock
from antdt_schemas.errors import Unavailable, UsageError

from antdt_streams.broker.archive import exercise, sharing_flags
from antdt_streams.broker.jars import ENV_JARS, KAFKA_VERSION, cache_folder, cached_jars, class_path
from antdt_streams.broker.java import find_java
from antdt_streams.broker.settings import JAVA_FLAGS, server_properties
from antdt_streams.broker.storage import copy_format, is_formatted, keep_format, random_id
from antdt_streams.host.child import end, spawn
from antdt_streams.host.files import write_whole

LOG_MAX_BYTES = 16 << 20
LAST_LINES = 12
BIND_ATTEMPTS = 3
POLL_S = 0.1
LOOK_S = 0.3


@dataclass(frozen=True)
class BrokerOptions:
    """Bounds and extras. `properties` go into server.properties and win; `environ` is where JAVA_HOME is looked up;
    `prefix` is a command that starts the broker, say `nice`. `java_flags` are more options of Java; with any of them it
    loads its classes one by one.
    """

    start_timeout_s: float = 60.0
    stop_timeout_s: float = 10.0
    heap_mb: int = 384
    properties: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    prefix: Sequence[str] = ()
    java_flags: Sequence[str] = ()


class EmbeddedBroker:
    """A broker on a folder. It never outlives the process that started it."""

    def __init__(self, folder: Path, options: BrokerOptions | None = None) -> None:
        self.folder = folder.absolute()
        self.options = options or BrokerOptions()
        self.log = self.folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    # -- what it is

    @property
    def bootstrap(self) -> str:
        assert self._port, "the broker was not started"
        return f"{HOST}:{self._port}"

    @property
    def connection(self) -> Connection:
        return Connection(self.bootstrap)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    # -- its life

    def start(self) -> Self:
        """Start it, format its storage first if need be, and wait until it serves clients. Keeps its port if free.

        Raises:
            UsageError: no Java, no jars, or a broker already runs on this folder.
            Unavailable: it ended or did not answer in time; the message has the last lines of its log.
        """
        assert self.pid is None, "already running"
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self._locked()
        try:
            java = self._java()  # what is fetched and prepared once does not count as a slow start
            deadline = time.monotonic() + self.options.start_timeout_s
            for _ in range(BIND_ATTEMPTS):
                self._configure()
                self._format(java, deadline)
                self._launch(java, lock)
                trouble = self._await_ready(deadline)
                if not trouble:
                    return self
                if "Address already in use" not in self._last_lines(lines=200):  # or somebody took the port meanwhile
                    break
            raise Unavailable(f"The embedded broker {trouble}.", self._last_lines())
        except BaseException:
            if self._process is not None:
                self.kill()
            raise
        finally:
            os.close(lock)  # the broker holds the same lock for as long as it runs

    def stop(self) -> None:
        """Stop it, by force after `stop_timeout_s`. Stopping a stopped broker is fine."""
        process = self._process
        if process is None:
            return
        end(process, self.options.stop_timeout_s)
        self._forget()

    def kill(self) -> None:
        """End it at once (SIGKILL), as a power cut would as far as processes see."""
        assert self._process is not None, "the broker was not started"
        self._process.kill()
        self._process.wait(self.options.stop_timeout_s)
        self._forget()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- how it starts

    def _locked(self) -> int:
        until = time.monotonic() + LOOK_S
        while (handle := try_lock(self.folder / LOCK)) is None:
            if time.monotonic() > until:
                raise UsageError(self._taken())
            time.sleep(POLL_S / 10)  # somebody may only be looking whether a broker runs
        (self.folder / "broker.pid").unlink(missing_ok=True)  # of one that was killed
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        return handle

    def _taken(self) -> str:
        """Whose it is. The process id of the broker is written before it answers, and after it was started."""
        pid, address = _read(self.folder / "broker.pid"), running(self.folder)
        if pid and address:
            return f"A broker already runs on {self.folder} (process {pid}): use it at {address}, or stop it first."
        who = _read(self.folder / LOCK) or "unknown"
        return f"A broker is being started on {self.folder} by another process ({who}): wait until that one is up."

    def _java(self) -> list[str]:
        environ = self.options.environ
        java, flags = find_java(environ), [*JAVA_FLAGS, "-cp", class_path(environ)]
        more = self.options.java_flags
        if not more and not environ.get(ENV_JARS):  # whoever brings jars of his own has no place of ours beside them
            more = sharing_flags(java, cached_jars(environ), flags, self._record)
        return [str(java), f"-Xmx{self.options.heap_mb}m", *flags, *more]

    def _record(self, flag: str, folder: Path) -> None:
        options = BrokerOptions(environ=self.options.environ, java_flags=(flag,))
        with EmbeddedBroker(folder, options) as broker:
            exercise(broker.connection)

    def _configure(self) -> None:
        stored = ports_of(self.folder)
        port, controller_port = _free_ports(stored.get("broker", 0), stored.get("controller", 0))
        ports = json.dumps({"broker": port, "controller": controller_port})
        write_whole(self.folder / PORTS, f"{ports}\n".encode())
        text = server_properties(self.folder, port, controller_port, self.options.properties)
        write_whole(self.folder / "server.properties", text.encode())
        self._port = port

    def _format(self, java: list[str], deadline: float) -> None:
        data, cache = self.folder / "data", cache_folder(self.options.environ)
        # With settings or jars of somebody else's, only Kafka knows what belongs there.
        usual = not self.options.properties and not self.options.environ.get(ENV_JARS)
        if is_formatted(data) or (usual and copy_format(data, cache)):
            return
        tool = ["kafka.tools.StorageTool", "format", "-t", random_id(), "-c", str(self.folder / "server.properties")]
        with self._log_file() as out:
            process = spawn([*java, *tool], stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=self.folder)
            try:
                code = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        if code:
            raise Unavailable(f"Storage for a broker cannot be formatted in {self.folder}.", self._last_lines())
        if usual:
            keep_format(data, cache)

    def _launch(self, java: list[str], lock: int) -> None:
        with self._log_file() as out:
            out.write(f"--- Apache Kafka {KAFKA_VERSION} starts on {self.bootstrap} with {java[0]}\n".encode())
            out.flush()
            command = [*self.options.prefix, *java, "kafka.Kafka", str(self.folder / "server.properties")]
            quiet = {"stdout": out, "stderr": out, "stdin": subprocess.DEVNULL, "cwd": self.folder}
            self._process = spawn(command, **quiet, pass_fds=(lock,))
        write_whole(self.folder / "broker.pid", f"{self._process.pid}\n".encode())

    def _await_ready(self, deadline: float) -> str:
        """Empty once it serves clients, else what became of it."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        assert self._process is not None
        client = AdminClient(self.connection.admin())
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return f"ended with exit code {self._process.returncode}"
            try:
                wait_s = min(1.0, max(0.01, deadline - time.monotonic()))
                if client.list_topics(timeout=wait_s).brokers:  # a fenced broker answers, but is not in the list
                    return ""
            except KafkaException:
                pass
            client.poll(POLL_S)
        return f"did not serve clients at {self.bootstrap} within {self.options.start_timeout_s:g} s"

    def _last_lines(self, lines: int = LAST_LINES) -> str:
        # A Java stack would push the one line that matters out of sight.
        text = [line for line in _read(self.log).splitlines() if not line.startswith("\tat ")][-lines:]
        return f"The last lines of {self.log}:\n" + "\n".join(text)

    def _log_file(self) -> BinaryIO:
        if self.log.exists() and self.log.stat().st_size > LOG_MAX_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        return self.log.open("ab")

    def _forget(self) -> None:
        self._process = None
        (self.folder / "broker.pid").unlink(missing_ok=True)


def _free_ports(*wanted: int) -> list[int]:
    """One free port for each wanted one: that very port where it is free."""
    held: list[socket.socket] = []
    try:
        for port in wanted:
            probe = socket.socket()
            held.append(probe)
            # As the broker itself does: connections of its predecessor in TIME_WAIT must not cost it its port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                probe.listen(1)
            except OSError:
                probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in held]
    finally:
        for probe in held:
            probe.close()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""
