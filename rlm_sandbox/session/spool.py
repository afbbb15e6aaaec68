"""The output of one cell: bounded in memory, bounded on disk, never raw for a reader.

Bytes arrive in any chunking. They are decoded incrementally, made visible (see :mod:`rlm_sandbox.sanitize`), and kept as a head and a tail for
display; as soon as they no longer fit, everything goes to a file as well, up to a cap. The guest can send forever: what is over the
cap costs a counter.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from typing import IO, TYPE_CHECKING

from rlm_sandbox.sanitize import visible

if TYPE_CHECKING:
    from pathlib import Path


class Spool:
    """``shown_max`` characters are kept for display, ``file_max`` bytes on disk at ``path``."""

    def __init__(self, path: Path, *, shown_max: int, file_max: int) -> None:
        self._path = path
        self._shown_max = shown_max
        self._file_max = file_max
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._head: list[str] = []
        self._head_len = 0
        self._tail = ""
        self._file: IO[bytes] | None = None
        self._file_len = 0
        self._visible_len = 0
        self._held = ""
        self._closed = False
        self._digest = hashlib.sha256()
        self.chars = 0
        """Characters the cell wrote, before escaping."""
        self.dropped = 0
        """Bytes that were not kept anywhere."""

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Add output as it came."""
        self._digest.update(data)
        text = self._decoder.decode(data, last)
        self.chars += len(text)
        text = self._held + text
        self._held = ""
        if text.endswith("\r") and not last:
            text, self._held = text[:-1], "\r"  # harmless if a newline follows, in the next piece
        if not text:
            return
        text = visible(text)
        self._visible_len += len(text)
        if self._file is None and self._visible_len > self._shown_max:
            self._open()
        if self._file is not None:
            self._write(text)
        room = self._shown_max - self._head_len
        if room > 0:
            self._head.append(text[:room])
            self._head_len += min(room, len(text))
            text = text[room:]
        if text:
            self._tail = (self._tail + text)[-self._shown_max :] if self._shown_max else ""

    def _open(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._write("".join(self._head))

    def _write(self, text: str) -> None:
        raw = text.encode()
        room = self._file_max - self._file_len
        if room < len(raw):
            self.dropped += len(raw) - max(room, 0)
            raw = raw[: max(room, 0)]
        if raw and self._file is not None:
            self._file.write(raw)
            self._file_len += len(raw)

    @property
    def digest(self) -> str:
        """SHA-256 of all that came."""
        return self._digest.hexdigest()

    def shown(self, limit: int) -> tuple[str, bool, str | None]:
        """Return ``(text, truncated, full_path)`` with at most ``limit`` characters of output, head and tail, and a mark between."""
        limit = min(limit, self._shown_max)
        head = "".join(self._head)
        if self._visible_len <= limit:
            return head, False, None
        if self._file is None:
            self._open()
        if self._file is not None:
            self._file.close() if self._closed else self._file.flush()
        front = (limit + 1) // 2
        back = limit - front
        whole = head + self._tail  # overlaps nothing: the tail begins where the head ended, or later
        end = whole[len(whole) - back :] if back else ""
        omitted = self._visible_len - limit
        mark = f"\n[... {omitted} characters not shown ...]\n"
        return whole[:front] + mark + end, True, str(self._path)

    def close(self) -> None:
        """Finish decoding and close the file; showing goes on."""
        self.feed(b"", last=True)
        self._closed = True
        if self._file is not None:
            self._file.close()
