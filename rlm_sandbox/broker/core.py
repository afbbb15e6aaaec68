"""Everything that sessions share, and the way to an account.

One :class:`Broker` per process and home: limits are per key and per host, so ledger, limiter, prompt-cache entries and
purchases in flight are seen by all sessions. What one session may do, and how a sub-call goes, is :mod:`.account`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from typing import TYPE_CHECKING, Any

from rlm_sandbox.broker.account import Account
from rlm_sandbox.broker.attempts import ATTEMPTS_MAX, Attempts, Bought
from rlm_sandbox.broker.budget import priced_by, unpriced
from rlm_sandbox.broker.canonical import own_scope
from rlm_sandbox.broker.doorway import Doorway
from rlm_sandbox.broker.keeper import Keeper
from rlm_sandbox.broker.lanes import Lane
from rlm_sandbox.broker.ledger import Ledger
from rlm_sandbox.broker.limiter import Limiter
from rlm_sandbox.broker.priming import Priming
from rlm_sandbox.broker.redaction import OutboundFilter
from rlm_sandbox.broker.singleflight import SingleFlight
from rlm_sandbox.broker.statement import call_entries
from rlm_sandbox.broker.upkeep import Upkeep
from rlm_sandbox.errors import PrerequisiteError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rlm_sandbox.broker.budget import PriceBook
    from rlm_sandbox.broker.policy import Policy
    from rlm_sandbox.broker.types import Credentials, Provider, Request, SessionSpec

__all__ = ["Account", "Broker"]


class Broker:
    """Everything that sessions share: ledger, limiter, prompt-cache entries, flights. One per process and home."""

    def __init__(
        self,
        home: Path,
        ledger: Ledger,
        *,
        policy: Policy,
        provider_factory: Callable[[str, Credentials], Provider],
        prices: PriceBook,
        host_concurrency: int,
        clock: Callable[[], float],
    ) -> None:
        self.home = home
        self.policy = policy
        self.clock = clock
        self.ledger = ledger
        self.limiter = Limiter(host_concurrency)
        self.attempts = Attempts(ledger, self.limiter, Priming(), prices)
        self.flights: SingleFlight[Bought] = SingleFlight()
        self.doorway = Doorway()
        self.keeper = Keeper(home)
        self.upkeep = Upkeep(self.keeper, bytes_max=policy.cache_bytes, age_s=policy.cache_age_s)
        self._filter = None if policy.secrets == "off" else OutboundFilter(policy.secrets)
        self._host_width = host_concurrency
        self._provider_factory = provider_factory
        self._lanes: dict[object, Lane] = {}
        self._accounts: dict[str, Account] = {}

    @classmethod
    async def open(
        cls,
        home: Path,
        *,
        policy: Policy,
        provider_factory: Callable[[str, Credentials], Provider],
        prices: PriceBook,
        host_concurrency: int = 64,
        clock: Callable[[], float] = time.time,
    ) -> Broker:
        """Open the ledger under ``home``; what dead processes left in flight is charged in full first.

        Raises:
            PrerequisiteError: the ledger cannot be written, or a filter that the policy asks for is not installed.
        """
        ledger = await Ledger.open(home, clock=clock)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(ledger.aclose)
            await ledger.set_day_cap(policy.daily_cost_micro)
            broker = cls(
                home,
                ledger,
                policy=policy,
                provider_factory=provider_factory,
                prices=prices,
                host_concurrency=host_concurrency,
                clock=clock,
            )
            undo.pop_all()
        return broker

    async def open_session(self, spec: SessionSpec) -> Account:
        """Open a session's account; one of the same name from before is found again with what it spent.

        Raises:
            PolicyError: a model is not allowed, or a cost cap could not be kept for want of a price.
            UsageError: the session is open in this process already.
        """
        if spec.session in self._accounts:
            raise UsageError(f"the session {spec.session} is open already", hint="close it first")
        allowed = self.policy.admit_session(spec, len(self._accounts))
        provider = self._provider_factory(spec.provider, spec.credentials)
        try:
            self.check_prices(provider, allowed, spec.limits.cost_micro)
            await self.ledger.recover()
            number = await self.ledger.open_session(spec.session, spec.limits)
            row = await self.ledger.account(number)
        except BaseException:
            await provider.aclose()
            raise
        lane_key = _lane_key(spec)
        lane = self._lanes.setdefault(lane_key, Lane(self._host_width))
        self.limiter.add_session(spec.session, spec.concurrency, lane)
        account = Account(self, spec, provider, number, allowed, lane_key, lane)
        account.see_deadline(row["deadline_ms"])
        account.cost_capped = row["micro_cap"] is not None or self.policy.daily_cost_micro is not None
        self._accounts[spec.session] = account
        return account

    def check_prices(self, provider: Provider, models: frozenset[str], cost_micro: int | None) -> None:
        """Refuse a cost cap that could not be kept."""
        if not provider.priced or (cost_micro is None and self.policy.daily_cost_micro is None):
            return
        for model in sorted(models):
            try:
                book, seller = priced_by(provider, self.attempts.prices)
                book.bound_micro(seller, model, 1, 1)
            except LookupError:
                raise unpriced(provider.name, model) from None

    async def filtered(self, request: Request) -> Request:
        """Return the request without credentials, as the policy wants it."""
        return request if self._filter is None else await self._filter.apply(request)

    async def calls(self, number: int, limit: int) -> list[dict[str, Any]]:
        """Return the latest calls of an account, newest first; see :func:`~rlm_sandbox.broker.statement.call_entries`."""
        attempts = await self.ledger.history(number, limit * ATTEMPTS_MAX)
        return call_entries(attempts, await self.ledger.hits(number, limit), limit)

    async def erase(self, session: str) -> bool:
        """Remove a session's cached answers and whatever names it or its prompts in the ledger; False when there was nothing.

        Sums stay: what a day has spent is spent.
        """
        self._accounts.pop(session, None)
        try:
            cached = await asyncio.to_thread(self.keeper.forget, own_scope(session))
        except OSError as error:
            raise PrerequisiteError(
                f"the kept answers of session {session} cannot be removed: {error}",
                hint=f"free space on the disk of {self.home}, or end what locks cache/answers.db there",
            ) from error
        return await self.ledger.erase(session) or cached

    def forget(self, account: Account) -> None:
        """Take a closed account off the list."""
        self._accounts.pop(account.spec.session, None)
        self.limiter.remove_session(account.spec.session)

    async def aclose(self) -> None:
        """Close every account and the ledger."""
        await asyncio.gather(*(account.close() for account in list(self._accounts.values())))
        await self.upkeep.aclose()
        await self.keeper.aclose()
        await self.ledger.aclose()


def _lane_key(spec: SessionSpec) -> object:
    """Name provider and credentials; the key itself is not kept."""
    secret = spec.credentials.api_key.reveal() if spec.credentials.api_key else ""
    return (spec.provider, spec.credentials.base_url, hashlib.sha256(secret.encode()).digest())
