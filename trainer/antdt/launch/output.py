"""What workers say, line by line behind their names: `[w0] epoch 1`.

Each worker has two pipes, read by the launcher's own loop: a launcher has no threads. A progress bar that draws itself
over and over (with a carriage return) stays one; a line of any length is cut where it would fill the memory.
"""

from __future__ import annotations

import os
import re
import selectors
from contextlib import suppress
from time import sleep

LINE_BYTES_MAX = 1 << 16
_ENDS = re.compile(rb"\r\n|\n|\r(?!\Z)")


class Stream:
    """One pipe of one worker, and where it goes."""

    def __init__(self, name: str, target: int) -> None:
        self.prefix, self.target, self._rest = f"[{name}] ".encode(), target, b""
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)

    def read(self) -> bool:
        """Pass on what is there. False once nothing will come any more."""
        while True:
            try:
                data = os.read(self.reading, LINE_BYTES_MAX)
            except BlockingIOError:
                return True
            if not data:
                return False
            write(self.target, self.lines(data))

    def lines(self, data: bytes, *, last: bool = False) -> bytes:
        """What can be shown now. A line that is not ended waits for its end."""
        self._rest += data
        out, at = [], 0
        for found in _ENDS.finditer(self._rest):
            text, again = self._rest[at : found.start()], found.group() == b"\r"
            at = found.end()
            if text or not again:
                out.append(b"%b%b%b" % (self.prefix, text, b"\r" if again else b"\n"))
        self._rest = self._rest[at:]
        if len(self._rest) > LINE_BYTES_MAX or (last and self._rest.strip(b"\r")):
            out.append(b"%b%b\n" % (self.prefix, self._rest.rstrip(b"\r")))
            self._rest = b""
        return b"".join(out)

    def close(self) -> None:
        """The worker has ended: what it has written is shown, all of it."""
        self.read()
        write(self.target, self.lines(b"", last=True))
        os.close(self.reading)


class Output:
    """The pipes of all workers."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def open(self, name: str) -> tuple[Stream, Stream]:
        """Standard output and standard error of a worker that is about to be started."""
        streams = Stream(name, 1), Stream(name, 2)
        for stream in streams:
            self._selector.register(stream.reading, selectors.EVENT_READ, stream)
        return streams

    def started(self, streams: tuple[Stream, Stream]) -> None:
        """The worker has its ends of the pipes: ours would hide that it closed them."""
        for stream in streams:
            os.close(stream.writing)

    def pump(self, timeout_s: float) -> None:
        """Pass on what comes within this time; returns soon after something came."""
        if not self._selector.get_map():
            sleep(timeout_s)
            return
        for key, _ in self._selector.select(timeout_s):
            if not key.data.read():
                self._selector.unregister(key.fd)

    def close(self, streams: tuple[Stream, Stream]) -> None:
        for stream in streams:
            with suppress(KeyError):
                self._selector.unregister(stream.reading)
            stream.close()


def say(text: str) -> None:
    """A line of the launcher's own, on standard error."""
    write(2, f"{text}\n".encode())


_lost: dict[int, int] = {}  # lines, by where they were to go


def write(target: int, data: bytes) -> None:
    """All of it. Where nobody listens any more, or the disk is full, nothing, which ends no launch; what is written
    later says how much is missing.
    """
    lost = _lost.get(target, 0)
    if lost and data:
        data = b"antdt launch: %d lines are missing here: they could not be written.\n" % lost + data
    while data:
        try:
            data = data[os.write(target, data) :]
        except BlockingIOError:
            sleep(0.01)
        except OSError:
            _lost[target] = lost + max(1, data.count(b"\n")) - bool(lost)
            return
        else:
            _lost.pop(target, None)
            lost = 0
