"""A process that dies by ``kill -9`` at a named edge of one call. Run: ``python -m tests.support.broker_crash HOME EDGE``."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from rlm_sandbox.broker import cache, ledger
from rlm_sandbox.broker.types import Limits, Position
from tests.support.broker_double import FakeProvider, account, ask

EDGES = ("before_hold", "held", "sent", "answered", "stored", "settling", "settled", "replied")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def dying(owner, name, *, after):
    """Replace a method of ``owner`` by one that dies before, or once what it returned is done."""
    real = getattr(owner, name)

    async def finish(waiting):
        await waiting
        die()

    def wrapped(*given, **named):
        if not after:
            die()
        return asyncio.ensure_future(finish(real(*given, **named)))

    setattr(owner, name, wrapped)


async def main(home, edge):
    provider = FakeProvider()

    async def behave(call, number):
        if edge == "sent" and call.prompt == "doomed":
            die()

    provider.behave = behave
    async with account(home, provider, limits=Limits(calls=10, tokens=100_000, cost_micro=100_000)) as session:
        await session.ask(ask("before"), Position(1, 0))
        at = {
            "before_hold": (ledger.Ledger, "hold", False),
            "held": (ledger.Ledger, "hold", True),
            "answered": (cache.ResponseCache, "put", False),
            "stored": (cache.ResponseCache, "put", True),
            "settling": (ledger.Ledger, "settle", False),
            "settled": (ledger.Ledger, "settle", True),
        }.get(edge)
        if at:
            dying(at[0], at[1], after=at[2])
        await session.ask(ask("doomed"), Position(1, 1))
        die()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
