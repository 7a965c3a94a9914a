"""What a worker lets its launcher know: a few numbers and its last words, in memory that both share.

It survives the worker however that dies, and nobody waits for anybody. Made by the launcher before it forks; a worker
that was started by hand has none.
"""

from __future__ import annotations

import mmap
import struct

_NUMBERS = struct.Struct("=qqqH")
SIZE = 4096


class Board:
    """joined: whether a generation was ever granted. taken_part: the newest committed step that this worker took part
    in. checkpoint: step of the newest checkpoint that it knows of. words: why it ended, if it said so.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SIZE)

    def note(self, *, taken_part: int, checkpoint: int) -> None:
        """A member says where it stands. Cheap: it is said with every step."""
        _, _, _, length = _NUMBERS.unpack_from(self._memory)
        _NUMBERS.pack_into(self._memory, 0, 1, taken_part, checkpoint, length)

    def say(self, words: str) -> None:
        """The last words, one line."""
        joined, taken_part, checkpoint, _ = _NUMBERS.unpack_from(self._memory)
        text = " ".join(words.split()).encode()[: SIZE - _NUMBERS.size]
        self._memory[_NUMBERS.size : _NUMBERS.size + len(text)] = text
        _NUMBERS.pack_into(self._memory, 0, joined, taken_part, checkpoint, len(text))

    @property
    def joined(self) -> bool:
        return bool(_NUMBERS.unpack_from(self._memory)[0])

    @property
    def taken_part(self) -> int:
        return int(_NUMBERS.unpack_from(self._memory)[1])

    @property
    def checkpoint(self) -> int:
        return int(_NUMBERS.unpack_from(self._memory)[2])

    @property
    def words(self) -> str:
        length = _NUMBERS.unpack_from(self._memory)[3]
        return self._memory[_NUMBERS.size : _NUMBERS.size + length].decode(errors="replace")


# That of this process, if a launcher started it.
mine: Board | None = None
