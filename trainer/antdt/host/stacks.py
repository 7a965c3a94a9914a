"""The Python stacks of another process of this machine, whatever it is at.

Owns the signal at which a process writes them, and who may be sent it. Python's faulthandler answers, in C: it waits
neither for the interpreter nor for who holds it, so a process that hangs in a collective, a lock or a library answers
as well as one that works, and goes on as it was. Must not know who wants them.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import platform
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

# Of the real-time signals, which neither libraries nor schedulers use as they do SIGUSR1 and SIGUSR2.
SIGNAL = signal.SIGRTMIN + 11
NAME = "antdt-stacks"
WITHIN_S = 3.0
STILL_S = 0.1  # nothing more comes
POLL_S = 0.01
BYTES_MAX = 1 << 20
TGKILL = {"x86_64": 234, "aarch64": 131, "riscv64": 131}  # glibc has had a function for it since 2.30 only
THREAD = re.compile(r"^(?:Current t|T)hread 0x([0-9a-f]+)(?: \[[^\n]*\])? \(most recent call first\):$", re.MULTILINE)


def memory() -> int:
    """Where a process that is forked from here writes them: never full, and gone with the last who has it. -1 where the
    system gives none: that keeps nobody from training.
    """
    try:
        return os.memfd_create(NAME)
    except OSError:
        return -1


def listen(handle: int) -> None:
    """From now on this process, and each that it forks, writes the stacks of all its threads there at SIGNAL."""
    faulthandler.register(SIGNAL, file=handle, all_threads=True)


def refusal(pid: int, handle: int) -> str:
    """Why a process is not sent the signal; empty if it may be. To one that does not listen it would be its end."""
    if handle < 0:
        return "the system of its machine gives no memory for them (memfd_create)"
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        fields = dict(line.partition(":\t")[::2] for line in status.splitlines())
        written = os.readlink(f"/proc/{pid}/fd/{handle}")
    except FileNotFoundError:
        return "its process is gone, or its script has closed descriptors that are not its own"
    except OSError as error:
        return f"its process cannot be looked at ({error.strerror})"
    state = fields.get("State", "X")[:1]
    if state in "tT":
        return "its process is stopped (SIGSTOP, or a debugger): nothing of it runs until it is continued (kill -CONT)"
    if state in "ZXx":
        return "its process has ended"
    if not int(fields.get("SigCgt", "0"), 16) >> (SIGNAL - 1) & 1:
        return f"its script has taken signal {SIGNAL} for itself"
    if NAME not in written:
        return "its script has closed descriptors that are not its own"
    return ""


def dump(pid: int, handle: int, thread: int = 0, within_s: float = WITHIN_S) -> str:
    """What faulthandler of that process writes; empty if it does not, in time. One at a time for each descriptor.

    thread: the kernel's number of one that answers where the main one sleeps. A call of C that waits (sleep, poll) may
    end early at a signal that is its own thread's; but whoever runs must answer itself, so that nobody reads what it
    is changing.
    """
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)  # the place where all write who have it
    with suppress(OSError):
        if not (thread and _sleeps(pid) and _told_thread(pid, thread)):
            os.kill(pid, SIGNAL)
    until_s, size, grew_s = monotonic() + within_s, 0, monotonic()
    while monotonic() < until_s and not (size and monotonic() - grew_s > STILL_S):
        sleep(POLL_S)
        now = os.fstat(handle).st_size
        if now != size:
            size, grew_s = now, monotonic()
    return os.pread(handle, BYTES_MAX, 0).decode(errors="replace")


def told(dumped: str, names: Mapping[int, str], main: int, outside: str = "") -> str:
    """The same for people: threads by their names, the main one first, then the longest-lived. outside: what the first
    frame begins with that is of no interest, as are those that led to it.
    """
    heads = list(THREAD.finditer(dumped))
    if not heads:
        return dumped.strip()
    ends = [head.start() for head in heads[1:]] + [len(dumped)]
    found = [(int(head[1], 16), dumped[head.end() : end].strip("\n")) for head, end in zip(heads, ends, strict=True)]
    found.reverse()  # the youngest is written first
    found.sort(key=lambda one: one[0] != main)
    out = []
    for ident, body in found:
        inner = body.partition(outside)[0].rstrip("\n") if outside else body
        out.append(f"{names.get(ident) or f'a thread without a name ({ident:#x})'}\n{inner or body}")
    return "\n\n".join(out)


def _sleeps(pid: int) -> bool:
    """Whether the main thread of a process waits in a call that a signal might end."""
    return Path(f"/proc/{pid}/task/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "S"


def _told_thread(pid: int, thread: int) -> bool:
    """Send the signal to one thread of a process; False if it is not there, or this machine's call is not known."""
    number = TGKILL.get(platform.machine())
    return number is not None and ctypes.CDLL(None).syscall(number, pid, thread, int(SIGNAL)) == 0
