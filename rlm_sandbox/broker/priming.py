"""The first call of a shared prefix goes alone.

A provider's prompt-cache entry can be read only once the response of the request that writes it has begun. A batch of two
hundred sent at once pays for two hundred writes; one that sends its first item, waits for that response to begin and then
fans out pays for one write and 199 reads. If the first one fails before that, one successor takes its place.

Waiting here holds neither a slot nor money. Prefixes below the model's minimum are not cached by the provider, so they do
not wait.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable

    from rlm_sandbox.broker.types import Call, Provider

LIFETIME_S = 300.0
"""Seconds an entry lives after its last use, by the providers' documentation."""

BYTES_PER_TOKEN = 4
"""Bytes of a token in ordinary text. An estimate on purpose: being wrong costs a moment or a discount, never money held."""


def is_shared(provider: Provider, call: Call) -> bool:
    """Tell whether the call's shared blocks make an entry in the provider's cache."""
    if not call.cache or not (call.system or call.prefix):
        return False
    minimum = provider.min_cacheable_tokens(call.model)
    size = sum(len(text) if text.isascii() else len(text.encode()) for text in (call.system, call.prefix) if text)
    return minimum is not None and size // BYTES_PER_TOKEN >= max(1, minimum)


def priming_key(lane: Hashable, provider: Provider, call: Call) -> Hashable | None:
    """Return the name of the provider's cache entry, or None when there will be none."""
    if not is_shared(provider, call):
        return None
    shared = f"{call.system or ''}\0{call.prefix or ''}".encode()
    return (lane, call.model, hashlib.sha256(shared).digest())


class _Entry:
    __slots__ = ("followers", "leading", "warm_until")

    def __init__(self) -> None:
        self.warm_until = 0.0
        self.leading = False
        self.followers: list[asyncio.Future[None]] = []


class Priming:
    """The entries that one broker knows to be warm, or is warming."""

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}

    @asynccontextmanager
    async def turn(self, key: Hashable | None, deadline: float) -> AsyncIterator[Callable[[], None]]:
        """Wait until the entry is warm or it is this call's turn to warm it; gives the function to call at the begin.

        Raises:
            TimeoutError: the deadline came first.
        """
        if key is None:
            yield lambda: None
            return
        entry = self._entries.setdefault(key, _Entry())
        loop = asyncio.get_running_loop()
        while entry.warm_until <= loop.time() and entry.leading:
            follower: asyncio.Future[None] = loop.create_future()
            entry.followers.append(follower)
            try:
                async with asyncio.timeout_at(deadline):
                    await follower
            except BaseException:
                self._pass_on(entry, follower)
                raise
        leads = entry.warm_until <= loop.time()
        entry.leading = entry.leading or leads
        try:
            yield lambda: self._began(entry, leads=leads)
        finally:
            if leads and entry.leading:
                entry.leading = False
                self._wake(entry, 1)
            self._sweep(loop.time())

    def _began(self, entry: _Entry, *, leads: bool) -> None:
        entry.warm_until = asyncio.get_running_loop().time() + LIFETIME_S
        if leads:
            entry.leading = False
        self._wake(entry, len(entry.followers))

    def _pass_on(self, entry: _Entry, follower: asyncio.Future[None]) -> None:
        """A follower that was woken and cancelled in the same moment wakes the next one."""
        if follower in entry.followers:
            entry.followers.remove(follower)
        if follower.done() and not follower.cancelled() and not entry.leading:
            self._wake(entry, 1)

    def _wake(self, entry: _Entry, count: int) -> None:
        while entry.followers and count > 0:
            follower = entry.followers.pop(0)
            if not follower.done():
                follower.set_result(None)
                count -= 1

    def _sweep(self, now: float) -> None:
        """Forget cold entries once in a while, so that a session with many prefixes does not grow the table for ever."""
        if len(self._entries) > 1024:  # noqa: PLR2004 - some hundred kilobytes
            self._entries = {
                key: entry
                for key, entry in self._entries.items()
                if entry.leading or entry.followers or entry.warm_until > now
            }
