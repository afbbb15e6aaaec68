"""A broker whose disk is full from a moment on. Run: ``python -m tests.support.broker_full_disk HOME MOMENT``; prints JSON.

The limit on file size stands for the disk: what is already written stays, nothing can grow.
"""

import asyncio
import json
import resource
import sys
from pathlib import Path

from rlm_sandbox.broker.types import Limits, Position
from rlm_sandbox.errors import RLMError
from tests.support.broker_double import FakeProvider, account, ask, until


def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))


def free():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def main(home, moment):
    provider, said = FakeProvider(), {}

    async def behave(call, number):
        if call.prompt == "doomed":
            fill()

    provider.behave = behave
    async with account(home, provider, limits=Limits(calls=10)) as session:
        await session.ask(ask("before"), Position(1, 0))
        if moment == "before":
            fill()
        try:
            said["doomed"] = (await session.ask(ask("doomed"), Position(1, 1))).text
        except RLMError as error:
            said["doomed"] = error.kind
        try:
            said["next"] = (await session.ask(ask("next"), Position(1, 2))).text
        except RLMError as error:
            said["next"] = error.kind
        said["sent"] = [call.prompt for call in provider.calls]
        if moment == "freed":
            free()
            await until(lambda: not session._broker.ledger.unlanded)
            said["calls"] = (await session.budget()).calls
            said["after"] = (await session.ask(ask("after"), Position(1, 3))).text
        sys.stdout.write(json.dumps(said))
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
