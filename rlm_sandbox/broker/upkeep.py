"""Keeps the response cache within bounds: answers that nobody used for long go, and the ones used longest ago when there is too much.

An entry that goes costs no more than buying the same answer again. It is used when it is written and whenever it is read; its
file's time tells. The ledger is not touched by this: what was spent stays on record for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

EVERY_S = 3600.0
"""How often ages are looked at: they are stated in days."""

SHARE_BEFORE_LOOKING = 0.05
"""Of the size that is allowed: after so much was written the whole is measured again, so it is overrun by this much at most."""

DOWN_TO = 0.9
"""Of the size that is allowed, once it is exceeded; else every few answers would cost a walk through all."""

BLOCK = 4096
"""Bytes that the smallest file takes on the usual file systems."""

DRAFT_S = 3600.0
"""A draft of this age belongs to a process that died while it wrote."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did, in entries and in bytes on disk."""

    removed: int
    kept: int
    kept_bytes: int


def sweep(cache: Path, *, bytes_max: int, age_s: float) -> Swept:
    """Remove what is too old, then what is too much. Others may read, write and sweep at the same time."""
    now, removed = time.time(), 0
    entries: list[tuple[float, int, str]] = []
    for path, used, size in _files(cache):
        too_old = now - used > (DRAFT_S if os.path.basename(path).startswith(".") else age_s)  # noqa: PTH119 - of a million
        if too_old:
            removed += _remove(path)
        else:
            entries.append((used, size, path))
    entries.sort(reverse=True)
    total = sum(size for _, size, _ in entries)
    if total > bytes_max:
        while entries and total > bytes_max * DOWN_TO:
            _, size, path = entries.pop()
            removed += _remove(path)
            total -= size
    return Swept(removed, len(entries), total)


def _files(cache: Path) -> list[tuple[str, float, int]]:
    found = []
    for folder, _, names in os.walk(cache):
        for name in names:
            path = os.path.join(folder, name)  # noqa: PTH118 - of a million
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                found.append((path, status.st_mtime, status.st_blocks * 512))
    return found


def _remove(path: str) -> int:
    try:
        os.unlink(path)  # noqa: PTH108 - of a million
    except OSError:
        return 0
    return 1


class Upkeep:
    """The broker's own sweeper: at its start, every hour, and whenever much was written."""

    def __init__(self, cache: Path, *, bytes_max: int, age_s: float) -> None:
        self._cache = cache
        self._bytes_max = bytes_max
        self._age_s = age_s
        self._written = 0
        self._much = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def wrote(self, size: int) -> None:
        """Count what was kept; a file takes whole blocks."""
        self._written += -(-size // BLOCK) * BLOCK
        if self._written >= self._bytes_max * SHARE_BEFORE_LOOKING:
            self._much.set()

    async def sweep(self) -> Swept:
        """Sweep now."""
        self._written = 0
        self._much.clear()
        swept = await asyncio.to_thread(sweep, self._cache, bytes_max=self._bytes_max, age_s=self._age_s)
        if swept.removed:
            log.info("response cache: %d entries removed, %d left", swept.removed, swept.kept)
        return swept

    async def aclose(self) -> None:
        """End; a sweep under way is left to end by itself."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            await self.sweep()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._much.wait()
