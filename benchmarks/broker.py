"""Measures the broker beside the same SDK called directly, in one run, against a server on loopback that takes 50 ms for an answer.

    python benchmarks/broker.py [--calls 1000] [--width 20] [--rounds 3]

Rounds are interleaved, so that a busy moment of the machine falls on everything alike. Every prompt is new, so nothing is answered from a cache except where that is what is measured. Prints a Markdown table
and one line of JSON.
"""

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import anthropic

from rlm_sandbox.broker.book import Charge, Outbound, Worst
from rlm_sandbox.broker.core import Broker
from rlm_sandbox.broker.ledger import Ledger
from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.pricing import PriceBook
from rlm_sandbox.broker.providers import create
from rlm_sandbox.broker.types import Credentials, Limits, Position, Request, Secret, SessionSpec, Usage
from rlm_sandbox.errors import BudgetExceeded

MODEL = "claude-haiku-4-5"
MAX_TOKENS = 64
numbers = itertools.count()


@contextlib.asynccontextmanager
async def server(latency_s):
    """The provider: a process of its own, so that it takes no time from whom it serves."""
    program = Path(__file__).with_name("messages_server.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, program, str(latency_s), stdout=asyncio.subprocess.PIPE
    )
    try:
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.kill()
        await process.wait()


def sdk(url):
    """One request of the unmodified SDK, as a program without a broker would make it."""
    client = anthropic.AsyncAnthropic(api_key="k", base_url=url, max_retries=0)

    async def ask(prompt):
        messages = [{"role": "user", "content": prompt}]
        await client.messages.create(model=MODEL, max_tokens=MAX_TOKENS, messages=messages)

    return ask


async def direct(ask, calls, width):
    gate = asyncio.Semaphore(width)

    async def one(prompt):
        async with gate:
            await ask(prompt)

    began = time.perf_counter()
    await asyncio.gather(*(one(f"direct {next(numbers)}") for _ in range(calls)))
    return time.perf_counter() - began


async def brokered(account, calls):
    began = time.perf_counter()
    requests = (Request(f"brokered {next(numbers)}", group=1, size=calls) for _ in range(calls))
    await asyncio.gather(*(account.ask(request, Position(1, n)) for n, request in enumerate(requests)))
    return time.perf_counter() - began


async def alone(call, count):
    """Milliseconds of calls made one after the other."""
    samples = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        samples.append(1000 * (time.perf_counter() - began))
    return samples


@contextlib.asynccontextmanager
async def session(url, width, **limits):
    with tempfile.TemporaryDirectory(prefix="rlm-bench-") as home:
        broker = await Broker.open(
            Path(home), policy=Policy(), provider_factory=create, prices=PriceBook(), host_concurrency=64
        )
        spec = SessionSpec(
            "bench",
            "anthropic",
            MODEL,
            Credentials(Secret("k"), url),
            limits=Limits(**{"calls": None, "cost_micro": 10**9, **limits}),
            concurrency=width,
            max_tokens=MAX_TOKENS,
        )
        account = await broker.open_session(spec)
        try:
            yield account
        finally:
            assert (await account.verify())["ok"], "the ledger's sums do not follow from its events"
            await account.close()
            await broker.aclose()


async def throughput(calls, width, rounds):
    async with server(0.05) as url, session(url, width) as account:
        ask = sdk(url)
        await direct(ask, width, width)
        await brokered(account, width)
        gc.freeze()  # as the daemon does with what is imported, an SDK above all
        return [(await direct(ask, calls, width), await brokered(account, calls)) for _ in range(rounds)]


async def added(count):
    """What a call takes longer than the SDK's own, one at a time on a server without latency; and an answer that is kept."""
    async with server(0.0) as url, session(url, 1) as account:
        ask = sdk(url)

        async def plain():
            await ask(f"direct {next(numbers)}")

        async def ours():
            await account.ask(Request(f"brokered {next(numbers)}"), Position(1, 0))

        async def kept():
            await account.ask(Request("kept"), Position(1, 0))

        await alone(plain, 20), await alone(ours, 20), await kept()
        rounds = [(await alone(plain, 25), await alone(ours, 25), await alone(kept, 25)) for _ in range(count // 25)]
    plain_ms, ours_ms, kept_ms = ([ms for part in parts for ms in part] for parts in zip(*rounds, strict=True))
    return statistics.median(ours_ms) - statistics.median(plain_ms), statistics.median(kept_ms), len(ours_ms)


async def commits(seconds, width):
    """Durable changes a second: holds and settlements by many at once, and by one alone, which is one fsync each."""
    with tempfile.TemporaryDirectory(prefix="rlm-bench-") as home:
        ledger = await Ledger.open(Path(home))
        number = await ledger.open_session("s", Limits(calls=None))
        done = 0

        async def client(until):
            nonlocal done
            while time.perf_counter() < until:
                hold = await ledger.hold(number, Worst(10, 10, 10), Outbound(1, 0, 1, "p", "p", "m", "k", "d", 1))
                await ledger.settle(hold, Charge("ok", Usage(1, 1), 1))
                done += 2

        await asyncio.gather(*(client(time.perf_counter() + seconds) for _ in range(width)))
        many, done = done / seconds, 0
        await client(time.perf_counter() + seconds)
        await ledger.aclose()
        return many, done / seconds


async def overshoot(width):
    """How far a batch of twice as many calls as fit gets beyond a cap on calls, tokens or money. Always 0."""
    most = 0
    async with server(0.005) as url:
        for limits in ({"calls": 50}, {"tokens": 5_000}, {"cost_micro": 5_000}):
            async with session(url, width, **limits) as account:
                asks = (account.ask(Request(f"over {n}"), Position(1, n)) for n in range(400))
                refused = await asyncio.gather(*asks, return_exceptions=True)
                assert any(isinstance(each, BudgetExceeded) for each in refused), "the cap was never met"
                spent = await account.budget()
                total = {
                    "calls": spent.calls + spent.held_calls,
                    "tokens": spent.tokens_in + spent.tokens_out + spent.unreported_tokens + spent.held_tokens,
                    "cost_micro": spent.cost_micro + spent.held_micro,
                }
                most = max(most, *(total[name] - cap for name, cap in limits.items()))
    return max(0, most)


def shown(name, value, bound):
    print(f"| {name} | {value} | {bound} |")


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--width", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    pairs = await throughput(options.calls, options.width, options.rounds)
    ratio = statistics.median(ours / plain for plain, ours in pairs)
    plain, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    print("| figure | measured | at most |\n|---|--:|--:|")
    shown(f"{options.calls} calls of 50 ms, {options.width} wide: the SDK alone", f"{plain:.2f} s", "")
    shown("the same through the broker", f"{ours:.2f} s", "")
    shown("ratio", f"{ratio:.3f}", "1.15")
    late, kept, count = await added(200)
    shown(f"added to one call (median of {count})", f"{late:.2f} ms", "2 ms")
    shown("an answer that is kept", f"{kept:.2f} ms", "1 ms")
    many, one = await commits(2.0, 64)
    shown("durable changes a second, 64 at once", f"{many:.0f}", "")
    shown("durable changes a second, one after the other", f"{one:.0f}", "")
    over = await overshoot(options.width)
    shown("overshoot of a cap, any axis", over, "0")
    figures = {"pairs": pairs, "ratio": ratio, "added_ms": late, "kept_ms": kept, "commits": [many, one], "over": over}
    print(json.dumps(figures))


if __name__ == "__main__":
    asyncio.run(main())
