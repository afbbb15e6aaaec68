"""One of several processes on one ledger. Run: ``python -m tests.support.broker_hammer HOME COUNT``; prints what it bought."""

import asyncio
import sys
from pathlib import Path

from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.types import Limits, Position
from rlm_sandbox.errors import BudgetExceeded
from tests.support.broker_double import FakeProvider, account, ask

LIMITS = Limits(calls=500, tokens=120_000, cost_micro=500_000)


async def main(home, count, mark):
    provider = FakeProvider(latency_s=0.001)
    policy = Policy(daily_cost_micro=400_000)
    async with account(home, provider, limits=LIMITS, policy=policy) as session:
        asks = (session.ask(ask(f"{mark}-{n}"), Position(1, n)) for n in range(count))
        results = await asyncio.gather(*asks, return_exceptions=True)
    odd = [result for result in results if isinstance(result, Exception) and not isinstance(result, BudgetExceeded)]
    if odd:
        raise odd[0]
    sys.stdout.write(f"{len(provider.calls)}\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
