"""Buying one answer: at most five attempts, each with its own hold, within one total deadline.

An attempt goes: prompt-cache turn, slot, hold, send, keep, settle. Everything before the hold is free to wait; from the hold's
commit on there is nothing to wait for but the provider. Whatever then happens (an answer, a fault, a cancellation, a
defect) the attempt is settled, and what is not known to cost less is charged at the full hold.

Only faults that the adapter calls retryable are retried; a spend limit never is.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rlm_sandbox.broker import schema as schemas
from rlm_sandbox.broker.book import Charge, HoldRefused, Outbound
from rlm_sandbox.broker.budget import exceeded, priced_by, tokens_in_bound, worst_case
from rlm_sandbox.broker.cache import is_clean
from rlm_sandbox.broker.lanes import sane_retry_after
from rlm_sandbox.broker.limiter import GateClosed
from rlm_sandbox.broker.priming import priming_key
from rlm_sandbox.broker.text_size import TextSizes
from rlm_sandbox.broker.types import ProviderFault, Reply, Usage
from rlm_sandbox.broker.writer import LedgerUnavailable
from rlm_sandbox.errors import BudgetExceeded, DeadlineError, ProviderError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rlm_sandbox.broker.budget import PriceBook
    from rlm_sandbox.broker.canonical import Canonical
    from rlm_sandbox.broker.lanes import Lane
    from rlm_sandbox.broker.ledger import Hold, Ledger
    from rlm_sandbox.broker.limiter import Limiter, Slot
    from rlm_sandbox.broker.priming import Priming
    from rlm_sandbox.broker.rate import Rate
    from rlm_sandbox.broker.singleflight import Lifeline
    from rlm_sandbox.broker.types import Call, Position, Provider, Request

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 5
"""With the delays below, five attempts outlast an overload of some 15 seconds, which is what providers' incidents blip for."""

BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 16.0

DEADLINE_SLACK_S = 0.25
"""An adapter's own timeout of the same length may come a moment before ours."""

LEAST_S = 0.05
"""With less time left nothing is sent: no provider answers that fast, and it would be charged in full for nothing."""

COUNT_MAX = 2**53
"""A token count beyond this is no count."""

NEVER_RETRIED = frozenset({"spend_limit"})


@dataclass(slots=True)
class Order:
    """One purchase, with everything an attempt needs to know."""

    account: int
    session: str
    provider: Provider
    lane: Lane
    lane_key: object
    wanted: Canonical
    request: Request
    position: Position
    destination: str
    deadline: float
    """Loop time."""
    until: Callable[[], float]
    """Loop time after which the session buys nothing."""
    cost_capped: Callable[[], bool]
    keep: Callable[[Reply], Awaitable[object]]
    sending: Callable[[], None]
    warn: Callable[[list[str]], None]
    lifeline: Lifeline
    rate: Rate | None = None
    faulted: Callable[[str], None] = lambda _: None
    """Told the code of each attempt that failed."""
    spent_micro: int = 0
    """What the attempts made so far were charged."""


@dataclass(frozen=True, slots=True)
class Bought:
    """An answer and what all attempts for it cost."""

    reply: Reply
    attempts: int
    cost_micro: int


