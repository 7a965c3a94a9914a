"""Worker processes forked from a launcher that has imported torch already.

Importing torch (and what an optimizer needs of it) takes seconds of CPU; four workers on two cores would take half a
minute to begin. The launcher imports it once and forks. It must therefore have no threads and no Kafka client of its
own when it forks: what needs one is done in a child.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NoReturn

from antdt_schemas.errors import ExitCode

from antdt import whereabouts

PR_SET_PDEATHSIG = 1


def preload(environ: Mapping[str, str]) -> None:
    """Import what every worker imports. Thread counts are read while importing, so they are set before."""
    os.environ["OMP_NUM_THREADS"] = environ.get("OMP_NUM_THREADS", "1")
    # Nothing that is imported is ever garbage: looking for it takes a sixth of the time, and later, in every worker,
    # would copy the pages that they share.
    gc.disable()
    import torch
    import torch._dynamo  # constructing an optimizer imports it

    from antdt import agent

    assert agent is not None
    assert torch is not None
    gc.freeze()
    gc.enable()


def start(script: Sequence[str], environ: Mapping[str, str], log: Path | None, page: whereabouts.Page) -> ForkProcess:
    """A process that runs `script` as `python SCRIPT` would: a file, or `-m MODULE`, and its arguments.

    page: shared with it.
    """
    return in_child(lambda: _become(script, environ, log, page))


def leave(code: int) -> NoReturn:
    """End as the interpreter would, without taking everything apart first.

    After `preload` that takes a third of a second, and bindings report what was frozen as thirty lines of leaks. In a
    forked child it is also the only way that what a script registered for its end is done.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def in_child(target: Callable[[], None]) -> ForkProcess:
    """Run something in a forked child that dies with this process."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(target, os.getpid()))
    process.start()
    return process


def die_with_parent(is_alive: Callable[[], bool]) -> None:
    """Be killed by the system when the parent ends, however it ends; at once if it has already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not is_alive():
        os._exit(0)


def _child(target: Callable[[], None], parent: int) -> None:
    die_with_parent(lambda: os.getppid() == parent)
    # Ctrl-C in the terminal is for the launcher, which tells its workers.
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    target()


def _become(script: Sequence[str], environ: Mapping[str, str], log: Path | None, page: whereabouts.Page) -> None:
    whereabouts.adopt(page)
    os.environ.clear()
    os.environ.update(environ)
    if log is not None:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
    status = _run(list(script))
    if status == ExitCode.DONE and page.numbers[whereabouts.INCOMPLETE]:
        status = ExitCode.INCOMPLETE
    leave(status)


def _run(script: list[str]) -> int:
    try:
        if script[0] == "-m":
            sys.argv = script[1:]
            sys.path.insert(0, str(Path.cwd()))
            runpy.run_module(script[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = script
            sys.path.insert(0, str(Path(script[0]).resolve().parent))
            runpy.run_path(script[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return int(end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001  as the interpreter does: the traceback, and a status of its own
        exit_code = getattr(error, "exit_code", None)
        if exit_code is None:
            # As the interpreter: whoever wants to know what ends this process is told.
            sys.excepthook(type(error), error, error.__traceback__)
            # Samples are to blame, and said to be: the job goes on, and without them if it happens again.
            return ExitCode.RESTART_HERE if whereabouts.mine().numbers[whereabouts.BLAMED] else ExitCode.BUG
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return int(exit_code)
    return 0
