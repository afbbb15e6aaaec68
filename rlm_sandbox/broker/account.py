"""One session's account, and the pipeline of its sub-calls.

:meth:`Account.ask` is the whole way: policy, canonical request, response cache, single flight, purchase. The purchase
(:mod:`~rlm_sandbox.broker.attempts`) waits for the prompt cache and for a slot first and holds money last, so that a batch of
ten thousand holds what is in flight and not ten thousand worst cases.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlm_sandbox.broker.attempts import Order
from rlm_sandbox.broker.book import Hit
from rlm_sandbox.broker.cache import ResponseCache
from rlm_sandbox.broker.canonical import canonical, destination, scope_of
from rlm_sandbox.broker.rate import Rate
from rlm_sandbox.broker.singleflight import CalledOff
from rlm_sandbox.broker.statement import CHANGES, budget_of, history_entry
from rlm_sandbox.broker.types import Answer, CallEvent, Phase
from rlm_sandbox.errors import DeadlineError, RLMError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_sandbox.broker.attempts import Bought
    from rlm_sandbox.broker.canonical import Canonical
    from rlm_sandbox.broker.core import Broker
    from rlm_sandbox.broker.lanes import Lane
    from rlm_sandbox.broker.singleflight import Flight, Lifeline
    from rlm_sandbox.broker.types import Budget, Position, Provider, Reply, Request, SessionSpec

CLOSE_GRACE_S = 1.0
"""How long a closing session waits for answers that are already paid for; what is later is charged in full."""


class Account:
    """One session's way to the providers. Made by :meth:`Broker.open_session`."""

    def __init__(
        self,
        broker: Broker,
        spec: SessionSpec,
        provider: Provider,
        number: int,
        allowed: frozenset[str],
        lane_key: object,
        lane: Lane,
    ) -> None:
        self.spec = spec
        self.cost_capped = False
        self._broker = broker
        self._provider = provider
        self._number = number
        self._allowed = allowed
        self._lane_key = lane_key
        self._lane = lane
        self._cache = ResponseCache(broker.keeper, scope_of(spec), broker.upkeep.wrote)
        self._rate = Rate(broker.policy.max_calls_per_second) if broker.policy.max_calls_per_second else None
        self._warnings: list[str] = []
        self._closed = False
        self._until = math.inf

    def see_deadline(self, deadline_ms: int | None) -> None:
        """Note the wall-clock deadline on the monotonic clock too, so that setting the clock back does not extend it."""
        left = math.inf if deadline_ms is None else deadline_ms / 1000 - self._broker.clock()
        self._until = asyncio.get_running_loop().time() + left

    async def ask(
        self, request: Request, position: Position, observer: Callable[[CallEvent], None] | None = None
    ) -> Answer:
        """Answer one sub-call. Cancelling is safe at any moment: what is sent is settled, and its answer kept.

        Raises:
            BudgetExceeded: a cap leaves no room; nothing was sent.
            PolicyError: a policy forbids it; nothing was sent.
            ProviderError: the provider gave no usable answer.
            DeadlineError: the call's time ran out.
        """
        tell = _Teller(observer, position, request.model or self.spec.model)
        try:
            await self._broker.doorway.enter()
            wanted = self._admit(await self._broker.filtered(request))
            if wanted.call.schema is not None:
                await self._broker.attempts.validation.check(wanted.call.schema)
                self._check_open()
            tell(Phase.QUEUED)
            answer = self._from_cache(wanted, position) or await self._buy_or_join(wanted, request, position, tell)
        except RLMError as error:
            tell(Phase.FAILED, error_kind=error.kind)
            raise
        tell(Phase.CACHED if answer.cached else Phase.ANSWERED, answer)
        return answer

    def _admit(self, request: Request) -> Canonical:
        policy = self._broker.policy
        self._check_open()
        if request.tools is None:
            policy.check_model(request.model or self.spec.model, self._allowed)
        else:  # the host's own: what a guest may name is not what binds it
            policy.check_host_model(request.model or self.spec.model)
        wanted = canonical(request, self.spec)
        policy.check_call(wanted.call, wanted.bytes_out)
        return wanted

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the session is closed", hint="start a new one")

    def _from_cache(self, wanted: Canonical, position: Position) -> Answer | None:
        reply = self._cache.get(wanted.key) if wanted.call.cache else None
        return None if reply is None else self._for_free(reply, wanted, position, "cache")

    async def _buy_or_join(self, wanted: Canonical, request: Request, position: Position, tell: _Teller) -> Answer:
        """Join an identical purchase, or make it; of another's failure only one's own account takes part."""
        deadline = asyncio.get_running_loop().time() + self.spec.call_deadline_s
        flights, key = self._broker.flights, wanted.key if wanted.call.cache else None
        while key is not None and (flight := flights.find(key)):
            try:
                reply = (await _outcome(flight)).reply
                return self._for_free(reply, wanted, position, "flight")
            except RLMError as error:
                late = isinstance(error, DeadlineError) and asyncio.get_running_loop().time() < deadline
                if flight.party is self and not late and not flight.lifeline.personal:
                    raise

        def purchase(lifeline: Lifeline) -> Any:
            return self._broker.attempts.buy(self._order(wanted, request, position, deadline, lifeline, tell))

        flight = flights.start(key, self, purchase)
        bought = await _outcome(flight)
        reply = bought.reply
        return Answer(
            text=reply.text,
            model=reply.model,
            usage=reply.usage,
            cost_micro=bought.cost_micro,
            attempts=bought.attempts,
            request_id=reply.request_id,
            stop_reason=reply.stop_reason,
            raw=reply.raw,
        )

    def _order(
        self,
        wanted: Canonical,
        request: Request,
        position: Position,
        deadline: float,
        lifeline: Lifeline,
        tell: _Teller,
    ) -> Order:
        return Order(
            account=self._number,
            session=self.spec.session,
            provider=self._provider,
            lane=self._lane,
            lane_key=self._lane_key,
            wanted=wanted,
            request=request,
            position=position,
            destination=destination(self.spec),
            deadline=deadline,
            until=lambda: self._until,
            cost_capped=lambda: self.cost_capped,
            keep=lambda reply: self._cache.put(wanted.key, reply),
            sending=lambda: tell(Phase.SENT),
            faulted=lambda code: tell(Phase.FAULT, error_kind=code),
            warn=self._warn,
            lifeline=lifeline,
            rate=self._rate,
        )

    def _for_free(self, reply: Reply, wanted: Canonical, position: Position, source: str) -> Answer:
        hit = Hit(
            cell=position.cell,
            ordinal=position.ordinal,
            provider=self._provider.name,
            destination=destination(self.spec),
            model=wanted.call.model,
            request_key=wanted.key,
            prompt_sha256=wanted.prompt_sha256,
            bytes=wanted.bytes_out,
            source=source,
            tokens_in=reply.usage.total_in,
            tokens_out=reply.usage.output_tokens,
            request_id=reply.request_id,
        )
        self._broker.ledger.count_cached(self._number, hit)
        return Answer(
            text=reply.text,
            model=reply.model,
            usage=reply.usage,
            cached=True,
            attempts=0,
            request_id=reply.request_id,
            stop_reason=reply.stop_reason,
        )

    def _warn(self, due: list[str]) -> None:
        self._warnings += due

    async def budget(self) -> Budget:
        """Return the account as it stands, with everything that was settled before this call."""
        return budget_of(await self._broker.ledger.account(self._number), self._broker.clock())

    async def set_limits(self, **changes: int | None) -> None:
        """Set ``calls``, ``tokens``, ``token_warning``, ``cost_micro`` or ``deadline``; None clears. For the host only.

        Raises:
            UsageError: an unknown or negative limit.
            PolicyError: a cost cap that could not be kept for want of a price.
        """
        for name, value in changes.items():
            if name not in CHANGES or (value is not None and value < 0):
                raise UsageError(f"{name}={value} is not a limit", hint=f"limits: {', '.join(CHANGES)}; not negative")
        if changes.get("cost_micro") is not None:
            self._broker.check_prices(self._provider, self._allowed, changes["cost_micro"])
        if "deadline" in changes and changes["deadline"] is not None:
            changes["deadline"] = int(changes["deadline"] * 1000)
        if "cost_micro" in changes:
            self.cost_capped = changes["cost_micro"] is not None or self._broker.policy.daily_cost_micro is not None
        if "deadline" in changes:
            self.see_deadline(changes["deadline"])
        await self._broker.ledger.set_limits(self._number, {CHANGES[name]: value for name, value in changes.items()})

    def take_warnings(self) -> list[str]:
        """Return the warnings that became due since the last time; each comes once."""
        due, self._warnings = self._warnings, []
        return due

    async def history(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the latest attempts, newest first, as JSON-ready records."""
        return [history_entry(row) for row in await self._broker.ledger.history(self._number, limit)]

    async def calls(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the latest calls, newest first, as JSON-ready records: with their attempts, and with those that cost nothing."""
        return await self._broker.calls(self._number, limit)

    async def verify(self) -> dict[str, Any]:
        """Re-derive every sum from the events; see :func:`rlm_sandbox.broker.ledger.verify` for the shape."""
        return await self._broker.ledger.verify(self._number)

    async def close(self) -> None:
        """Take no more calls, settle what is in flight, and free the provider's connections. Safe to repeat."""
        if self._closed:
            return
        self._closed = True
        await self._broker.flights.finish(self, CLOSE_GRACE_S)
        self._broker.forget(self)
        await self._provider.aclose()


async def _outcome(flight: Flight[Bought]) -> Bought:
    try:
        return await flight.wait()
    except CalledOff:
        raise DeadlineError("the session was closed before the answer came", hint="start it again") from None


class _Teller:
    """Reports a call's progress to an observer that may be absent."""

    def __init__(self, observer: Callable[[CallEvent], None] | None, position: Position, model: str) -> None:
        self._observer = observer
        self._event = CallEvent(position, Phase.QUEUED, model)

    def __call__(self, phase: Phase, answer: Answer | None = None, *, error_kind: str | None = None) -> None:
        if self._observer is None:
            return
        usage, cost = (answer.usage, answer.cost_micro) if answer else (None, 0)
        self._observer(replace(self._event, phase=phase, usage=usage, cost_micro=cost, error_kind=error_kind))
