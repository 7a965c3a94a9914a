"""Worker processes forked from a launcher that has imported torch already.

Importing torch (and what an optimizer needs of it) takes seconds of CPU; four workers on two cores would take half a
minute to begin. The launcher imports it once and forks. It must therefore have no threads and no Kafka client of its
own when it forks: what needs one is done in a child.
"""

from __future__ import annotations

import gc
import io
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

from antdt_schemas.errors import ExitCode

from antdt.host import stacks, told, whereabouts
from antdt.host.child import SIGNALS, in_child, leave
from antdt.launch import environment


@dataclass(frozen=True)
class Life:
    """What a launcher gives to a worker beside its script: where its output goes (a file, or two descriptors), and the
    page that both share. `closes`: descriptors that are the launcher's alone. stacks: see there; -1: nowhere.
    """

    page: whereabouts.Page
    log: Path | None = None
    output: tuple[int, int] = (1, 2)
    closes: Sequence[int] = ()
    stacks: int = -1


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


def start(script: Sequence[str], environ: Mapping[str, str], life: Life) -> ForkProcess:
    """A process that runs `script` as `python SCRIPT` would: a file, or `-m MODULE`, and its arguments.

    SIGTERM tells it to leave from its first moment on (`told`).
    """
    return in_child(lambda: _become(script, environ, life), told.end)


def _become(script: Sequence[str], environ: Mapping[str, str], life: Life) -> None:
    told.insist()
    os.environ.clear()
    os.environ.update(environ)
    whereabouts.adopt(life.page)
    life.page.numbers[whereabouts.MAIN] = threading.get_ident()
    life.page.name_threads({threading.get_ident(): threading.current_thread().name})
    for handle in life.closes:
        os.close(handle)
    if life.stacks >= 0:
        stacks.listen(life.stacks)
    if life.log is not None:
        handle = os.open(life.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
    else:
        for number, handle in enumerate(life.output, 1):
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
    for stream in (sys.stdout, sys.stderr):
        # As PYTHONUNBUFFERED would have it, which this process was too old for.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(write_through=True)
    # An exception in the middle of an import is not sure to end it: told meanwhile, it leaves right behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    from antdt.strategies.allreduce.randomness import seed_all

    # A fork begins with the random numbers of whoever forked it, and so would each further life of a worker. Every
    # process draws its own, as one that was started anew does, until the script seeds it.
    seed_all(os.urandom(32))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    status = _run(list(script))
    if status == ExitCode.DONE and life.page.numbers[whereabouts.INCOMPLETE]:
        status = ExitCode.INCOMPLETE
    leave(status)


def _run(script: list[str]) -> int:
    from antdt.driving.holds import is_of_the_machine

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
            if hint := environment.hint_of(error, os.environ):
                print(f"antdt: {hint}", file=sys.stderr)
            # Samples are to blame, and said to be: the job goes on, and without them if it happens again. Or it is the
            # machine: the disk is full, or memory is out, of which the next life takes less.
            again = whereabouts.mine().numbers[whereabouts.BLAMED] or is_of_the_machine(error)
            return ExitCode.RESTART_HERE if again else ExitCode.BUG
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        whereabouts.mine().say(whereabouts.WORDS, str(error))
        return int(exit_code)
    return 0
