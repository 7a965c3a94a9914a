"""Forked children that die with their parent, and how a process ends."""

from __future__ import annotations

import atexit
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkProcess
from types import FrameType
from typing import NoReturn

from antdt.host import told

PR_SET_PDEATHSIG = 1
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], None] | signal.Handlers


def in_child(target: Callable[[], None], on_sigterm: Handler = signal.SIG_DFL) -> ForkProcess:
    """Run something in a forked child that dies with this process."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(target, os.getpid(), on_sigterm))
    # What comes between the fork and the child's own handlers would be taken by those of the launcher, in the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with garbage_is_the_parents():
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


@contextmanager
def garbage_is_the_parents() -> Iterator[None]:
    """Around a fork, whose child then calls `keep_garbage`.

    Garbage of the parent may hold what lives by its threads: a client of Kafka, a process group. A child that collects
    it takes apart what is not there: it waits for ever, or crashes (seen: once in some ten runs of a busy test suite).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def keep_garbage() -> None:
    """In a forked child, first of all: what came with the fork is never collected here; what it makes itself is."""
    gc.freeze()
    gc.enable()


def die_with_parent(is_alive: Callable[[], bool]) -> None:
    """Be killed by the system when the parent ends, however it ends; at once if it has already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not is_alive():
        os._exit(0)


def _child(target: Callable[[], None], parent: int, on_sigterm: Handler) -> None:
    keep_garbage()
    die_with_parent(lambda: os.getppid() == parent)
    # Ctrl-C in the terminal is for the launcher, which tells its workers.
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, on_sigterm)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    target()


def leave(code: int) -> NoReturn:
    """End as the interpreter would, without taking everything apart first.

    After `preload` that takes a third of a second, and bindings report what was frozen as thirty lines of leaks. In a
    forked child it is also the only way that what a script registered for its end is done.
    """
    if signal.getsignal(signal.SIGTERM) is told.end:  # it is ending: what is done at an exit is done to its end
        signal.signal(signal.SIGTERM, lambda *_: told.remember())
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
