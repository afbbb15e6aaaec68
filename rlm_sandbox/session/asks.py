"""The guest's requests of one kernel: shared texts, sub-calls in flight, cancellation.

Everything here is counted, because a hostile kernel can ask for anything: texts it shares, calls it leaves outstanding, bytes it makes the host
hold. What a well-behaved guest does stays far below these caps, so going over one is a violation and ends the session.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_sandbox.broker.types import Position, Request
from rlm_sandbox.errors import InternalError, PrerequisiteError, ProviderError, RLMError
from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.frames import FrameError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from rlm_sandbox.broker.types import Answer, CallEvent
    from rlm_sandbox.session.recorder import Recorder

log = logging.getLogger(__name__)

WINDOW = 256
"""Asks that a guest keeps outstanding. Wider than any useful concurrency (the host-wide default is 64), so that the queue never runs dry."""

OUTSTANDING_MAX = 2 * WINDOW
"""Where a guest that ignores its window is cut off."""

SHARES_MAX = 4096
"""Shared texts held at once: one or two for each batch in flight, and threads may run many batches."""

HELD_MAX = 256 * 1024 * 1024
"""Bytes of shared texts and prompts that one session may make the host hold. A text counts until it was given back and nothing in flight uses it."""

CUT_SHORT = frozenset({"max_tokens", "length", "model_context_window_exceeded"})
"""Reasons to stop that mean the answer goes on where there was no more room."""

_NOT_RECORDED = "free space on the disk of the state folder; what is not written down is not answered, and what was answered is not bought again"

_ANSWER_KINDS = {"budget": "budget", "policy": "policy", "provider": "provider", "timeout": "timeout"}


@dataclass
class _Shared:
    """A text that asks name; ``users`` are the asks in flight that do, and the guest itself until it gives the text back."""

    text: str
    size: int
    users: int = 1


class Asks:
    """Serves one kernel generation. ``reply`` sends a message to that kernel, or drops it when the kernel is gone."""

    def __init__(
        self,
        account: Recorder,
        reply: Callable[[m.Message], Awaitable[None]],
        *,
        observer: Callable[[CallEvent], None],
        cell: Callable[[], int],
        group_base: int,
    ) -> None:
        self._account = account
        self._reply = reply
        self._observer = observer
        self._cell = cell
        self._group_base = group_base
        self._shares: dict[int, _Shared] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._held = 0

    def handle(self, message: m.Message) -> None:
        """Take one request message. Raises :class:`FrameError` on a violation."""
        if isinstance(message, m.Ask):
            self._ask(message)
        elif isinstance(message, m.Share):
            self._share(message)
        elif isinstance(message, m.Unshare):
            shared = self._shares.pop(message.id, None)
            if shared is not None:
                self._let_go(shared)
        elif isinstance(message, m.Cancel):
            task = self._tasks.get(message.id)
            if task is not None:
                task.cancel()
        elif isinstance(message, m.AskBudget):
            self._start(message.id, self._budget(message.id))

    def _hold(self, size: int) -> None:
        if self._held + size > HELD_MAX:
            raise FrameError("the guest made the host hold too much")
        self._held += size

    def _share(self, share: m.Share) -> None:
        if len(self._shares) >= SHARES_MAX:
            raise FrameError("too many shared texts")
        self._hold(len(share.payload))
        self._shares[share.id] = _Shared(_text(share.payload), len(share.payload))

    def _let_go(self, shared: _Shared) -> None:
        shared.users -= 1
        if not shared.users:
            self._held -= shared.size

    def _ask(self, ask: m.Ask) -> None:
        used = {name: self._shared(name) for name in (ask.system, ask.prefix, ask.schema) if name is not None}
        texts = {name: shared.text for name, shared in used.items()}
        request = Request(
            prompt=_text(ask.payload),
            system=_named(texts, ask.system),
            prefix=_named(texts, ask.prefix),
            schema=_named(texts, ask.schema),
            model=ask.model,
            max_tokens=ask.max_tokens,
            cache=ask.cache,
            thinking_budget=ask.thinking_budget,
            sample=ask.sample,
            group=self._group_base + ask.group,
            width=ask.width,
            size=ask.size,
        )
        self._hold(len(ask.payload))
        position = Position(max(self._cell(), 1), ask.ordinal)
        task = self._start(ask.id, self._answer(ask.id, request, position))
        for shared in used.values():
            shared.users += 1

        def release(_: asyncio.Task[None]) -> None:  # also of a task that was cancelled before it began
            self._held -= len(ask.payload)
            for shared in used.values():
                self._let_go(shared)

        task.add_done_callback(release)

    def _shared(self, name: int) -> _Shared:
        try:
            return self._shares[name]
        except KeyError:
            raise FrameError("an ask names a text that was not shared") from None

    def _start(self, name: int, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Begin to serve a request; a guest that ignores its window is cut off, whatever it asks for."""
        if len(self._tasks) >= OUTSTANDING_MAX:
            work.close()
            raise FrameError("too many requests outstanding")
        task = asyncio.create_task(work)
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))
        return task

    async def _answer(self, name: int, request: Request, position: Position) -> None:
        try:
            outcome = _success(name, await self._account.ask(request, position, self._observer))
        except RLMError as exc:
            outcome = _failure(name, exc)
        except OSError as exc:
            log.warning("the run cannot be recorded: %s", exc)
            outcome = _failure(
                name, PrerequisiteError(f"the run cannot be recorded ({exc.strerror})", hint=_NOT_RECORDED)
            )
        except Exception:
            # The daemon serves other sessions: a defect in one call must not end them, and must not leave the guest waiting.
            log.exception("call %s failed by a defect", position)
            outcome = _failure(name, InternalError("the broker failed on this call", hint="see the broker's log"))
        await self._reply(outcome)

    async def _budget(self, name: int) -> None:
        state = await self._account.budget()
        await self._reply(m.BudgetInfo(name, state.model_dump_json().encode()))

    @property
    def outstanding(self) -> int:
        """Requests in flight."""
        return len(self._tasks)

    def close(self) -> None:
        """The kernel is gone: nobody waits any more. What was already sent is still settled and cached by the broker."""
        for task in list(self._tasks.values()):
            task.cancel()


def _text(payload: bytes) -> str:
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError:
        raise FrameError("a text is not UTF-8") from None


def _named(texts: dict[int, str], name: int | None) -> str | None:
    return None if name is None else texts[name]


def _success(name: int, answer: Answer) -> m.Answer:
    raw = answer.text.encode("utf-8", "replace")
    if len(raw) > m.Answer.payload_max:
        return _failure(name, ProviderError("the answer is larger than the channel carries", code="too_large"))
    return m.Answer(name, "ok", "truncated" if answer.stop_reason in CUT_SHORT else "", answer.cached, raw)


def _failure(name: int, error: RLMError) -> m.Answer:
    kind = _ANSWER_KINDS.get(error.kind, "internal")
    code = error.code if isinstance(error, ProviderError) else error.kind
    message = " ".join(error.message.split("\n"))  # the first line is the message, the others are the hint
    text = f"{message}\n{error.hint}" if error.hint else message
    return m.Answer(name, kind, code[:64], False, text.encode("utf-8", "replace")[:65536])
