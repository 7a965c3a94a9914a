"""Keeps the broker of a folder for all who use it: the last one turns off the light.

    python -m antdt_streams.broker.keeper FOLDER DESCRIPTOR

A process of its own, in a session of its own, because a broker that is the child of the first job would end with it.
Each user has a shared lock on `users`, which ends with the user whatever that dies of. Whoever gets that lock alone
knows that nobody is left, and keeps newcomers waiting until the broker has ended. The broker is the keeper's child and
dies with it. DESCRIPTOR takes one line once it is known whether the broker serves clients.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from antdt_schemas.errors import AntdtError, ExitCode, Unavailable

from antdt_streams.broker.embedded import EmbeddedBroker
from antdt_streams.host import locks
from antdt_streams.host.logs import log_to_stderr

USERS, KEEPER, LOG = "users", "keeper", "keeper.log"
LOOK_EVERY_S = 0.25
PREDECESSOR_S = 20.0
STARTS_MAX = 5
STEADY_S = 60.0


def keep(folder: Path, report: int) -> int:
    """Have a broker on this folder until nobody uses it. The exit code."""
    broker = EmbeddedBroker(folder)
    try:
        _be_the_only_one(folder)
        threading.Thread(target=_await_the_last, args=(folder,), daemon=True).start()
        broker.start()
    except AntdtError as error:
        _report(report, {"code": int(error.exit_code), "message": str(error)})
        return int(error.exit_code)
    except OSError as error:
        _report(report, {"code": int(ExitCode.RESTART_HERE), "message": f"No broker can be had on {folder}: {error}."})
        return int(ExitCode.RESTART_HERE)
    try:
        _report(report, {})
        with (folder / LOG).open("ab") as log:  # the terminal of whoever has started this is theirs: it may be closed
            os.dup2(log.fileno(), 2)
        return _watch(broker)
    finally:
        broker.stop()


def _be_the_only_one(folder: Path) -> None:
    until = time.monotonic() + PREDECESSOR_S
    while locks.acquire(folder / KEEPER) is None:  # held until this process ends
        if time.monotonic() > until:
            who = locks.holder(folder / KEEPER)
            raise Unavailable(f"Process {who}, which kept the broker of {folder}, does not end.", "Stop it first.")
        time.sleep(LOOK_EVERY_S)


def _await_the_last(folder: Path) -> None:
    """Ends this process, in order, once nobody uses the broker; also one that is still starting."""
    while locks.acquire(folder / USERS) is None:
        time.sleep(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _watch(broker: EmbeddedBroker) -> int:
    """Start it again when it ends by itself."""
    starts, since = 0, time.monotonic()
    while True:
        time.sleep(LOOK_EVERY_S)
        if broker.pid is not None:
            continue
        now = time.monotonic()
        starts, since = (starts + 1 if now - since < STEADY_S else 1), now
        print(f"The broker has ended: it is started again ({starts}). See {broker.log}", file=sys.stderr, flush=True)
        try:
            if starts > STARTS_MAX:
                raise Unavailable(f"The broker has ended {STARTS_MAX} times in a row.")
            broker.start()
        except AntdtError as error:
            print(f"{error}", file=sys.stderr, flush=True)
            if starts >= STARTS_MAX:
                return int(error.exit_code)


def _report(descriptor: int, what: dict[str, Any]) -> None:
    with suppress(OSError):  # whoever has started this has ended meanwhile
        os.write(descriptor, json.dumps(what).encode() + b"\n")
    os.close(descriptor)


def _end(*_: object) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(ExitCode.DONE)


if __name__ == "__main__":
    log_to_stderr("-", "broker")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    sys.exit(keep(Path(sys.argv[1]), int(sys.argv[2])))
