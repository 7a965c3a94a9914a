"""What a launcher cannot write ends nothing, and is counted."""

from __future__ import annotations

import os

from antdt.launch import output


def test_what_a_full_disk_does_not_take_is_counted_and_ends_nothing() -> None:
    reading, writing = os.pipe()
    full = os.open("/dev/full", os.O_WRONLY)
    output.write(full, b"[w0] one\n[w0] two\n")
    output.write(full, b"[w0] three\n")
    os.dup2(writing, full)  # there is room again
    output.write(full, b"[w0] four\n")
    output.write(full, b"[w0] five\n")
    os.close(full)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said, *rest = pipe.read().splitlines()
    assert said == b"antdt launch: 3 lines are missing here: they could not be written."
    assert rest == [b"[w0] four", b"[w0] five"]


def test_a_line_of_the_launcher_ends_nothing_either() -> None:
    kept, full = os.dup(2), os.open("/dev/full", os.O_WRONLY)
    try:
        os.dup2(full, 2)
        output.say("w0 was ended by SIGKILL: started again (1)")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(full)
    assert output._lost.pop(2) == 1
