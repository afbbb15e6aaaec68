"""A provider in memory that does what a test tells it, prices that are easy to add up, and a broker around both."""

import asyncio
import sqlite3
from contextlib import asynccontextmanager

from rlm_sandbox.broker.core import Broker
from rlm_sandbox.broker.policy import Policy
from rlm_sandbox.broker.types import Credentials, Limits, ProviderFault, Reply, Request, SessionSpec, Usage

MODEL = "m-small"


def fault(code="connection_lost", **details):
    return ProviderFault(f"made up: {code}", code=code, **details)


RATE_LIMITED = {"code": "rate_limited", "billable": "no", "retryable": True, "rate_limited": True}
OVERLOADED = {"code": "overloaded", "billable": "no", "retryable": True, "overloaded": True}
RESET = {"code": "connection_lost", "billable": "unknown", "retryable": True}


class FakeProvider:
    """``behave(call, number)`` is awaited for each attempt (from 1) and returns a Reply, a Usage, a text or None, or raises."""

    name = "fake"

    def __init__(self, behave=None, *, priced=True, minimum=None, latency_s=0.0):
        self.priced = priced
        self.behave = behave
        self.minimum = minimum
        self.latency_s = latency_s
        self.calls = []
        self.in_flight = self.most_in_flight = 0
        self.in_flight_at_begin = []
        self.closed = False
        self.on_send = None

    def default_model(self):
        return MODEL

    def min_cacheable_tokens(self, model):
        return self.minimum

    async def attempt(self, call, *, timeout_s, began):
        self.calls.append(call)
        number = len(self.calls)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.in_flight_at_begin.append(self.in_flight)
        if self.on_send:
            self.on_send()
        try:
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            result = await self.behave(call, number) if self.behave else None
            began()
            return as_reply(result, call)
        finally:
            self.in_flight -= 1

    async def aclose(self):
        self.closed = True


def as_reply(result, call):
    if isinstance(result, Reply):
        return result
    usage = result if isinstance(result, Usage) else Usage(len(call.prompt), 3)
    text = result if isinstance(result, str) else f"answer to {call.prompt}"
    return Reply(text, usage, call.model, "end_turn", f"req-{call.prompt[:8]}")


class FlatPrices:
    """One micro-USD per input token, five per output token, for models that begin with ``m-``."""

    snapshot = "flat"

    def bound_micro(self, provider, model, tokens_in_max, tokens_out_max):
        if not model.startswith("m-"):
            raise LookupError(model)
        return tokens_in_max + 5 * tokens_out_max

    def cost_micro(self, provider, model, usage):
        return self.bound_micro(provider, model, usage.total_in, usage.output_tokens)


def spec(session="s", *, limits=None, **changes):
    given = {
        "session": session,
        "provider": "fake",
        "model": MODEL,
        "credentials": Credentials(),
        "limits": limits or Limits(calls=None),
        "max_tokens": 100,
        **changes,
    }
    return SessionSpec(**given)


@asynccontextmanager
async def broker(home, provider=None, *, policy=None, prices=None, sleeps=None, **options):
    """A broker whose back-off is recorded in ``sleeps`` instead of waited for."""
    opened = await Broker.open(
        home,
        policy=policy or Policy(),
        provider_factory=lambda name, credentials: provider or FakeProvider(),
        prices=prices or FlatPrices(),
        **options,
    )

    async def sleep(seconds):
        if sleeps is not None:
            sleeps.append(seconds)
        await asyncio.sleep(0)

    opened.attempts.sleep = sleep
    try:
        yield opened
    finally:
        await opened.aclose()


@asynccontextmanager
async def account(home, provider=None, *, limits=None, spec_changes=None, **options):
    async with broker(home, provider, **options) as opened:
        yield await opened.open_session(spec(limits=limits, **(spec_changes or {})))


def ask(prompt="q", **details):
    return Request(prompt, **details)


async def until(condition):
    """Wait for something that the code under test does in its own time."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0.002)


def read_sums(home, name="session:s"):
    """What a second connection sees: ``(spent, held, cap)`` by axis."""
    db = sqlite3.connect(f"file:{home}/ledger.db?mode=ro", uri=True, timeout=5)
    try:
        row = db.execute(
            "SELECT calls, calls_held, calls_cap, tokens_in + tokens_out + tokens_unreported, tokens_held, tokens_cap,"
            " micro, micro_held, micro_cap FROM accounts WHERE name = ?",
            (name,),
        ).fetchone()
    finally:
        db.close()
    return {"calls": row[0:3], "tokens": row[3:6], "micro": row[6:9]}


def assert_within_caps(home, name="session:s"):
    for axis, (spent, held, cap) in read_sums(home, name).items():
        assert cap is None or spent + held <= cap, f"{axis}: {spent} + {held} > {cap}"


def assert_consistent(result):
    assert result["ok"], result["mismatches"]
