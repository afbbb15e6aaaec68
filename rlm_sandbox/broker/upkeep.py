"""Keeps the response cache within bounds: answers that nobody used for long go, and the ones used longest ago when there is too much.

An entry that goes costs no more than buying the same answer again. It is used when it is written and whenever it is read. The ledger is not
touched by this: what was spent stays on record for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from rlm_sandbox.broker.keeper import Swept

if TYPE_CHECKING:
    from rlm_sandbox.broker.keeper import Keeper

log = logging.getLogger(__name__)

EVERY_S = 3600.0
"""How often ages are looked at: they are stated in days."""

SHARE_BEFORE_LOOKING = 0.05
"""Of the size that is allowed: after so much was written the whole is measured again, so it is overrun by this much at most."""


class Upkeep:
    """The broker's own sweeper: at its start, every hour, and whenever much was written."""

    def __init__(self, keeper: Keeper, *, bytes_max: int, age_s: float) -> None:
        self._keeper = keeper
        self._bytes_max = bytes_max
        self._age_s = age_s
        self._written = 0
        self._much = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def wrote(self, size: int) -> None:
        """Count what was kept."""
        self._written += size
        if self._written >= self._bytes_max * SHARE_BEFORE_LOOKING:
            self._much.set()

    async def sweep(self) -> Swept:
        """Sweep now; a file that cannot be written is left for the next time."""
        self._written = 0
        self._much.clear()
        try:
            swept = await asyncio.to_thread(self._keeper.sweep, bytes_max=self._bytes_max, age_s=self._age_s)
        except OSError as error:
            log.warning("the response cache cannot be tidied: %s", error)
            return Swept(0, 0, 0)
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
