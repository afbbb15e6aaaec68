"""Sub-calls: the figures of ``broker.py``, and what a batch over one long text costs with the provider's prompt cache."""

import asyncio
import contextlib
import json
import subprocess
import sys
from pathlib import Path

from measure import run

from rlm_sandbox.broker.core import Broker
from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.pricing import PriceBook
from rlm_sandbox.broker.providers import create
from rlm_sandbox.broker.types import Credentials, Limits, Position, Request, Secret, SessionSpec

MODEL = "claude-haiku-4-5"
IN_MICRO, OUT_MICRO = 1, 5
"""What a token of that model costs in micro-USD, uncached."""

WIDTH = 20
PREFIX = "A line of a document that every question of the batch is about.\n" * 1000
HERE = Path(__file__).parent


def measure(folder, count, rounds):
    said = run(sys.executable, HERE / "broker.py", "--calls", count, "--rounds", rounds, "--width", WIDTH)
    found = json.loads(said.splitlines()[-1])
    found |= {"calls": count, "delay_ms": 50, "at_once": WIDTH}
    with serving(0.05) as url:
        found["shared prefix"] = asyncio.run(shared_prefix(folder / "prefix", url, 200))
    return found


@contextlib.contextmanager
def serving(delay):
    process = subprocess.Popen(
        [sys.executable, str(HERE / "messages_server.py"), str(delay)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


async def shared_prefix(home, url, count):
    """Cost of a batch over one long text, over what the same tokens cost without the provider's cache."""
    broker = await Broker.open(home, policy=Policy(), provider_factory=create, prices=PriceBook())
    credentials = Credentials(api_key=Secret("k"), base_url=url)
    limits = Limits(calls=None, cost_micro=10**9)
    spec = SessionSpec("bench", "anthropic", MODEL, credentials, limits=limits, concurrency=WIDTH, max_tokens=64)
    try:
        account = await broker.open_session(spec)
        requests = (Request(f"question {n}", prefix=PREFIX, group=7, size=count) for n in range(count))
        answers = await asyncio.gather(*(account.ask(each, Position(1, n)) for n, each in enumerate(requests)))
        spent = (await account.budget()).cost_micro
    finally:
        await broker.aclose()
    naive = sum(each.usage.total_in * IN_MICRO + each.usage.output_tokens * OUT_MICRO for each in answers)
    return {"calls": count, "micro_usd": spent, "naive_micro_usd": naive, "share": round(spent / naive, 3)}
