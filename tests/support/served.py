"""The fault server beside a test that is no coroutine: it runs in a thread of its own, so that commands can be waited for.

Plan, counts and log are plain attributes; what a test changes is seen by the next request.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.fault_server import FaultServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def served(**options) -> Iterator[FaultServer]:
    """Run a :class:`FaultServer` until the block ends."""
    ready, over = threading.Event(), None
    running = []

    async def main():
        nonlocal over
        over = asyncio.Event()
        async with FaultServer(**options) as server:
            running.extend((server, asyncio.get_running_loop()))
            ready.set()
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert ready.wait(20)
    server, loop = running
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(20)


def keys_to(server: FaultServer) -> dict[str, str]:
    """The environment that points both SDKs at the server."""
    return {
        "ANTHROPIC_API_KEY": "sk-ant-made-up",
        "ANTHROPIC_BASE_URL": server.anthropic_url,
        "OPENAI_API_KEY": "sk-made-up",
        "OPENAI_BASE_URL": server.openai_url,
    }
