"""What the demo and `antdt top` draw alike."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

LEVELS = "▁▂▃▄▅▆▇█"
LAST_S = 60


def line(text: str, style: str = "") -> Text:
    """One line, cut where the terminal ends."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def has_unicode(console: Console) -> bool:
    return not console.options.ascii_only


def speed_line(speeds: Sequence[int], room: int, unicode: bool, compared: str = "", highest: int = 1) -> Text:
    """Samples a second in the last whole second, and over the last minute as a line of bars; empty before the first.
    highest: what the tallest bar is at least. compared: what stands beside the number.
    """
    whole = speeds[:-1][-LAST_S:]  # the second at hand is not over
    if not whole:
        return Text("")
    text, most = f"{whole[-1]:,} samples/s{compared}", max(*whole, highest)
    if unicode:
        text += "  " + "".join(LEVELS[min(7, speed * 8 // (most + 1))] for speed in whole)
    return line(text[:room], "cyan")