@dataclass(slots=True)
class Freed:
    """Tells those whose hold did not fit that something was given back."""

    in_flight: int = 0
    _event: asyncio.Event = field(default_factory=asyncio.Event)

    def took(self) -> None:
        """One more hold."""
        self.in_flight += 1

    def gave(self) -> None:
        """One less, and whoever waits may try again."""
        self.in_flight -= 1
        self._event.set()
        self._event = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Return what will be set at the next change; take it before trying."""
        return self._event


@dataclass(slots=True)
class Attempts:
    """The buyer. Collaborators are injected; ``sleep`` and ``jitter`` so that tests need not wait."""

    ledger: Ledger
    limiter: Limiter
    priming: Priming
    prices: PriceBook
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random
    freed: Freed = field(default_factory=Freed)
    validation: schemas.Validation = field(default_factory=schemas.Validation)
    sizes: TextSizes = field(default_factory=TextSizes)

    async def buy(self, order: Order) -> Bought:
        """Make attempts until one gives an answer.

        Raises:
            BudgetExceeded: a hold did not fit.
            ProviderError: the provider's failure, with its code.
            DeadlineError: the call's total time ran out.
        """
        call, asked_again = order.wanted.call, False
        for number in range(1, ATTEMPTS_MAX + 1):
            try:
                reply, problem = await self._attempt(order, call, number)
            except ProviderFault as fault:
                await self._pause(order, fault, number)
                continue
            except GateClosed:
                raise _gate_beyond_deadline(order) from None
            except TimeoutError:
                raise DeadlineError(
                    "the call's deadline passed while it waited for its turn", hint="use a smaller batch, or more time"
                ) from None
            except BudgetExceeded:
                order.lifeline.personal = number > 1
                raise
            if problem is None:
                return Bought(reply, number, order.spent_micro)
            if asked_again or order.lifeline.abandoned:
                raise ProviderError(
                    f"the answer does not satisfy the schema: {problem}",
                    hint="simplify the schema, or raise max_tokens if the answer was cut off",
                    code="schema",
                )
            call, asked_again = schemas.ask_again(order.wanted.call, problem), True
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, order: Order, call: Call, number: int) -> tuple[Reply, str | None]:
        key = priming_key(order.lane_key, order.provider, call)
        request = order.request
        await _opened(order)
        async with self.priming.turn(key, order.deadline) as began:
            if order.rate is not None:
                await order.rate.take(order.deadline)
            async with self.limiter.slot(order.session, request.group, request.width, order.deadline) as slot:
                hold = await self._hold(order, call, number)
                return await self._send(order, call, hold, began, slot)

    async def _hold(self, order: Order, call: Call, number: int) -> Hold:
        """Hold the worst case; when only calls in flight stand in the way, wait for one of them to settle."""
        digest, size = order.wanted.leaving(call)
        tokens_in = await tokens_in_bound(call, self.sizes, {**order.wanted.digests, "prompt": digest})
        worst = worst_case(call, tokens_in, order.provider, self.prices, capped=order.cost_capped())
        outbound = Outbound(
            cell=order.position.cell,
            ordinal=order.position.ordinal,
            number=number,
            provider=order.provider.name,
            destination=order.destination,
            model=call.model,
            request_key=order.wanted.key,
            prompt_sha256=digest,
            bytes_out=size,
            prices=priced_by(order.provider, self.prices)[0].snapshot if order.provider.priced else None,
        )
        now = asyncio.get_running_loop().time()
        if now >= order.until():
            raise exceeded(HoldRefused("deadline", "session"))
        if order.deadline - now < LEAST_S:
            raise TimeoutError
        while True:
            change = self.freed.next()
            try:
                return await self.ledger.hold(order.account, worst, outbound)
            except HoldRefused as refused:
                hopeless = self.freed.in_flight == 0 and not change.is_set()  # held by other processes, if at all
                if not refused.may_fit_later or hopeless:
                    raise exceeded(refused) from None
            async with asyncio.timeout_at(order.deadline):
                await change.wait()

    async def _send(
        self, order: Order, call: Call, hold: Hold, began: Callable[[], None], slot: Slot
    ) -> tuple[Reply, str | None]:
        """Send, and settle whatever comes of it. ``charge`` is at any time what is to be charged if this ends here."""
        charge, refused = Charge("cancelled"), False
        self.freed.took()
        order.lifeline.sent = True
        sent_at = time.monotonic()
        try:
            order.sending()
            reply = await self._ask(order, call, began)
            charge = self._charge(order, call, hold, reply)
            reply = reply if charge.usage else replace(reply, usage=Usage(0, 0))
            began()  # for adapters that see the whole response at once
            order.lane.succeeded()
            slot.release()
            problem = await self.validation.problem_with(reply.text, call.schema) if call.schema else None
            if problem is None and is_clean(reply):
                await order.keep(reply)
        except ProviderFault as fault:
            refused = fault.billable == "no"
            charge = self._charge_for_fault(order, call, hold, fault)
            self._note_fault(order, fault, sent_at)
            raise
        else:
            return reply, problem
        finally:
            order.lifeline.sent = False
            await self._close(order, hold, charge, refused=refused)

    async def _ask(self, order: Order, call: Call, began: Callable[[], None]) -> Reply:
        left = order.deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(left):
                return await order.provider.attempt(call, timeout_s=max(0.001, left), began=began)
        except TimeoutError:
            raise ProviderFault("no answer within the call's deadline", code="timeout", billable="unknown") from None

    async def _close(self, order: Order, hold: Hold, charge: Charge, *, refused: bool) -> None:
        """Settle or release. The order to do so is placed before anything is awaited."""
        if refused:
            landed: asyncio.Future[Any] = self.ledger.release(hold, charge.outcome, charge.request_id)
        else:
            landed = self.ledger.settle(hold, charge)
            order.spent_micro += charge.micro if charge.usage else hold.worst.micro
        landed.add_done_callback(lambda _: self.freed.gave())
        try:
            warnings: list[str] | None = await asyncio.shield(landed)
            order.warn(warnings or [])
        except LedgerUnavailable as error:
            log.warning("an attempt of session %s stays charged in full for now: %s", order.session, error)

    def _charge(self, order: Order, call: Call, hold: Hold, reply: Reply) -> Charge:
        if not is_usable(reply.usage):
            log.warning("unusable usage numbers from %s: charged in full", order.provider.name)
            return Charge("ok_usage_unusable", request_id=reply.request_id)
        return Charge("ok", reply.usage, self._cost(order, call, hold, reply.usage), reply.request_id)

    def _charge_for_fault(self, order: Order, call: Call, hold: Hold, fault: ProviderFault) -> Charge:
        if fault.billable == "yes" and fault.usage is not None and is_usable(fault.usage):
            return Charge(fault.code, fault.usage, self._cost(order, call, hold, fault.usage), fault.request_id)
        return Charge(fault.code, request_id=fault.request_id)

    def _cost(self, order: Order, call: Call, hold: Hold, usage: Usage) -> int:
        if not order.provider.priced or not hold.worst.priced:
            return 0
        try:
            book, seller = priced_by(order.provider, self.prices)
            return max(0, book.cost_micro(seller, call.model, usage))
        except LookupError:
            return hold.worst.micro  # there was a price when it was held

    def _note_fault(self, order: Order, fault: ProviderFault, sent_at: float) -> None:
        order.faulted(fault.code)
        if fault.rate_limited:
            order.lane.rate_limited(sent_at, fault.retry_after_s)
        elif fault.overloaded:
            order.lane.overloaded(fault.retry_after_s)
        else:
            return
        self.limiter.gate_moved(order.lane)

    async def _pause(self, order: Order, fault: ProviderFault, number: int) -> None:
        """Wait before the next attempt, or raise what the fault means to the caller."""
        now = asyncio.get_running_loop().time()
        if fault.code == "timeout" and order.deadline - now < DEADLINE_SLACK_S:
            raise DeadlineError(
                "the provider did not answer within the call's deadline", hint="ask for less, or allow more time"
            ) from None
        final = number >= ATTEMPTS_MAX or fault.code in NEVER_RETRIED or not fault.retryable
        if final or order.lifeline.abandoned:
            raise provider_error(fault, number) from fault
        asked = sane_retry_after(fault.retry_after_s) or 0.0
        backoff = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (number - 1)) * (0.5 + self.jitter() / 2)
        pause = max(asked, backoff)
        if now + pause >= order.deadline:
            if asked >= pause:
                raise _gate_beyond_deadline(order) from fault
            raise provider_error(fault, number) from fault
        await self.sleep(pause)


async def _opened(order: Order) -> None:
    """Have what a provider needs before its first request (an SDK's import, weights, a server) before anything is held for it."""
    provider: Any = order.provider
    if getattr(provider, "is_open", True):  # optional, as most of the doubles need nothing
        return
    async with asyncio.timeout_at(order.deadline):
        await provider.open()


def is_usable(usage: Usage) -> bool:
    """Tell whether usage numbers can be charged: integers, not negative, not absurd."""
    numbers = (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens)
    return all(type(number) is int and 0 <= number <= COUNT_MAX for number in numbers)


def provider_error(fault: ProviderFault, attempts: int) -> ProviderError:
    """Return the public form of a fault."""
    tried = f" (after {attempts} attempts)" if attempts > 1 else ""
    request = f" [request {fault.request_id}]" if fault.request_id else ""
    return ProviderError(f"{fault.message}{tried}{request}", hint=_hint(fault), code=fault.code)


_HINTS = {
    "spend_limit": "raise the spend limit at the provider, or use another key",
    "refusal": "ask in another way; the same question is bought again each time it is asked",
    "no_text": "raise max_tokens where all of it went into thinking; else ask in another way",
    "context_length": "send a smaller slice, for example with chunks()",
    "bad_usage": "this server does not count tokens as its API says; behind a gateway, look there",
    "bad_answer": "check the base URL: what answers there does not speak this API",
    "too_large_answer": "ask for less",
    "authentication": "check the key, and that the base URL belongs to it",
    "permission": "the key may not use this model: choose another",
    "not_found": "the provider knows no such model: choose another",
    "billing": "the account cannot pay: see the provider's console",
    "bad_request": "change the request: it is turned down as it is",
    "too_large": "send a smaller slice, for example with chunks()",
    "redirect": "redirects are not followed: set the base URL to where the service is",
    "unreachable": "check the network and the base URL",
}
"""By the code of a fault. What is not here passes by itself."""


def _hint(fault: ProviderFault) -> str:
    if (hint := _HINTS.get(fault.code)) is not None:
        return hint
    if fault.rate_limited:
        return "use a smaller --concurrency, or wait"
    if fault.overloaded:
        return "the provider is overloaded; run the same batch again later, only what is missing is bought"
    return "answers that were already paid for are kept; run the same call again to buy only what is missing"


def _gate_beyond_deadline(order: Order) -> ProviderError:
    wait = order.lane.believed_until - time.monotonic()
    return ProviderError(
        f"the provider asked to wait {max(0.0, wait):.0f} s, which is beyond the call's deadline",
        hint="wait, or use another key",
        code="rate_limited",
    )
